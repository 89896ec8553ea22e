"""The mass of a row beside the output: its values, derivatives and refusals in plain PyTorch.

tests/attention/impl has the kernels.
"""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp, vjp, vmap

from sigmoid_attention.attention import (
    Learned,
    NegLogVisible,
    sigmoid_attention,
    sigmoid_attention_with_mass,
    sigmoid_decode,
    sigmoid_decode_with_mass,
    sigmoid_varlen_attention,
    sigmoid_varlen_attention_with_mass,
)
from sigmoid_attention.attention.impl import tiled_ops
from tests.support.attention.autocast import assert_same_bits, autocast, both_halves
from tests.support.attention.cached import Cached, caches
from tests.support.attention.calls import Call, calls
from tests.support.attention.compiled import changing, compiled, normal, one_graph_only
from tests.support.attention.definition import Expected, define, define_cached, define_packed
from tests.support.attention.mass import joined
from tests.support.attention.packed import Packed, packs
from tests.support.examples import examples

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
each_impl = pytest.mark.parametrize("impl", ["reference", "tiled", "auto"])


def assert_as_defined(results: tuple[Tensor, Tensor], expected: Expected) -> None:
    torch.testing.assert_close(results[0], expected.out, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(results[1], expected.mass, rtol=1e-11, atol=1e-13)


@settings(max_examples=examples(100))
@given(calls(), st.sampled_from(("reference", "tiled")))
def test_equals_the_definition_in_float64(call: Call, impl):
    tensors, arguments = call.build()
    results = sigmoid_attention_with_mass(*tensors, **arguments, impl=impl)
    assert_as_defined(results, define(*tensors, **arguments))


@settings(max_examples=examples(50))
@given(packs())
def test_packed_sequences_equal_the_definition_in_float64(packed: Packed):
    tensors, arguments = packed.build()
    results = sigmoid_varlen_attention_with_mass(*tensors, **arguments)
    assert_as_defined(results, define_packed(*tensors, **arguments))


@settings(max_examples=examples(50))
@given(caches())
def test_cached_sequences_equal_the_definition_in_float64(cached: Cached):
    tensors, arguments = cached.build()
    results = sigmoid_decode_with_mass(*tensors, **arguments)
    assert_as_defined(results, define_cached(*tensors, **arguments))


ODD = Call(batch=2, key_heads=2, group=3, queries=5, keys=3, head_dim=3, value_dim=4)


@each_impl
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_mass_is_never_kept_below_fp32_and_a_row_without_keys_has_none(dtype, impl):
    tensors, arguments = ODD.but(is_causal=True).build(dtype)
    out, mass = sigmoid_attention_with_mass(*tensors, **arguments, impl=impl)
    assert (out.dtype, mass.dtype) == (
        dtype,
        torch.float64 if dtype == torch.float64 else torch.float32,
    )
    assert not mass[:, :, :2].any() and not out[:, :, :2].any()
    expected = define(*tensors, **arguments).mass
    torch.testing.assert_close(
        mass.double(), expected, rtol=2e-3 if impl == "auto" else 1e-5, atol=0
    )


@each_impl
@pytest.mark.parametrize(
    "sizes", [{"keys": 0}, {"queries": 0}, {"batch": 0}, {"value_dim": 0}], ids=str
)
def test_empty_shapes(sizes, impl):
    call = ODD.but(**sizes)
    tensors, arguments = call.build(torch.float32)
    out, mass = sigmoid_attention_with_mass(*tensors, **arguments, impl=impl)
    assert out.shape == (call.batch, call.heads, call.queries, call.value_dim)
    torch.testing.assert_close(mass, define(*tensors, **arguments).mass.float())


@each_impl
def test_masses_over_disjoint_keys_can_be_added(impl):
    query, key, value = normal(1, 4, 7, 8), normal(1, 2, 13, 8), normal(1, 2, 13, 5)
    whole = functools.partial(
        sigmoid_attention_with_mass, bias=-2.0, softcap=3.0, enable_gqa=True, impl=impl
    )
    parts = [whole(query, key[:, :, keys], value[:, :, keys]) for keys in (slice(4), slice(4, 13))]
    for together, first, second in zip(whole(query, key, value), *parts, strict=True):
        torch.testing.assert_close(together, first + second)


def test_dropout_drops_the_same_weights_from_both():
    query, key = normal(2, 3, 11, 4), normal(2, 3, 11, 4, seed=1)
    out, mass = sigmoid_attention_with_mass(
        query, key, torch.ones(2, 3, 11, 2), bias=-1.0, dropout_p=0.5
    )
    torch.testing.assert_close(out, mass[..., None].expand_as(out))
    assert (mass != sigmoid_attention_with_mass(query, key, key, bias=-1.0)[1]).any()


def test_skipped_keys_are_missing_by_at_most_the_tolerance(monkeypatch):
    monkeypatch.setattr(tiled_ops, "BLOCK_Q", 16)
    monkeypatch.setattr(tiled_ops, "BLOCK_K", 16)
    query, key, value = (normal(1, 2, 200, 8, seed=seed) / 4 for seed in range(3))
    call = functools.partial(
        sigmoid_attention_with_mass, query, key, value, bias=-1.0, is_causal=True, impl="tiled",
        alibi_slopes=torch.tensor([0.5, 0.1]),
    )  # fmt: skip
    exact, kept = call(skip_tolerance=0.0)[1], call(skip_tolerance=1e-2)[1]
    missing = exact - kept
    assert missing.max() > 1e-4 and missing.min() > -1e-5 and missing.max() <= 1e-2


SMALL = Call(batch=1, key_heads=2, group=1, queries=3, keys=5, head_dim=2, value_dim=2, seed=7)
DIFFERENTIABLE = {
    "plain-Q3-K5": SMALL,
    "causal-Q4-K2": SMALL.but(queries=4, keys=2, is_causal=True),
    "shared-keys-H4-G2-softcap": SMALL.but(group=2, softcap=0.7, window_size=(1, 0)),
    "bias-BHQK-slopes-H": SMALL.but(bias="tensor BHQK", slopes="H"),
    "float-mask-QK": SMALL.but(mask="float QK"),
}


def as_function(call: Call, **more):
    """Output and mass as a function of all real tensors, and these tensors."""
    tensors, arguments = call.build()
    names = [name for name, x in arguments.items() if isinstance(x, Tensor)]

    def function(query, key, value, *others):
        changed = arguments | dict(zip(names, others, strict=True)) | more
        return sigmoid_attention_with_mass(query, key, value, **changed)

    inputs = (*tensors, *(arguments[name] for name in names))
    return function, tuple(x.detach().requires_grad_() for x in inputs)


@pytest.mark.parametrize("impl", ["reference", "tiled"])
@pytest.mark.parametrize("call", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE.keys())
def test_derivatives(call, impl, monkeypatch):
    monkeypatch.setattr(tiled_ops, "BLOCK_Q", 2)
    monkeypatch.setattr(tiled_ops, "BLOCK_K", 4)
    function, inputs = as_function(call, impl=impl, skip_tolerance=0.0)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs, fast_mode=True)


