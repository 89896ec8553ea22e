"""Derivatives of the fused operator: second order, of visited tiles only, and in torch's modes."""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from sigmoid_attention.attention import (
    Learned,
    sigmoid_attention,
    sigmoid_decode,
    sigmoid_varlen_attention,
)
from sigmoid_attention.attention.impl import tiled
from sigmoid_attention.attention.impl.cpu import ops
from sigmoid_attention.attention.impl.cpu.abi import BLOCK_KEYS
from sigmoid_attention.attention.impl.tiles import Tiles
from tests.support.attention.cached import Cached
from tests.support.attention.calls import Call
from tests.support.attention.compiled import changing, compiled, one_graph_only
from tests.support.attention.packed import Packed
from tests.support.cpu.budgets import normal
from tests.support.cpu.calls import PLAIN, cut, each_dtype, fused
from tests.support.cpu.oracle import (
    assert_close_in_norm,
    differentiated,
    direction,
    exactly,
    real_arguments,
)
from tests.support.cpu.second_order import assert_second_right, twice

pytestmark = pytest.mark.usefixtures("kernel")

SMALL = PLAIN.but(queries=21, keys=35, head_dim=9, value_dim=7)
WIDE = PLAIN.but(queries=130, keys=150, head_dim=17, value_dim=5)


SECOND = {
    "plain-Q21-K35": SMALL,
    "causal-Q35-K35": SMALL.but(queries=35, is_causal=True),
    "causal-Q35-K21-rows-without-keys": SMALL.but(queries=35, keys=21, is_causal=True),
    "window-softcap": SMALL.but(window_size=(5, 3), softcap=0.8),
    "shared-keys-H6-G2": SMALL.but(group=3, batch=2),
    "slopes-H": SMALL.but(slopes="H", is_causal=True),
    "slopes-BH": SMALL.but(slopes="BH", batch=2),
    "bool-mask": SMALL.but(mask="bool QK"),
    "visible-policy": SMALL.but(bias="visible", is_causal=True),
    **{
        f"bias-{shape or 'scalar'}": SMALL.but(bias=f"tensor {shape}", batch=2)
        for shape in ("BHQK", "BHQ1", "H11", "111K", "QK", "")
    },
    **{
        f"float-mask-{shape or 'scalar'}": SMALL.but(mask=f"float {shape}", batch=2)
        for shape in ("BHQK", "1HQ1", "K")
    },
    "hiding-mask-QK": SMALL.but(mask="hiding QK"),
    "several-blocks-Q130-K150": WIDE.but(group=2, slopes="H", bias="tensor BHQ1", is_causal=True),
}


@pytest.mark.parametrize("call", SECOND.values(), ids=SECOND.keys())
def test_second_derivatives_equal_the_references(call: Call):
    tensors, arguments = call.build(torch.float32)
    with cut(48, 2):
        assert_second_right(sigmoid_attention, tensors, arguments, torch.float32)


@each_dtype
def test_second_derivatives_in_every_dtype(dtype):
    tensors, arguments = SECOND["shared-keys-H6-G2"].build(dtype)
    assert_second_right(sigmoid_attention, tensors, arguments, dtype)


SEQUENCES = Call(1, 2, 2, 1, 1, 5, 4, slopes="BH", softcap=2.0)


@pytest.mark.parametrize("bias", ["-2.5", "tensor BHQ1", "tensor BHQK", "tensor 111K"])
def test_second_derivatives_of_packed_sequences(bias):
    pack = Packed((7, 0, 50, 3), (7, 5, 49, 0), 1, SEQUENCES.but(bias=bias, is_causal=True))
    positional, arguments = pack.build(torch.float32)
    with cut(48, 1):
        assert_second_right(sigmoid_varlen_attention, positional, arguments, torch.float32)


@pytest.mark.parametrize("bias", ["-2.5", "tensor BHQK"])
def test_second_derivatives_of_cached_sequences(bias):
    cached = Cached((7, 0, 40), 0, SEQUENCES.but(queries=3, keys=40, bias=bias))
    positional, arguments = cached.build(torch.float32)
    assert_second_right(sigmoid_decode, positional, arguments, torch.float32)


@pytest.mark.parametrize("bias", ["-2.5", "tensor BHQK"])
def test_second_derivatives_of_the_queries_of_a_paged_cache(bias):
    cached = Cached((7, 0, 40), 8, SEQUENCES.but(queries=3, keys=40, bias=bias))
    positional, arguments = cached.build(torch.float32)
    fixed = ("key", "value")
    assert_second_right(sigmoid_decode, positional, arguments, torch.float32, fixed)


