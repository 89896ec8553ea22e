"""The operator against its definition, number by number, over random combinations of arguments."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sigmoid_attention.attention import (
    Constant,
    NegLogVisible,
    attention_statistics,
    sigmoid_attention,
)
from tests.support.attention.calls import MASK_SHAPES, POLICIES, Call, calls
from tests.support.attention.definition import Expected, define, to_nearest
from tests.support.examples import examples

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}


def answer(tensors, arguments) -> Expected:
    out = sigmoid_attention(*tensors, **arguments)
    return Expected(out, *attention_statistics(*tensors, **arguments))


@settings(max_examples=examples(200))
@given(calls())
def test_equals_the_definition_in_float64(call: Call):
    tensors, arguments = call.build()
    actual, expected = answer(tensors, arguments), define(*tensors, **arguments)
    torch.testing.assert_close(actual.out, expected.out, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(actual.mass, expected.mass, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(actual.largest, expected.largest, rtol=1e-11, atol=1e-13)
    assert torch.equal(actual.visible, expected.visible)
    assert torch.equal(actual.out, sigmoid_attention(*tensors, **arguments))


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=NAMES.get)
@settings(max_examples=examples(25))
@given(call=calls())
def test_error_stays_below_that_of_a_straightforward_computation(dtype, call: Call):
    tensors, arguments = call.build(dtype)
    exact = define(*tensors, **arguments).out
    straightforward = define(*tensors, **arguments, rounded=to_nearest(dtype)).out
    # Some examples round luckily; a computation can still not beat the rounding of its output.
    budget = (straightforward - exact).abs().max() + 2 * torch.finfo(dtype).eps * exact.abs().max()
    actual = sigmoid_attention(*tensors, **arguments)
    assert actual.dtype == dtype
    assert (actual.double() - exact).abs().max() <= budget


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=NAMES.get)
@settings(max_examples=examples(25))
@given(call=calls())
def test_a_narrow_dtype_costs_only_the_rounding_of_the_output(dtype, call: Call):
    tensors, arguments = call.build(dtype)
    exact = define(*tensors, **arguments).out
    in_fp32 = define(*tensors, **arguments, rounded=to_nearest(torch.float32)).out
    inside = 2 * (in_fp32 - exact).abs().max() + 4 * torch.finfo(torch.float32).eps
    rounding = torch.finfo(dtype).eps / 2 * exact.abs()
    # A fused kernel may round its weights too: tests/attention/impl/cpu has its budgets.
    actual = sigmoid_attention(*tensors, **arguments, impl="reference")
    assert ((actual.double() - exact).abs() <= rounding + inside).all()


@pytest.mark.parametrize("shape", MASK_SHAPES, ids=lambda shape: shape or "scalar")
@pytest.mark.parametrize("bias", POLICIES)
@pytest.mark.parametrize("kind", ["bool", "hiding"])
def test_every_policy_takes_a_mask_of_every_shape(bias, kind, shape):
    call = Call(batch=2, key_heads=1, group=2, queries=3, keys=5, head_dim=2, value_dim=2)
    tensors, arguments = call.but(bias=bias, mask=f"{kind} {shape}", seed=1).build()
    actual, expected = answer(tensors, arguments), define(*tensors, **arguments)
    torch.testing.assert_close(actual.out, expected.out, rtol=1e-11, atol=1e-13)
    assert torch.equal(actual.visible, expected.visible)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=NAMES.get)
def test_weights_near_one_over_a_million_keep_their_digits(dtype):
    call = Call(batch=1, key_heads=2, group=1, queries=3, keys=37, head_dim=5, value_dim=2)
    (query, key, value), _ = call.build(dtype)
    value = value.abs()
    bias = Constant(-math.log(2**20))
    exact = define(query, key, value, bias=bias).out
    error = (sigmoid_attention(query, key, value, bias=bias).double() - exact).abs() / exact
    # A logit near -14 is itself rounded to 14 eps / 2 of fp32, and the output once to its dtype.
    rounding = torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 0.0
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / exact.min()
    assert error.max() <= rounding + tiny + 16 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
def test_statistics_are_never_kept_below_fp32(dtype):
    call = Call(batch=1, key_heads=2, group=1, queries=3, keys=5, head_dim=5, value_dim=2)
    tensors, arguments = call.build(dtype)
    actual = answer(tensors, arguments)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert (actual.out.dtype, actual.mass.dtype, actual.largest.dtype) == (dtype, wide, wide)
    assert actual.visible.dtype == torch.int64


@pytest.mark.parametrize("impl", ["reference", "tiled", "cpu", "flex"])
@pytest.mark.parametrize(
    "window, same",
    [((5, 2**31 - 1), (5, -1)), ((2**31 - 1, 0), (-1, 0)), ((5, sys.maxsize), (5, -1))],
)
@pytest.mark.parametrize("bias", ["-2.5", "visible"])
def test_a_side_longer_than_any_sequence_is_no_limit(window, same, bias, impl):
    call = Call(batch=1, key_heads=2, group=1, queries=13, keys=17, head_dim=3, value_dim=2)
    tensors, arguments = call.but(bias=bias).build(torch.float32)
    expected = define(*tensors, **arguments | {"window_size": same}).out.float()
    actual = sigmoid_attention(*tensors, **arguments | {"window_size": window}, impl=impl)
    torch.testing.assert_close(actual, expected)


ODD = Call(batch=2, key_heads=2, group=3, queries=5, keys=3, head_dim=3, value_dim=4)
NO_KEYS = {
    "causal-Q5-K3": (ODD.but(is_causal=True), [0, 1]),
    "window-left-of-the-keys-Q5-K3": (ODD.but(window_size=(-1, 0)), [0, 1]),
    "window-of-itself-Q5-K3": (ODD.but(window_size=(0, 0)), [0, 1]),
    "no-keys-at-all-Q5-K0": (ODD.but(keys=0), [0, 1, 2, 3, 4]),
    "no-keys-causal-visible-Q5-K0": (
        ODD.but(keys=0, is_causal=True, bias="visible"),
        [0, 1, 2, 3, 4],
    ),
    "row-lse-Q5-K3": (ODD.but(is_causal=True, bias="lse"), [0, 1]),
    "slopes-Q5-K3": (ODD.but(is_causal=True, slopes="BH", bias="tensor BHQK"), [0, 1]),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("call, rows", NO_KEYS.values(), ids=NO_KEYS.keys())
def test_rows_without_keys_are_exactly_zero(call, rows, dtype):
    actual = answer(*call.build(dtype))
    for part in actual:
        assert torch.equal(part[:, :, rows], torch.zeros_like(part[:, :, rows]))
    others = [row for row in range(call.queries) if row not in rows]
    assert (actual.visible[:, :, others] > 0).all()
    assert (actual.out[:, :, others] != 0).any(-1).all()


@pytest.mark.parametrize("bias", [0.0, NegLogVisible(), torch.tensor(3.0)], ids=repr)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_mask_that_hides_all_gives_exact_zeros(kind, bias):
    tensors, _ = ODD.build(torch.float32)
    mask = torch.ones(5, 3, dtype=torch.bool)
    mask[2] = False
    if kind == "float":
        mask = torch.zeros(5, 3).masked_fill(~mask, -math.inf)
    for part in answer(tensors, {"attn_mask": mask, "bias": bias, "enable_gqa": True}):
        assert not part[:, :, 2].any()
        assert part[:, :, 3].any()


@given(calls())
def test_hiding_by_minus_infinity_is_hiding_by_false(call: Call):
    call = call.but(mask="bool BHQK", bias="visible")
    tensors, arguments = call.build()
    seen = arguments.pop("attn_mask")
    added = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -math.inf)
    by_false = answer(tensors, {"attn_mask": seen, **arguments})
    by_infinity = answer(tensors, {"attn_mask": added, **arguments})
    assert all(torch.equal(*parts) for parts in zip(by_false, by_infinity, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
def test_only_minus_infinity_hides(dtype):
    """The lowest finite number leaves a key in sight, of no weight, and in the policies' count."""
    tensors, _ = ODD.but(group=1).build(dtype)
    lowest = torch.zeros(3, dtype=dtype)
    lowest[1] = torch.finfo(dtype).min
    low = answer(tensors, {"attn_mask": lowest, "bias": NegLogVisible()})
    assert (low.visible == 3).all()
    hidden = torch.tensor([True, False, True])
    expected = answer(tensors, {"attn_mask": hidden, "bias": -math.log(3)})
    assert (expected.visible == 2).all()
    torch.testing.assert_close(low.out, expected.out)


