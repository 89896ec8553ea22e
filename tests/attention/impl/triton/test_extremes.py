"""Triton kernels with small weights in narrow dtypes, extreme numbers, odd strides and no rows."""

import pytest
import torch
from torch import Tensor

from sigmoid_attention.attention import sigmoid_attention
from tests.support.cpu.budgets import normal
from tests.support.cpu.oracle import assert_within_rounding, exactly, sizes
from tests.support.triton.calls import BLOCKS, SLOPES, check, qkv
from tests.support.triton.interpreter import Blocks, output, with_gradients

NARROW = {torch.float16: "fp16", torch.bfloat16: "bf16"}
each_narrow = pytest.mark.parametrize("dtype", NARROW, ids=NARROW.values())
SHARED = {"enable_gqa": True}

# Where a GPU rounds to bf16, the interpreter cuts off.
CUT_OFF = {torch.float16: 1.0, torch.bfloat16: 2.0}


def check_narrow(interpreted, positional, arguments, *, in_order=False) -> None:
    dtype = positional[0].dtype
    actual = interpreted(with_gradients, BLOCKS, positional, arguments | SHARED, in_order=in_order)
    exact = exactly(sigmoid_attention, positional, arguments | SHARED)
    size = sizes(positional, arguments | SHARED)
    size = {name: CUT_OFF[dtype] * budget for name, budget in size.items()}
    assert_within_rounding(actual, exact, size, dtype)


@each_narrow
@pytest.mark.parametrize("bias", [-1.0, -11.0, -16.0], ids=["b=-1", "b=-11", "b=-16"])
def test_small_weights_keep_their_digits(interpreted, dtype, bias):
    """1 / 65536 is below fp16's smallest normal number, and e^-16 near its smallest at all."""
    positional = qkv(37, 40, heads=1, dtype=dtype)
    check_narrow(interpreted, positional, {"bias": bias, "is_causal": True})


@each_narrow
def test_tails_and_slopes(interpreted, dtype):
    positional = qkv(70, 70, dtype=dtype)
    check_narrow(interpreted, positional, {"bias": -6.0, "is_causal": True, "alibi_slopes": SLOPES})


def test_tails_in_fp32(interpreted):
    """All weights are near e^-5, and no unit but those on an edge needs the full sigmoid."""
    query, key, value = qkv(70, 70)
    check(interpreted, (0.1 * query, 0.1 * key, value), bias=-5.0, is_causal=True)


@each_narrow
@pytest.mark.parametrize("bias", [(2, 20, 1), (2, 1, 37), (2, 1, 1)], ids=["rows", "keys", "heads"])
@pytest.mark.parametrize("in_order", [False, True], ids=["added", "in-order"])
def test_bias_mask_and_softcap(interpreted, dtype, bias, in_order):
    positional = qkv(20, 37, dtype=dtype)
    arguments = {
        "bias": normal(*bias).to(dtype),
        "attn_mask": normal(2, 20, 37).to(dtype),
        "softcap": 2.0,
        "window_size": (30, 2),
    }
    check_narrow(interpreted, positional, arguments, in_order=in_order)


@pytest.mark.parametrize("grad_size", [1e-6, 1.0, 1e4], ids=["tiny", "one", "huge"])
def test_gradients_of_any_size_in_fp16(interpreted, grad_size):
    """A score's gradient is far smaller or larger than what fp16 holds; dQ and dK are not."""
    query, key, value = qkv(20, 37, heads=1, dtype=torch.float16)
    value = value * grad_size if grad_size < 1 else value
    key = key / grad_size if grad_size > 1 else key
    query = query * grad_size if grad_size > 1 else query
    check_narrow(interpreted, (query, key, value), {"bias": -9.0})


def test_hardware_tanh_is_the_same_function(interpreted):
    positional, arguments = qkv(33, 35), {"bias": -1.0, "is_causal": True, "softcap": 4.0} | SHARED
    actual = interpreted(by_tanh, BLOCKS, positional, arguments)
    exact = exactly(sigmoid_attention, positional, arguments)
    for name, expected in exact.items():
        torch.testing.assert_close(actual[name].double(), expected, rtol=1e-4, atol=1e-5)


