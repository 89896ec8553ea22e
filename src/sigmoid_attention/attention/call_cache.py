"""A cache of prepared kernel calls: repeated calls, as of decoding, skip validation and packing.

Validation and packing take about as long as attending to some thousand keys. They depend only on
shapes, strides, dtypes and options, which form the key of the cache; a prepared call takes other
tensors of the same kind.
"""

from collections.abc import Callable, Hashable
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sigmoid_attention.attention import dispatch
from sigmoid_attention.attention.bias import BiasPolicy, Constant, HeadValues, NegLogLength
from sigmoid_attention.attention.dispatch import Implementation
from sigmoid_attention.attention.impl.cpu import call_cache as cpu
from sigmoid_attention.attention.problem import Problem
from sigmoid_attention.attention.torch_state import is_eager, is_plain_tensor

# Only immutable scalars of Python may enter the key: the value of a tensor can change.
_SCALARS = frozenset((float, int, bool, str, type(None)))
# A contiguous cache that grows by a token a step brings a new shape with each.
_MOST_KEYS = 4096

# Query, key, value, the keys in use of each sequence of a cache, slopes, bias, mask and the table
# of a cache's pages.
Tensors = tuple[Tensor | None, ...]
# Computes the answer for such tensors; None where the call needs validation after all.
PreparedCall = Callable[[Tensors], Tensor | None]

_prepared: dict[Hashable, PreparedCall] = {}
# How often a call was made that is not prepared yet.
_counts: dict[Hashable, int] = {}


class CallKey(NamedTuple):
    """The key of a call in the cache, its tensors, and the module that prepares such calls."""

    kernels: ModuleType
    key: Hashable
    tensors: Tensors


def call_key(
    impl: Implementation,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor | None,
    slopes: Tensor | None,
    bias: float | Tensor | BiasPolicy | None,
    mask: Tensor | None,
    table: Tensor | None,
    window: tuple[int, int],
    *options: float | str | None,
) -> CallKey | None:
    """The key of a call; None for a call that cannot be cached.

    No argument is validated yet, and each may be any object.

    Args:
        options: every other argument that changes the answer or that validation reads.
    """
    kernels = _kernels(impl, query, table)
    if kernels is None or type(window) is not tuple:
        return None
    added, numbers = None, ()
    if type(bias) is NegLogLength:
        numbers = (bias.n, bias.offset)
    elif type(bias) is Constant:
        numbers = (bias.b,)
    elif type(bias) is HeadValues:
        # Its (heads,) have the address of the (1, heads, 1, 1) that the kernel reads.
        added, numbers = bias.value, (bias.owner,)
    elif isinstance(bias, Tensor):
        added = bias
    else:
        numbers = (bias,)
    tensors = (query, key, value, lengths, slopes, added, mask, table)
    if not is_eager() or not _SCALARS.issuperset(map(type, (*numbers, *window, *options))):
        return None
    learning = torch.is_grad_enabled()
    facts = []
    try:
        for tensor in tensors:
            if tensor is None:
                facts.append(None)
            elif is_plain_tensor(tensor, learning):
                location = tensor.is_cpu or _location(tensor)
                facts += tensor.shape, tensor.stride(), tensor.dtype, location
            else:
                return None
    except RuntimeError:
        # Nested and sparse tensors have no sizes or strides; validation names them.
        return None
    facts = (*facts, type(bias), numbers, window, options, kernels.environment_key())
    return CallKey(kernels, facts, tensors)


def _kernels(impl: Implementation, query: Tensor, table: Tensor | None) -> ModuleType | None:
    """The module that prepares calls of the fused kernels that a call starts with."""
    if not (isinstance(query, Tensor) and isinstance(impl, str)):
        return None
    name = dispatch.fused_kernels(query) if impl == "auto" else impl
    if name == "cpu":
        # The CPU kernel reads a copy of the block table, which is made for each call.
        return cpu if query.is_cpu and table is None else None
    return _triton() if name == "triton" else None


@cache
def _triton() -> ModuleType | None:
    try:
        # Triton is there where torch has CUDA; elsewhere it is an optional package.
        from sigmoid_attention.attention.impl.triton import call_cache
    except ImportError:
        return None
    return call_cache if call_cache.ENABLED else None


def _location(tensor: Tensor) -> Hashable:
    """The GPU, and whether the address is a multiple of 16: kernels are compiled for either."""
    return tensor.device, tensor.data_ptr() % 16


def run_cached(call: CallKey | None) -> Tensor | None:
    """The answer of a call that is prepared; None for any other call."""
    if call is None:
        return None
    prepared = _prepared.get(call.key)
    return None if prepared is None else prepared(call.tensors)


def cache_and_run(call: CallKey | None, problem: Problem) -> Tensor | None:
    """Prepare a validated call, keep that and run it; None where it has to be run as it is."""
    if call is None or call.key in _prepared:
        return None
    if len({tensor.dtype for tensor in call.tensors[:3] if tensor is not None}) > 1:
        return None  # Autocast has cast them for this call alone.
    if (count := _counts.get(call.key, 0) + 1) < call.kernels.CALLS_BEFORE_CACHING:
        _set(_counts, call.key, count)
        return None
    prepared = call.kernels.prepare(call.tensors, problem)
    if prepared is None:
        return None
    _set(_prepared, call.key, prepared)
    return prepared(call.tensors)


def _set(kept: dict[Hashable, Any], key: Hashable, value: Any) -> None:
    if len(kept) >= _MOST_KEYS:
        kept.clear()
    kept[key] = value