def test_gradients_are_those_of_the_tiles_that_were_visited():
    """And not those of all tiles, from which they differ here by more than rounding does."""
    length, block = 700, 96
    query, key, value = (normal(2, heads, length, 16, seed=heads).float() for heads in (4, 2, 2))
    query = query / 16  # so that no weight is far below its bound
    slopes = torch.tensor([1.0, 0.5, 0.1, 0.02])
    bias = torch.linspace(-3, 0, 4).view(4, 1, 1)
    grad_out = normal(2, 4, length, 16, seed=5).float()
    leaves = [tensor.requires_grad_() for tensor in (query, key, value, bias, slopes)]

    def gradients(tolerance: float) -> list[Tensor]:
        out = sigmoid_attention(
            query, key, value, bias=bias, alibi_slopes=slopes, is_causal=True, enable_gqa=True,
            skip_tolerance=tolerance, impl="cpu",
        )  # fmt: skip
        return list(torch.autograd.grad(out, leaves, grad_out))

    sizes, numbers = [length, length, 0, -1, 0, block, 0], [0.25, 0.0, 0.0, 0.3]
    tensors = [leaf.detach() for leaf in (query, key, value, bias)]
    _, visits = ops.forward(*tensors, None, slopes.detach(), None, None, sizes, numbers)
    wide = [tensor.double() for tensor in (*tensors, slopes.detach())]
    tiles = Tiles(*wide[:4], None, wide[4], 0.25, None, -1, 0, block, BLOCK_KEYS)
    found = tiled.backward(tiles, grad_out.double(), visits)
    exact = dict(
        zip(("query", "key", "value", "bias", "slopes"), found[:4] + found[5:], strict=True)
    )
    with cut(block, 1):
        kept, whole = (dict(zip(exact, gradients(t), strict=True)) for t in (0.3, 0.0))
    assert_close_in_norm(kept, exact, torch.float32)
    with pytest.raises(AssertionError, match="errs by"):
        assert_close_in_norm(whole, exact, torch.float32)


TRAINED = ("query", "key", "value", "bias", "attn_mask", "alibi_slopes")


@each_dtype
@pytest.mark.parametrize("trained", TRAINED)
def test_one_input_alone_is_trained(trained, dtype):
    """It gets the bits that it gets among all, and the others get nothing."""
    tensors, arguments = SMALL.but(bias="tensor QK", mask="float K", slopes="H").build(dtype)
    among_all = differentiated(fused, tensors, arguments)[trained]
    inputs = dict(zip(TRAINED[:3], tensors, strict=True)) | real_arguments(arguments)
    inputs = {name: value.detach() for name, value in inputs.items()}
    inputs[trained].requires_grad_()
    out = fused(*(inputs[name] for name in TRAINED[:3]), **(arguments | _extra(inputs)))
    out.backward(direction(out))
    assert torch.equal(inputs[trained].grad, among_all)
    assert all(inputs[name].grad is None for name in TRAINED if name != trained)


def _extra(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in TRAINED[3:]}


def test_a_learned_policy_is_trained():
    (query, key, value), _ = SMALL.build(torch.float32)
    policies = [Learned(-2.0, num_heads=2) for _ in range(2)]
    for policy, impl in zip(policies, ("cpu", "reference"), strict=True):
        sigmoid_attention(query, key, value, bias=policy, impl=impl).square().sum().backward()
    torch.testing.assert_close(policies[0].value.grad, policies[1].value.grad)


OPCHECKED = {
    "plain": (SMALL, (-1, -1)),
    "causal-slopes": (SMALL.but(slopes="BH", batch=2), (-1, 0)),
    "bool-mask-shared-keys": (SMALL.but(group=2, mask="bool QK"), (-1, -1)),
    "float-mask-and-bias-per-key": (SMALL.but(mask="float K", bias="tensor QK"), (4, 2)),
    "bias-per-row": (SMALL.but(bias="tensor BHQ1"), (-1, -1)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, torch.float32) for case in OPCHECKED), ("causal-slopes", torch.bfloat16)],
    ids=str,
)
def test_opcheck(case, dtype):
    call, window = OPCHECKED[case]
    tensors, arguments = call.build(dtype)
    if call.group > 1:
        tensors = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors)
    bias = arguments["bias"] if isinstance(arguments["bias"], Tensor) else None
    given = [*tensors, bias, arguments.get("attn_mask"), arguments.get("alibi_slopes")]
    given = [
        x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given
    ]
    queries, keys = call.queries, call.keys
    layout = (None, None, [queries, keys, 0, *window, 48, 1], [0.3, 2.0, -1.0, 2.0**-24])
    torch.library.opcheck(ops.forward, (*given, *layout))
    out, visits = ops.forward(*given, *layout)
    wanted = [x is not None and x.is_floating_point() for x in given[3:]]
    backward = (direction(out.detach()), visits, *wanted, *given, *layout)
    torch.library.opcheck(ops.backward, backward)
    with torch.no_grad():
        directions = [torch.randn_like(grad) for grad in ops.backward(*backward)]
        # Nothing is differentiated a third time, so this one is checked without gradients.
        fixed = [x.detach() if isinstance(x, Tensor) else x for x in (*backward[:2], *given)]
        torch.library.opcheck(ops.backward_of_backward, (*directions, *fixed, *layout, wanted))


