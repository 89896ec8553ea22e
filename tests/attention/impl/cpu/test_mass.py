"""The mass of a row from the fused kernel: values, skipped tiles, threads and derivatives."""

import math

import pytest
import torch
from torch import Tensor

from sigmoid_attention.attention import (
    call_cache,
    sigmoid_attention,
    sigmoid_attention_with_mass,
    sigmoid_decode,
    sigmoid_decode_with_mass,
    sigmoid_varlen_attention,
)
from tests.support.attention.cached import Cached
from tests.support.attention.calls import Call
from tests.support.attention.mass import joined
from tests.support.attention.packed import Packed
from tests.support.cpu.budgets import normal
from tests.support.cpu.calls import PLAIN, cut, each_dtype
from tests.support.cpu.oracle import assert_close_in_norm, differentiated, exactly
from tests.support.cpu.second_order import assert_second_right
from tests.support.cpu.threads import threads

pytestmark = pytest.mark.usefixtures("kernel")

# How far a weight may be from its definition, relatively. Bfloat16's sigmoid is a coarse one.
WEIGHT_ERRORS = {torch.float32: 2e-6, torch.bfloat16: 5e-4, torch.float16: 2e-6}


def by_kernel(operator):
    return lambda *tensors, **arguments: joined(operator)(*tensors, **arguments, impl="cpu")


def assert_mass_right(tensors: tuple, arguments: dict, operator=sigmoid_attention) -> None:
    found = by_kernel(operator)(*tensors, **arguments)[..., -1]
    wide = (x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in tensors)
    exact = joined(operator)(*wide, **arguments, impl="reference")[..., -1]
    assert found.dtype == torch.float32
    error = WEIGHT_ERRORS[tensors[0].dtype]
    torch.testing.assert_close(found.double(), exact, rtol=error, atol=0)


