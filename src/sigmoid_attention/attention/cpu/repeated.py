"""Calls that were made before, straight to the kernel: a decoding step makes the same one often.

To check a call and to lay out its struct takes as long as the kernel takes for some thousand keys.
Both depend on shapes, strides, dtypes and settings alone; what they led to is kept by these, and
only addresses and the lengths of a cache are new.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

import torch
from torch import Tensor

from sigmoid_attention.attention.bias import (
    BiasPolicy,
    Constant,
    HeadValues,
    Learned,
    NegLogLength,
)
from sigmoid_attention.attention.cpu import call
from sigmoid_attention.attention.cpu.library import forced
from sigmoid_attention.attention.cpu.operator import available, like, plain, struct, untraced
from sigmoid_attention.attention.problem import Problem

# Under these names a call ends here.
IMPLEMENTATIONS = ("auto", "cpu")
# What cannot change behind its back: a tensor, as an odd scale may be, has a value that could.
_PLAIN = frozenset((float, int, bool, str, type(None)))
_ADDRESS = Struct("=q")
# A cache that grows by a token a step brings a new shape with each; old ones do not come back.
_MOST = 4096

_known: "dict[Hashable, _Known]" = {}


class Seen(NamedTuple):
    """A call as far as its checks and its struct depend on it, and the tensors that it came with.

    ``tensors`` are query, key, value, the keys in use of each sequence of a cache, slopes, bias
    and mask.
    """

    kind: Hashable
    tensors: tuple[Tensor | None, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    run: Callable[[bytes], None]
    fields: bytes
    capacity: int
    # Where the struct holds the address of each tensor, in their order.
    places: tuple[int, ...]


def look(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor | None,
    slopes: Tensor | None,
    bias: float | Tensor | BiasPolicy | None,
    mask: Tensor | None,
    window: tuple[int, int],
    *settings: float | str | None,
) -> Seen | None:
    """What this call may be known by; None where it has to be looked at in full.

    Args:
        lengths: the keys in use of each sequence of a cache. They are looked at in every call.
        settings: every other argument that changes the answer or that a check looks at.
    """
    if type(window) is not tuple or not query.is_cpu:
        return None
    added, numbers = None, ()
    if type(bias) is NegLogLength:
        numbers = (bias.n, bias.offset)
    elif type(bias) is Constant:
        numbers = (bias.b,)
    elif type(bias) is HeadValues or type(bias) is Learned:
        # A number for each head has the address that its (1, H, 1, 1) has.
        added = bias.value
    elif isinstance(bias, Tensor):
        added = bias
    else:
        numbers = (bias,)
    tensors = (query, key, value, lengths, slopes, added, mask)
    if not untraced() or not _PLAIN.issuperset(map(type, (*numbers, *window, *settings))):
        return None
    learning = torch.is_grad_enabled()
    facts = []
    for tensor in tensors:
        if tensor is None:
            facts.append(None)
        elif plain(tensor, learning):
            facts += tensor.shape, tensor.stride(), tensor.dtype, tensor.is_cpu
        else:
            return None
    return Seen(
        (*facts, type(bias), numbers, window, settings, torch.get_num_threads(), forced()), tensors
    )


def again(seen: Seen | None) -> Tensor | None:
    """The answer if such a call is known; None where it is not, or lengths do not fit."""
    known = None if seen is None else _known.get(seen.kind)
    if seen is None or known is None:
        return None
    query, _, value, lengths = seen.tensors[:4]
    assert query is not None and value is not None
    out = like(query, value.shape[3])
    if lengths is not None:
        used = lengths.tolist()
        if used and (min(used) < 0 or max(used) > known.capacity):
            return None
    fields = bytearray(known.fields)
    _ADDRESS.pack_into(fields, call.OUT, out.data_ptr())
    for place, tensor in zip(known.places, seen.tensors, strict=True):
        if tensor is not None:
            _ADDRESS.pack_into(fields, place, tensor.data_ptr())
    known.run(bytes(fields))
    return out


def remember(seen: Seen | None, problem: Problem) -> None:
    """Keep what such a call needs, if that is nothing but addresses."""
    if seen is None or not call.supports(problem.query.dtype) or not available():
        return
    lengths, slopes, bias, mask = seen.tensors[3:]
    if any(x is not None and x.dtype != torch.float32 for x in (slopes, bias)):
        return
    flags = mask is not None and mask.dtype == torch.bool
    if mask is not None and not flags and mask.dtype != torch.float32:
        return
    if lengths is not None and not (lengths.dtype == torch.int64 and lengths.is_contiguous()):
        return
    tensors = (problem.query, problem.key, problem.value)
    if problem.device.type != "cpu" or any(call.readable(x) is not x for x in tensors):
        return
    if len(_known) >= _MOST:
        _known.clear()
    places = (call.QUERY, call.KEY, call.VALUE, call.LENGTH_K, call.SLOPES, call.BIAS)
    _known[seen.kind] = _Known(
        call.kernel("sigmoid_attention_forward"),
        struct(problem),
        problem.shape[3],
        (*places, call.FLAGS if flags else call.MASK),
    )
