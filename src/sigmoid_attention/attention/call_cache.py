"""Calls that were made before, straight to the kernel: a decoding step makes the same one often.

To check a call and to lay out what its kernel is started with takes as long as the kernel takes for
some thousand keys. Both depend on shapes, strides, dtypes and settings alone; what they led to is
kept by these, and only the tensors are new.
"""

from collections.abc import Callable, Hashable
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sigmoid_attention.attention.bias import (
    BiasPolicy,
    Constant,
    HeadValues,
    NegLogLength,
)
from sigmoid_attention.attention.impl.cpu import call_cache as cpu
from sigmoid_attention.attention.impl.cpu.ops import plain, untraced
from sigmoid_attention.attention.problem import Problem

# What cannot change behind its back: a tensor, as an odd scale may be, has a value that could.
_PLAIN = frozenset((float, int, bool, str, type(None)))
# A cache that grows by a token a step brings a new shape with each; old ones do not come back.
_MOST = 4096

# Query, key, value, the keys in use of each sequence of a cache, slopes, bias, mask and the table
# of a cache's pages.
Tensors = tuple[Tensor | None, ...]
# The answer for other tensors of the same kind; None where they have to be looked at in full.
Again = Callable[[Tensors], Tensor | None]

_known: dict[Hashable, Again] = {}
# How often a kind was met that is not kept yet.
_met: dict[Hashable, int] = {}


class Seen(NamedTuple):
    """A call as far as its checks and its kernel's start depend on it, and its tensors."""

    kernels: ModuleType
    kind: Hashable
    tensors: Tensors


def look(
    impl: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor | None,
    slopes: Tensor | None,
    bias: float | Tensor | BiasPolicy | None,
    mask: Tensor | None,
    table: Tensor | None,
    window: tuple[int, int],
    *settings: float | str | None,
) -> Seen | None:
    """What this call may be known by; None where it has to be looked at in full.

    Nothing was checked yet, so that every argument may be anything.

    Args:
        settings: every other argument that changes the answer or that a check looks at.
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
        # A number for each head has the address that its (1, H, 1, 1) has.
        added, numbers = bias.value, (bias.owner,)
    elif isinstance(bias, Tensor):
        added = bias
    else:
        numbers = (bias,)
    tensors = (query, key, value, lengths, slopes, added, mask, table)
    if not untraced() or not _PLAIN.issuperset(map(type, (*numbers, *window, *settings))):
        return None
    learning = torch.is_grad_enabled()
    facts = []
    try:
        for tensor in tensors:
            if tensor is None:
                facts.append(None)
            elif plain(tensor, learning):
                place = tensor.is_cpu or _place(tensor)
                facts += tensor.shape, tensor.stride(), tensor.dtype, place
            else:
                return None
    except RuntimeError:
        # Nested and sparse tensors have no sizes or strides; the checks say so better.
        return None
    kind = (*facts, type(bias), numbers, window, settings, kernels.environment_key())
    return Seen(kernels, kind, tensors)


def _kernels(impl: str, query: Tensor, table: Tensor | None) -> ModuleType | None:
    """Whose kernels a call may go to straight away."""
    if not (isinstance(query, Tensor) and isinstance(impl, str)):
        return None
    if query.is_cpu and impl in ("auto", "cpu"):
        # The tables that its kernel reads are made anew for each call.
        return cpu if table is None else None
    return _triton() if impl == "triton" or (impl == "auto" and query.is_cuda) else None


@cache
def _triton() -> ModuleType | None:
    try:
        # Triton is there where torch has CUDA, and nowhere else has anyone to import it.
        from sigmoid_attention.attention.impl.triton import call_cache
    except ImportError:
        return None
    return call_cache if call_cache.ENABLED else None


def _place(tensor: Tensor) -> Hashable:
    """Which GPU, and whether addresses are multiples of 16, which its kernels are compiled for."""
    return tensor.device, tensor.data_ptr() % 16


def again(seen: Seen | None) -> Tensor | None:
    """The answer if such a call is known; None where it is not, or has to be looked at again."""
    if seen is None:
        return None
    known = _known.get(seen.kind)
    return None if known is None else known(seen.tensors)


def remember(seen: Seen | None, problem: Problem) -> None:
    """Keep what such a call needs, if that is nothing but other tensors."""
    if seen is None or seen.kind in _known:
        return
    if len({tensor.dtype for tensor in seen.tensors[:3] if tensor is not None}) > 1:
        return  # Autocast has cast them for this call alone.
    if (met := _met.get(seen.kind, 0) + 1) < seen.kernels.CALLS_BEFORE_CACHING:
        _set(_met, seen.kind, met)
        return
    known = seen.kernels.prepare(seen.tensors, problem)
    if known is not None:
        _set(_known, seen.kind, known)


def _set(kept: dict[Hashable, Any], kind: Hashable, value: Any) -> None:
    if len(kept) >= _MOST:
        kept.clear()
    kept[kind] = value