def test_forward_mode_and_reverse_mode_are_transposes():
    function, inputs = as_function(DIFFERENTIABLE["bias-BHQK-slopes-H"])
    along = tuple(normal(*x.shape, seed=5).double() for x in inputs)
    results, pushed = jvp(function, inputs, along)
    against = tuple(normal(*x.shape, seed=6).double() for x in results)
    pulled = vjp(function, *inputs)[1](against)
    torch.testing.assert_close(
        sum((x * y).sum() for x, y in zip(pushed, against, strict=True)),
        sum((x * y).sum() for x, y in zip(pulled, along, strict=True)),
    )


def test_vmap_equals_a_loop():
    tensors = [normal(3, 1, 2, 5, 4, seed=seed) for seed in range(3)]
    call = functools.partial(sigmoid_attention_with_mass, bias=-1.0, is_causal=True)
    mapped = vmap(call)(*tensors)
    for index in range(3):
        for part, alone in zip(mapped, call(*(x[index] for x in tensors)), strict=True):
            torch.testing.assert_close(part[index], alone)


@both_halves
@pytest.mark.parametrize("impl", ["reference", "tiled", "auto"])
def test_autocast_changes_nothing(impl, half):
    def results() -> list[Tensor]:
        leaves = [normal(2, 2, 9, 8, seed=seed).requires_grad_() for seed in range(3)]
        out, mass = sigmoid_attention_with_mass(*leaves, bias=-1.0, impl=impl)
        grads = torch.autograd.grad(out.sum() + mass.square().sum(), leaves)
        return [out, mass, *grads]

    expected = results()
    with autocast(half):
        assert_same_bits(results(), expected)


def test_a_learned_bias_is_trained_by_the_mass_alone():
    tensors = [normal(1, 2, 5, 4, seed=seed) for seed in range(3)]
    policy = Learned(-1.0, num_heads=2)
    for operator, more in (
        (sigmoid_attention_with_mass, {}),
        (sigmoid_decode_with_mass, {"seqused_k": torch.tensor([5]), "is_causal": True}),
    ):
        policy.value.grad = None
        operator(*tensors, bias=policy, **more)[1].sum().backward()
        assert (policy.value.grad > 0).all()