@pytest.fixture
def forgotten_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@each_dtype
def test_compiles_into_one_graph_for_all_lengths(dtype, forgotten_graphs):
    def function(query, key, value, mask):
        return sigmoid_attention(
            query, key, value, mask, bias=-2.0, is_causal=True, enable_gqa=True, impl="cpu"
        )

    graph = compiled(function)
    with one_graph_only:
        for length in (7, 192, 401):
            query, key, value = (normal(2, heads, length, 16).to(dtype) for heads in (4, 2, 2))
            inputs = [query, key, value, normal(length, length).to(dtype)]
            leaves = [tensor.requires_grad_() for tensor in changing(inputs, length)]
            grads = [
                torch.autograd.grad(f(*leaves).float().square().sum(), leaves)
                for f in (function, graph)
            ]
            assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def test_compiled_code_holds_the_kernel(forgotten_graphs):
    found = []

    def backend(graph, _inputs):
        found.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    query = normal(1, 2, 9, 4).float()
    torch.compile(sigmoid_attention, fullgraph=True, backend=backend)(query, query, query)
    assert any("cpu_forward" in target for target in found)


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "saved-tensors"])
def test_activation_checkpointing_changes_nothing(use_reentrant):
    tensors, arguments = WIDE.but(slopes="H", is_causal=True).build(torch.float32)
    leaves = [tensor.requires_grad_() for tensor in tensors]

    def function(*tensors):
        return fused(*tensors, **arguments)

    grads = [
        torch.autograd.grad(out.square().sum(), leaves)
        if not use_reentrant
        else _backward(out, leaves)
        for out in (function(*leaves), checkpoint(function, *leaves, use_reentrant=use_reentrant))
    ]
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def _backward(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Reentrant checkpoints know no other way."""
    for leaf in leaves:
        leaf.grad = None
    out.square().sum().backward()
    return [leaf.grad for leaf in leaves]


def test_autocast_leaves_the_dtypes_as_they_are():
    """What casts is the layer around the operator; the operator answers in what it is given."""
    tensors, arguments = SMALL.build(torch.float32)
    expected = differentiated(fused, tensors, arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = differentiated(fused, tensors, arguments)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_batched_gradients_equal_a_loop():
    tensors, arguments = SMALL.build(torch.float32)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    out = fused(*leaves, **arguments)
    several = normal(3, *out.shape).float()
    batched = torch.autograd.grad(out, leaves, several, is_grads_batched=True, retain_graph=True)
    for index, grad_out in enumerate(several):
        alone = torch.autograd.grad(out, leaves, grad_out, retain_graph=True)
        assert all(
            torch.equal(*pair) for pair in zip([b[index] for b in batched], alone, strict=True)
        )


def test_forward_mode_is_refused_and_auto_has_it():
    (query, key, value), arguments = SMALL.build(torch.float32)
    along = normal(*query.shape).float()

    def tangent(impl: str, query: Tensor, key: Tensor, value: Tensor, along: Tensor) -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(query, along)
            out = sigmoid_attention(dual, key, value, **arguments, impl=impl)
            return forward_ad.unpack_dual(out).tangent

    with pytest.raises(NotImplementedError, match="forward-mode"):
        tangent("cpu", query, key, value, along)
    expected = tangent("reference", *(x.double() for x in (query, key, value, along)))
    found = tangent("auto", query, key, value, along)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


def test_an_output_that_is_not_used_costs_no_gradient():
    tensors, arguments = SMALL.build(torch.float32)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    out = fused(*leaves, **arguments)
    assert all(not grad.any() for grad in torch.autograd.grad(out, leaves, torch.zeros_like(out)))
    assert not fused(*tensors, **arguments).detach().requires_grad
    with torch.no_grad():
        without = fused(*leaves, **arguments)
    assert not without.requires_grad
    assert torch.equal(without, out)


@each_dtype
def test_first_gradients_of_a_graph_that_is_kept_are_the_same_again(dtype):
    tensors, arguments = SMALL.but(bias="tensor QK").build(dtype)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    out = fused(*leaves, **arguments)
    grads = [
        torch.autograd.grad(
            out, leaves, direction(out.detach()), create_graph=kept, retain_graph=True
        )
        for kept in (False, True)
    ]
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))
    exact = exactly(sigmoid_attention, tensors, arguments)
    names = ("query", "key", "value")
    assert_close_in_norm(
        dict(zip(names, grads[1], strict=True)), {name: exact[name] for name in names}, dtype
    )


@pytest.mark.parametrize("where", ["dtype", "device"])
def test_defaults_of_the_caller_do_not_matter(where):
    """An array of doubles that the kernel takes for floats would hold anything."""
    call = SMALL.but(bias="tensor BHQ1", mask="float QK", slopes="H")
    tensors, arguments = call.build(torch.float32)
    expected = differentiated(fused, tensors, arguments)
    second = twice(fused, tensors, arguments)
    try:
        torch.set_default_dtype(torch.float64 if where == "dtype" else torch.float32)
        torch.set_default_device("meta" if where == "device" else None)
        found = differentiated(fused, tensors, arguments)
        again = twice(fused, tensors, arguments)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for name, exact in expected.items():
        assert torch.equal(found[name], exact), name
    for name, exact in second.items():
        assert torch.equal(again[name], exact), name
