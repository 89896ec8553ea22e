"""Calls that were made before, straight to the kernel: a decoding step makes the same one often.

To check a call and to lay out its struct takes as long as the kernel takes for some thousand keys.
Both depend on shapes, strides, dtypes and settings alone; what they led to is kept by these, and
only addresses and the lengths of a cache are new.
"""

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from struct import Struct

import torch
from torch import Tensor

from sigmoid_attention.attention.bias import BiasPolicy, Constant, NegLogLength
from sigmoid_attention.attention.cpu import call
from sigmoid_attention.attention.cpu.operator import available, like, struct, unwatched
from sigmoid_attention.attention.problem import Problem

# Under these names a call ends here.
IMPLEMENTATIONS = ("auto", "cpu")
# What cannot change behind its back: a tensor, as an odd scale may be, has a value that could.
_PLAIN = frozenset((float, int, bool, str, type(None)))
_ADDRESS = Struct("=q")
# A cache that grows by a token a step brings a new shape with each; old ones do not come back.
_MOST = 4096

_known: "dict[Hashable, _Known]" = {}


@dataclass(frozen=True, slots=True)
class _Known:
    run: Callable[[bytes], None]
    fields: bytes
    capacity: int


def kind(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor | None,
    slopes: Tensor | None,
    bias: float | Tensor | BiasPolicy | None,
    window: tuple[int, int],
    *settings: float | str | None,
) -> Hashable | None:
    """All that a call's checks and struct depend on; None where it has to be looked at in full.

    Args:
        lengths: the keys in use of each sequence of a cache. They are looked at in every call.
        settings: every other argument that changes the answer or that a check looks at.
    """
    if type(window) is not tuple or not query.is_cpu:
        return None
    if not unwatched((query, key, value, lengths, slopes)):
        return None
    if type(bias) is NegLogLength:
        bias = bias.value
    elif type(bias) is Constant:
        bias = float(bias.b)
    if not _PLAIN.issuperset(map(type, (bias, *window, *settings))):
        return None
    tensors = []
    for tensor in (query, key, value, lengths, slopes):
        if tensor is not None:
            tensors += tensor.shape, tensor.stride(), tensor.dtype, tensor.is_cpu
        else:
            tensors.append(None)
    forced = os.environ.get("SIGMOID_ATTENTION_CPU")
    return (*tensors, bias, window, settings, torch.get_num_threads(), forced)


def again(
    kind: Hashable | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor | None,
    slopes: Tensor | None,
) -> Tensor | None:
    """The answer if a call of this kind is known; None where it is not, or lengths do not fit."""
    known = None if kind is None else _known.get(kind)
    if known is None:
        return None
    out = like(query, value.shape[3])
    fields = bytearray(known.fields)
    if lengths is not None:
        used = lengths.tolist()
        if used and (min(used) < 0 or max(used) > known.capacity):
            return None
        _ADDRESS.pack_into(fields, call.LENGTH_K, lengths.data_ptr())
    _ADDRESS.pack_into(fields, call.QUERY, query.data_ptr())
    _ADDRESS.pack_into(fields, call.KEY, key.data_ptr())
    _ADDRESS.pack_into(fields, call.VALUE, value.data_ptr())
    _ADDRESS.pack_into(fields, call.OUT, out.data_ptr())
    if slopes is not None:
        _ADDRESS.pack_into(fields, call.SLOPES, slopes.data_ptr())
    known.run(bytes(fields))
    return out


def remember(kind: Hashable | None, problem: Problem, lengths: Tensor | None) -> None:
    """Keep what a call of this kind needs, if that is nothing but addresses."""
    if kind is None or not call.supports(problem.query.dtype) or not available():
        return
    slopes = problem.alibi_slopes
    if slopes is not None and slopes.dtype != torch.float32:
        return
    if lengths is not None and not (lengths.dtype == torch.int64 and lengths.is_contiguous()):
        return
    tensors = (problem.query, problem.key, problem.value)
    if problem.device.type != "cpu" or any(call.readable(x) is not x for x in tensors):
        return
    if len(_known) >= _MOST:
        _known.clear()
    _known[kind] = _Known(
        call.kernel("sigmoid_attention_forward"), struct(problem), problem.shape[3]
    )
