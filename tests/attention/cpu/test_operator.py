"""The fused operator against the reference in float64: every feature, forward and all gradients.

Sizes lie around the kernel's own: 192 queries a block (or 96, or 48), 128 keys, panels of 64, 16
or 8 of them, rows in groups of 6.
"""

import contextlib
import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sigmoid_attention.attention import sigmoid_attention
from sigmoid_attention.attention.cpu import extra, operator
from tests.attention.calls import BIAS_SHAPES, WINDOWS, Call, masks
from tests.attention.cpu.oracle import (
    assert_within_rounding,
    differentiated,
    exactly,
    real_arguments,
    sizes,
)

pytestmark = pytest.mark.usefixtures("kernel")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
QUERIES = (1, 5, 6, 7, 48, 49, 95, 97, 191, 192, 193, 385)
KEYS = (1, 7, 15, 17, 63, 65, 127, 128, 129, 193, 257)
DIMS = (1, 2, 7, 16, 17, 33, 64, 65, 70)
LAYOUTS = ("heads", "tokens", "fused", "gapped", "offset", "expanded")
FAR_WINDOWS = (*WINDOWS, (64, 64), (130, -1), (-1, 130), (200, 3), (6, 65))

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers elsewhere in memory, between NaNs that nobody may read."""
    batch, heads, rows, dim = tensor.shape
    match layout:
        case "heads":
            return tensor.contiguous()
        case "tokens":
            return tensor.transpose(1, 2).contiguous().transpose(1, 2)
        case "fused":
            whole = tensor.new_full((batch, rows, 3, heads, dim), math.nan)
            place = whole[:, :, 1].transpose(1, 2)
        case "gapped":
            place = tensor.new_full((batch, heads, rows, 2 * dim), math.nan)[..., ::2]
        case "offset":
            place = tensor.new_full((tensor.numel() + 1,), math.nan)[1:].view(tensor.shape)
        case "expanded":
            return tensor[:, :1].expand(tensor.shape)
    return place.copy_(tensor)


@contextlib.contextmanager
def cut(block_queries: int, splits: int):
    """The kernel's work cut as it would be for more threads."""
    with (
        mock.patch.object(operator, "_block_queries", lambda problem: block_queries),
        mock.patch.object(extra, "splits", lambda units, threads, keys: splits),
    ):
        yield


def fused(*tensors, **arguments) -> Tensor:
    return sigmoid_attention(*tensors, **arguments, impl="cpu")


def assert_right(tensors, arguments, dtype: torch.dtype) -> None:
    arguments = {"skip_tolerance": 0.0, **arguments}
    assert_within_rounding(
        differentiated(fused, tensors, arguments),
        exactly(sigmoid_attention, tensors, arguments),
        sizes(tensors, arguments),
        dtype,
    )


@st.composite
def large_calls(draw) -> Call:
    """Any combination of arguments, at sizes of several blocks."""
    biases = ("-2.5", "visible", "effective", *(f"tensor {letters}" for letters in BIAS_SHAPES))
    return Call(
        batch=draw(st.integers(1, 2)),
        key_heads=draw(st.integers(1, 2)),
        group=draw(st.sampled_from((1, 3))),
        queries=draw(st.sampled_from(QUERIES)),
        keys=draw(st.sampled_from(KEYS)),
        head_dim=draw(st.sampled_from(DIMS)),
        value_dim=draw(st.sampled_from(DIMS)),
        bias=draw(st.sampled_from(biases)),
        mask=draw(masks()),
        slopes=draw(st.sampled_from((None, "H", "BH"))),
        is_causal=draw(st.booleans()),
        window_size=draw(st.sampled_from(FAR_WINDOWS)),
        softcap=draw(st.sampled_from((None, 0.7, 5.0))),
        scale=draw(st.sampled_from((None, -0.1))),
        seed=draw(st.integers(0, 2**16)),
    )


@each_dtype
@settings(max_examples=30)
@given(
    call=large_calls(),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    blocks=st.sampled_from((192, 96, 48)),
    splits=st.integers(1, 3),
    terms=st.sampled_from((None, torch.float32, torch.float64)),
)
def test_equals_the_reference(dtype, call: Call, layouts, blocks, splits, terms):
    tensors, arguments = call.build(dtype)
    tensors = tuple(map(laid_out, tensors, layouts))
    if terms is not None:
        arguments |= {name: term.to(terms) for name, term in real_arguments(arguments).items()}
    with cut(blocks, splits):
        assert_right(tensors, arguments, dtype)
