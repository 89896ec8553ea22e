"""Calls of the CPU kernel, in any layout and sliced, and checks of their results."""

import contextlib
import math
from unittest import mock

import pytest
import torch
from torch import Tensor

from sigmoid_attention.attention import call_cache, sigmoid_attention
from sigmoid_attention.attention.impl.cpu import ops
from tests.support.attention.calls import WINDOWS, Call
from tests.support.cpu.oracle import (
    assert_within_rounding,
    differentiated,
    exactly,
    sizes,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("heads", "tokens", "fused", "gapped", "offset", "expanded")
FAR_WINDOWS = (*WINDOWS, (64, 64), (130, -1), (-1, 130), (200, 3), (6, 65))
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers elsewhere in memory, between NaNs that must not be read."""
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
        mock.patch.object(ops, "_block_queries", lambda problem: block_queries),
        mock.patch.object(ops, "key_splits", lambda units, threads, keys: splits),
        mock.patch.object(call_cache, "_prepared", {}),
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


PLAIN = Call(
    batch=1, key_heads=2, group=1, queries=385, keys=257, head_dim=33, value_dim=20, seed=3
)