@given(calls(), st.integers(2, 4))
def test_parts_over_disjoint_keys_add_up(call: Call, parts: int):
    """The bias must not depend on the row's keys; everything else may."""
    if call.bias in ("none", "visible", "lse"):
        call = call.but(bias="constant")
    tensors, arguments = call.build()
    everything = torch.ones((), dtype=torch.bool)
    mask = arguments.pop("attn_mask", everything).broadcast_to(call.sizes("BHQK"))
    whole = answer(tensors, {"attn_mask": mask, **arguments})
    owner = torch.randint(parts, (call.keys,), generator=torch.Generator().manual_seed(call.seed))
    hidden = False if mask.dtype == torch.bool else -math.inf
    pieces = [
        answer(tensors, {"attn_mask": mask.masked_fill(owner != part, hidden), **arguments})
        for part in range(parts)
    ]
    torch.testing.assert_close(sum(piece.out for piece in pieces), whole.out)
    torch.testing.assert_close(sum(piece.mass for piece in pieces), whole.mass)
    assert torch.equal(sum(piece.visible for piece in pieces), whole.visible)


@given(calls(), st.integers(0, 6))
def test_a_split_of_the_keys_adds_up(call: Call, at: int):
    call = call.but(mask=None, is_causal=False, window_size=(-1, -1), slopes=None, bias="-2.5")
    (query, key, value), arguments = call.build()
    whole = sigmoid_attention(query, key, value, **arguments)
    near = sigmoid_attention(query, key[:, :, :at], value[:, :, :at], **arguments)
    far = sigmoid_attention(query, key[:, :, at:], value[:, :, at:], **arguments)
    torch.testing.assert_close(near + far, whole)