@pytest.mark.parametrize("impl", ["flex", "gluon"])
def test_an_implementation_without_the_mass_refuses(impl):
    pytest.importorskip("triton")
    tensors = [normal(1, 2, 5, 4, seed=seed) for seed in range(3)]
    with pytest.raises(NotImplementedError, match="no row mass"):
        sigmoid_attention_with_mass(*tensors, bias=-1.0, impl=impl)


def test_bad_arguments_are_refused_as_by_the_plain_call():
    tensors = [normal(1, 2, 5, 4, seed=seed) for seed in range(3)]
    with pytest.raises(ValueError, match="impl must be auto"):
        sigmoid_attention_with_mass(*tensors, impl="flash")
    with pytest.raises(TypeError, match="scale must be"):
        sigmoid_attention_with_mass(*tensors, scale="1")
    with pytest.raises(TypeError, match="windows"):
        sigmoid_attention_with_mass(*tensors, windows=(1, 1))
    with pytest.raises(ValueError, match="bias: a cache's current length"):
        sigmoid_decode_with_mass(*tensors, seqused_k=torch.tensor([5]), is_causal=True)
    with pytest.raises(TypeError, match="dropout_p"):
        sigmoid_decode_with_mass(
            *tensors, seqused_k=torch.tensor([5]), is_causal=True, bias=-1.0, dropout_p=0.5
        )


class Causal(torch.nn.Module):
    def forward(self, query, key, value):
        out, mass = sigmoid_attention_with_mass(
            query, key, value, bias=NegLogVisible(), is_causal=True, enable_gqa=True
        )
        return out / (1 + mass[..., None])


def grouped(length: int) -> list[Tensor]:
    return [normal(1, heads, length, 8, seed=heads) for heads in (4, 2, 2)]


@pytest.mark.compile
def test_compiles_into_one_graph_for_all_lengths():
    torch._dynamo.reset()
    module = Causal()
    graph = compiled(module)
    with one_graph_only:
        for length in (7, 30, 300):
            leaves = [x.requires_grad_() for x in changing(grouped(length), length)]
            results = [
                (out, *torch.autograd.grad(out.square().sum(), leaves))
                for out in (module(*leaves), graph(*leaves))
            ]
            torch.testing.assert_close(*results)


def test_an_exported_call_serves_every_length():
    dynamic = ({2: torch.export.Dim("length", min=2, max=2**16)},) * 3
    program = torch.export.export(Causal(), (*grouped(40),), dynamic_shapes=dynamic)
    for length in (40, 17, 300):
        torch.testing.assert_close(program.module()(*grouped(length)), Causal()(*grouped(length)))


def test_a_call_is_one_node_of_an_fx_graph():
    traced = torch.fx.symbolic_trace(Causal())
    called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert sigmoid_attention_with_mass in called
    torch.testing.assert_close(traced(*grouped(9)), Causal()(*grouped(9)))


@pytest.mark.parametrize("operator", [sigmoid_attention, sigmoid_decode, sigmoid_varlen_attention])
def test_meta_tensors_have_the_shapes_of_real_ones(operator):
    shapes: list[torch.Size] = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            query, key = torch.ones(2, 4, 3, 8), torch.ones(2, 2, 9, 8)
            arguments: dict = {"bias": -1.0, "enable_gqa": True}
            if operator is sigmoid_decode:
                arguments |= {"seqused_k": torch.full((2,), 9), "is_causal": True}
            rest = ()
            if operator is sigmoid_varlen_attention:
                query, key = torch.ones(6, 4, 8), torch.ones(6, 2, 8)
                rest = (torch.tensor([0, 2, 6]), torch.tensor([0, 2, 6]), 4, 4)
            shapes.append(joined(operator)(query, key, key, *rest, **arguments).shape)
    assert shapes[0] == shapes[1]


def test_an_unknown_option_is_refused_by_name():
    query = torch.zeros(1, 2, 3, 4)
    ends, used = torch.tensor([0, 3]), torch.tensor([3])
    with pytest.raises(TypeError, match=r"^causal: sigmoid_attention_with_mass has no such"):
        sigmoid_attention_with_mass(query, query, query, bias=-1.0, causal=True)
    packed = query[0].transpose(0, 1)
    with pytest.raises(TypeError, match=r"^attn_mask: sigmoid_varlen_attention_with_mass has no"):
        sigmoid_varlen_attention_with_mass(
            packed, packed, packed, ends, ends, 3, 3, bias=-1.0, attn_mask=None
        )
    with pytest.raises(TypeError, match=r"^dropout_p: sigmoid_decode_with_mass has no such"):
        sigmoid_decode_with_mass(
            query, query, query, seqused_k=used, is_causal=True, bias=-1.0, dropout_p=0.1
        )
