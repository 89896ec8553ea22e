"""A cache of prepared kernel calls: repeated calls, as in decoding, skip validation and packing.

Validation and packing take about as long as attention to some thousand keys. They depend only on
shapes, strides, dtypes and options, which form the key of the cache. A prepared call accepts any
tensors that match this key.
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

# Only immutable Python scalars may enter the key: the value of a tensor can change.
_SCALARS = frozenset((float, int, bool, str, type(None)))
# Limits the entries: a contiguous cache that grows by one token a step has a new shape each time.
_MOST_KEYS = 4096

# Query, key, value, the lengths of a cache's sequences, slopes, bias, mask and the block table of
# a paged cache.
Tensors = tuple[Tensor | None, ...]
# Computes the output for such tensors, or output and mass; None if the call needs validation after
# all.
PreparedCall = Callable[[Tensors], Any]

_prepared: dict[Hashable, PreparedCall] = {}
# The number of calls so far for each key that is not prepared yet.
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

    The arguments are not validated yet: each may be any object.

    Args:
        options: every other argument that changes the output or that validation reads.
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
        # The (heads,) tensor has the address of the (1, heads, 1, 1) view that the kernel reads.
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
        # Nested and sparse tensors have no sizes or strides; validation raises for them.
        return None
    facts = (*facts, type(bias), numbers, window, options, kernels.environment_key())
    return CallKey(kernels, facts, tensors)


def _kernels(impl: Implementation, query: Tensor, table: Tensor | None) -> ModuleType | None:
    """The call-cache module of the fused kernels that are tried first; None without one."""
    if not (isinstance(query, Tensor) and isinstance(impl, str)):
        return None
    name = dispatch.fused_kernels(query) if impl == "auto" else impl
    if name == "cpu":
        # The CPU kernel reads a copy of the block table, which each call makes anew.
        return cpu if query.is_cpu and table is None else None
    return _triton() if name == "triton" else None


@cache
def _triton() -> ModuleType | None:
    try:
        # torch for CUDA includes Triton; elsewhere it is an optional package.
        from sigmoid_attention.attention.impl.triton import call_cache
    except ImportError:
        return None
    return call_cache if call_cache.ENABLED else None


def _location(tensor: Tensor) -> Hashable:
    """The GPU, and the address modulo 16: kernels are specialised on 16-byte alignment."""
    return tensor.device, tensor.data_ptr() % 16


def run_cached(call: CallKey | None) -> Any:
    """The result of a prepared call; None for any other call."""
    if call is None:
        return None
    prepared = _prepared.get(call.key)
    return None if prepared is None else prepared(call.tensors)


def cache_and_run(call: CallKey | None, problem: Problem, with_mass: bool = False) -> Any:
    """Prepare a validated call, cache it and run it; None if it must run without the cache.

    ``with_mass``: whether the result is the pair of output and mass. The key must say so, too.
    """
    if call is None or call.key in _prepared:
        return None
    if len({tensor.dtype for tensor in call.tensors[:3] if tensor is not None}) > 1:
        return None  # Autocast has cast the tensors of this call.
    if (count := _counts.get(call.key, 0) + 1) < call.kernels.CALLS_BEFORE_CACHING:
        _set(_counts, call.key, count)
        return None
    prepared = call.kernels.prepare(call.tensors, problem, with_mass)
    if prepared is None:
        return None
    _set(_prepared, call.key, prepared)
    return prepared(call.tensors)


def _set(kept: dict[Hashable, Any], key: Hashable, value: Any) -> None:
    if len(kept) >= _MOST_KEYS:
        kept.clear()
    kept[key] = value