def by_tanh(positional: tuple, arguments: dict) -> dict[str, Tensor]:
    from sigmoid_attention.attention.impl.triton import activation

    activation.use("tanh")
    try:
        return with_gradients(positional, arguments)
    finally:
        activation.use(None)


@pytest.mark.parametrize("bias", [-200.0, -60.0, 12.0, 200.0])
def test_logits_far_from_zero(interpreted, bias):
    check(interpreted, qkv(20, 18, heads=1), bias=bias)


def test_queries_that_see_nothing_are_exactly_zero(interpreted):
    positional = qkv(43, 19)
    actual = interpreted(
        with_gradients, BLOCKS, positional, {"bias": 0.0, "is_causal": True} | SHARED
    )
    assert actual["out"][:, :, :24].eq(0).all() and actual["query"][:, :, :24].eq(0).all()
    hidden = {"bias": 0.0, "attn_mask": torch.zeros(43, 19, dtype=torch.bool)} | SHARED
    actual = interpreted(with_gradients, BLOCKS, positional, hidden)
    assert all(tensor.eq(0).all() for tensor in actual.values())


@pytest.mark.parametrize(
    "shape",
    [
        {"batch": 0, "queries": 5, "keys": 5},
        {"queries": 0, "keys": 5},
        {"queries": 5, "keys": 0},
        {"queries": 5, "keys": 5, "value_dim": 0},
    ],
    ids=["no-batch", "no-queries", "no-keys", "no-value-dim"],
)
@pytest.mark.parametrize("in_order", [False, True], ids=["added", "in-order"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_nothing_to_compute(interpreted, shape, dtype, in_order):
    positional = qkv(**shape, dtype=dtype)
    arguments = {"bias": torch.zeros(2, 1, 1), "alibi_slopes": SLOPES} | SHARED
    actual = interpreted(with_gradients, BLOCKS, positional, arguments, in_order=in_order)
    exact = exactly(sigmoid_attention, positional, arguments)
    for name, expected in exact.items():
        assert torch.equal(actual[name].double(), expected), name


def test_rows_with_gaps_and_heads_behind_tokens(interpreted):
    query, key, value = qkv(33, 35, batch=2)
    by_token = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value))
    gaps = tuple(torch.stack((x, x), -1).flatten(-2)[..., ::2] for x in (query, key, value))
    arguments = {"bias": -1.0} | SHARED
    expected = interpreted(with_gradients, BLOCKS, (query, key, value), arguments)
    for positional in (by_token, gaps):
        actual = interpreted(strides_and_gradients, BLOCKS, positional, arguments)
        assert actual.pop("strides") == expected_strides(positional)
        for name, tensor in expected.items():
            torch.testing.assert_close(actual[name], tensor)


def strides_and_gradients(positional: tuple, arguments: dict) -> dict:
    actual = with_gradients(positional, arguments)
    return actual | {"strides": actual["out"].stride()}


def expected_strides(positional: tuple) -> tuple[int, ...]:
    query = positional[0]
    batch, heads, rows, dim = query.shape
    by_token = query.stride(1) < query.stride(2)
    like = query.new_empty(batch, rows, heads, dim).transpose(1, 2) if by_token else None
    return (query.new_empty(query.shape) if like is None else like).stride()


def far_apart(rows: int, heads: int, dim: int) -> Tensor:
    """Heads and rows so far apart that offsets need more than 32 bits; most is never touched."""
    row, head = 2**23, 2**31 + 2**10
    room = torch.empty((rows - 1) * row + (heads - 1) * head + dim, dtype=torch.float16)
    return room.as_strided((1, heads, rows, dim), (head * heads, head, row, 1))


def far(positional: tuple, arguments: dict) -> Tensor:
    moved = []
    for tensor in positional:
        positions = far_apart(tensor.shape[2], tensor.shape[1], tensor.shape[3])
        positions.copy_(tensor)
        moved.append(positions)
    return output(tuple(moved), arguments)


def test_offsets_beyond_32_bits(interpreted):
    positional = qkv(70, 300, dtype=torch.float16)
    arguments = {"bias": -5.0, "is_causal": True} | SHARED
    blocks = Blocks(64, 128, 128)
    expected = interpreted(output, blocks, positional, arguments)
    assert torch.equal(interpreted(far, blocks, positional, arguments), expected)