def test_inputs_that_repeat_in_memory_are_read_as_written_out():
    (query, key, value), arguments = ODD.build()
    shared = [tensor[:1, :1].expand(tensor.shape) for tensor in (query, key, value)]
    written_out = [tensor.contiguous() for tensor in shared]
    torch.testing.assert_close(
        sigmoid_attention(*shared, **arguments), sigmoid_attention(*written_out, **arguments)
    )


@given(calls())
def test_arguments_are_left_as_they_were(call: Call):
    tensors, arguments = call.build()
    inputs = [*tensors, *(a for a in arguments.values() if isinstance(a, torch.Tensor))]
    before = [tensor.clone() for tensor in inputs]
    sigmoid_attention(*tensors, **arguments)
    assert all(torch.equal(*pair) for pair in zip(inputs, before, strict=True))


@pytest.mark.parametrize("sizes", [(0, 2, 3, 3), (2, 2, 0, 3), (2, 2, 3, 0)], ids=str)
def test_empty_calls_have_the_shape_that_full_ones_have(sizes):
    batch, heads, queries, keys = sizes
    query = torch.ones(batch, heads, queries, 5)
    key, value = torch.ones(batch, heads, keys, 5), torch.ones(batch, heads, keys, 7)
    out = sigmoid_attention(query, key, value, bias=NegLogVisible())
    aux = attention_statistics(query, key, value, bias=NegLogVisible())
    assert out.shape == (batch, heads, queries, 7)
    assert all(rows.shape == (batch, heads, queries) for rows in aux)
    assert not out.any()


def test_a_head_without_dimensions_is_weighed_by_its_bias():
    query, value = torch.ones(1, 1, 3, 0), torch.ones(1, 1, 3, 1)
    out = sigmoid_attention(query, query, value, bias=0.0, scale=1.0)
    torch.testing.assert_close(out, torch.full((1, 1, 3, 1), 1.5))