CALLS = {
    "plain-Q385-K257": PLAIN,
    "causal-Q385-K257-rows-without-keys": PLAIN.but(is_causal=True),
    "window-softcap": PLAIN.but(window_size=(64, 5), softcap=0.8),
    "shared-keys-H6-G2": PLAIN.but(group=3, strided=True),
    "slopes": PLAIN.but(slopes="H", is_causal=True),
    "bias-by-pair": PLAIN.but(bias="tensor QK"),
    "hiding-mask-K": PLAIN.but(mask="hiding K"),
    "few-queries-Q3-K1200": PLAIN.but(queries=3, keys=1200, group=2),
    "one-query-of-a-window": PLAIN.but(queries=1, keys=700, window_size=(200, -1)),
    "value-dim-0": PLAIN.but(value_dim=0, queries=70),
    "value-dim-0-one-query": PLAIN.but(value_dim=0, queries=1),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@each_dtype
@each_call
def test_equals_the_reference(call: Call, dtype):
    tensors, arguments = call.build(dtype)
    assert_mass_right(tensors, arguments | {"scale": 0.05, "skip_tolerance": 0.0})


@each_dtype
def test_packed_and_cached_sequences_equal_the_reference(dtype):
    call = Call(1, 2, 2, 1, 1, 9, 4, scale=0.05)
    packed = Packed((7, 0, 150, 3), (7, 5, 149, 0), 1, call.but(is_causal=True))
    assert_mass_right(*packed.build(dtype), sigmoid_varlen_attention)
    for page_size in (0, 16):
        cached = Cached((700, 0, 1), page_size, call.but(queries=2, keys=700))
        assert_mass_right(*cached.build(dtype), sigmoid_decode)


@each_dtype
@pytest.mark.parametrize("queries", [1, 200])
def test_a_long_sum_keeps_its_digits(queries, dtype):
    """All weights are equal, so a sum in single precision would drift in one direction."""
    keys, bias = 200_000, -math.log(200_000)
    query, key = torch.zeros(1, 1, queries, 8, dtype=dtype), torch.zeros(1, 1, keys, 8, dtype=dtype)
    mass = sigmoid_attention_with_mass(query, key, key, bias=bias, impl="cpu")[1]
    weight = 1 / (1 + math.exp(-bias))
    unit = 5e-6 if dtype != torch.bfloat16 else WEIGHT_ERRORS[dtype]
    assert (mass / (keys * weight) - 1).abs().max() < unit
    assert mass.max() == mass.min()


@each_dtype
@each_call
def test_the_output_has_the_bits_of_the_plain_call(call: Call, dtype):
    tensors, arguments = call.build(dtype)
    out, _ = sigmoid_attention_with_mass(*tensors, **arguments, impl="cpu")
    assert torch.equal(out, sigmoid_attention(*tensors, **arguments, impl="cpu"))


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("queries", [1, 385])
def test_the_bits_do_not_depend_on_the_threads(queries, count):
    tensors, arguments = PLAIN.but(queries=queries, keys=2100).build(torch.float32)
    with cut(96, 1):
        alone = by_kernel(sigmoid_attention)(*tensors, **arguments)
        with threads(count):
            assert torch.equal(by_kernel(sigmoid_attention)(*tensors, **arguments), alone)


@pytest.mark.parametrize("tolerance", [1e-2, "rounding"])
def test_skipped_keys_are_missing_by_at_most_the_tolerance(tolerance):
    query, key, value = (normal(1, 2, 900, 16, seed=seed).float() / 5 for seed in range(3))

    def mass(skip_tolerance) -> Tensor:
        return sigmoid_attention_with_mass(
            query, key, value, bias=-1.0, is_causal=True, alibi_slopes=torch.tensor([0.5, 0.03]),
            skip_tolerance=skip_tolerance, impl="cpu",
        )[1]  # fmt: skip

    exact, kept = mass(0.0), mass(tolerance)
    missing = exact.double() - kept.double()
    most = 1e-2 if tolerance != "rounding" else 2.0**-24 * exact.max()
    assert missing.max() <= most + 1e-6 and missing.min() >= -1e-6
    assert tolerance == "rounding" or missing.max() > 1e-5


@each_dtype
@each_call
def test_derivatives_equal_the_references(call: Call, dtype):
    tensors, arguments = call.build(dtype)
    arguments = arguments | {"skip_tolerance": 0.0}
    operator = by_kernel(sigmoid_attention)
    with cut(96, 2):
        found = differentiated(operator, tensors, arguments)
    assert_close_in_norm(found, exactly(joined(sigmoid_attention), tensors, arguments), dtype)


def test_either_result_alone_is_trained():
    tensors, arguments = PLAIN.build(torch.float32)
    leaves = [x.requires_grad_() for x in tensors]
    out, mass = sigmoid_attention_with_mass(*leaves, **arguments, impl="cpu")
    plain = sigmoid_attention(*leaves, **arguments, impl="cpu")
    by_out = torch.autograd.grad(out.square().sum(), leaves, retain_graph=True)
    by_plain = torch.autograd.grad(plain.square().sum(), leaves)
    assert all(torch.equal(*pair) for pair in zip(by_out, by_plain, strict=True))
    *by_mass, on_value = torch.autograd.grad(mass.square().sum(), leaves)
    assert all(grad.any() for grad in by_mass) and not on_value.any()


SMALL = PLAIN.but(queries=21, keys=35, head_dim=9, value_dim=7)
SECOND = {
    "causal-Q35-K35": SMALL.but(queries=35, is_causal=True),
    "shared-keys-H6-G2": SMALL.but(group=3, batch=2, softcap=0.8),
    "bias-BHQK-slopes": SMALL.but(bias="tensor BHQK", slopes="H"),
    "float-mask-K": SMALL.but(mask="float K"),
}


@pytest.mark.parametrize("call", SECOND.values(), ids=SECOND.keys())
def test_second_derivatives_equal_the_references(call: Call):
    tensors, arguments = call.build(torch.float32)
    with cut(48, 2):
        assert_second_right(joined(sigmoid_attention), tensors, arguments, torch.float32)


@each_dtype
def test_second_derivatives_in_every_dtype(dtype):
    tensors, arguments = SECOND["shared-keys-H6-G2"].build(dtype)
    assert_second_right(joined(sigmoid_attention), tensors, arguments, dtype)


def test_second_derivatives_of_sequences():
    call = Call(1, 2, 2, 1, 1, 5, 4, slopes="BH", softcap=2.0)
    packed = Packed((7, 0, 50, 3), (7, 5, 49, 0), 1, call.but(bias="tensor BHQ1", is_causal=True))
    assert_second_right(
        joined(sigmoid_varlen_attention), *packed.build(torch.float32), torch.float32
    )
    paged = Cached((7, 0, 40), 8, call.but(queries=3, keys=40))
    fixed = ("key", "value")
    assert_second_right(joined(sigmoid_decode), *paged.build(torch.float32), torch.float32, fixed)


def test_batched_gradients_equal_a_loop():
    tensors, arguments = SMALL.build(torch.float32)
    leaves = [x.requires_grad_() for x in tensors]
    mass = sigmoid_attention_with_mass(*leaves, **arguments, impl="cpu")[1]
    several = normal(3, *mass.shape).float()
    learned = leaves[:2]
    batched = torch.autograd.grad(mass, learned, several, is_grads_batched=True, retain_graph=True)
    for index, grad_mass in enumerate(several):
        alone = torch.autograd.grad(mass, learned, grad_mass, retain_graph=True)
        assert all(torch.equal(b[index], a) for b, a in zip(batched, alone, strict=True))


def test_a_cache_that_is_split_has_the_sum_of_its_masses():
    query, key, value = (normal(2, 4, n, 8, seed=n).float() for n in (1, 300, 301))
    value = value[:, :, :300]

    def mass(keys: slice) -> Tensor:
        part = key[:, :, keys], value[:, :, keys]
        used = torch.full((2,), part[0].shape[2])
        return sigmoid_decode_with_mass(
            query, *part, seqused_k=used, is_causal=False, bias=-3.0, impl="cpu"
        )[1]

    torch.testing.assert_close(mass(slice(100)) + mass(slice(100, 300)), mass(slice(300)))


def test_no_repeated_call_is_taken_for_another():
    slopes, mask = torch.tensor([0.5, 0.1]), torch.arange(9) != 4
    settings: list[dict] = [
        {},
        {"scale": 0.7},
        {"softcap": 0.7},
        {"is_causal": True},
        {"window_size": (2, 1)},
        {"alibi_slopes": slopes},
        {"attn_mask": mask},
        {"skip_tolerance": 0.0},
        {"dropout_p": 0.0},
    ]
    for arguments in settings * 3:
        query, key, value = torch.randn(3, 2, 2, 9, 8).unbind(0)
        for operator in (sigmoid_attention, joined(sigmoid_attention)):
            found = operator(query, key, value, bias=-2.0, **arguments)
            exact = operator(query, key, value, bias=-2.0, **arguments, impl="reference")
            torch.testing.assert_close(found, exact)
    assert len(call_cache._prepared) == 2 * len(settings) - 1  # plain calls know dropout_p=0.0


def test_a_repeated_decoding_call_checks_the_lengths():
    query, key = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 9, 8)
    for lengths in ((9, 3), (1, 0), (5, 9)):
        arguments = {"seqused_k": torch.tensor(lengths), "bias": -2.0, "enable_gqa": True}
        results = sigmoid_decode_with_mass(query, key, key, **arguments, is_causal=True)
        exact = sigmoid_decode_with_mass(
            query, key, key, **arguments, is_causal=True, impl="reference"
        )
        torch.testing.assert_close(results, exact)
    assert len(call_cache._prepared) == 1
    arguments["seqused_k"] = torch.tensor([10, 3])
    with pytest.raises(ValueError, match="seqused_k"):
        sigmoid_decode_with_mass(query, key, key, **arguments, is_causal=True)
