"""What a call of the CPU kernel that was made before needs: its struct, with other addresses."""

from array import array
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from struct import Struct

import torch
from torch import Tensor, get_num_threads

from sigmoid_attention.attention.impl.cpu import abi
from sigmoid_attention.attention.impl.cpu.library import forced
from sigmoid_attention.attention.impl.cpu.ops import available, struct
from sigmoid_attention.attention.impl.layout import empty_output, rows_are_contiguous
from sigmoid_attention.attention.problem import Problem

_ADDRESS = Struct("=q")
# A call of a kind is kept the first time: that costs next to nothing.
WORTHWHILE = 1


def surroundings() -> Hashable:
    """What a call depends on beside its arguments."""
    return get_num_threads(), forced()


@dataclass(frozen=True, slots=True)
class _Known:
    run: Callable[[bytes], None]
    # Of the answer: sizes and strides.
    room: tuple[tuple[int, ...], tuple[int, ...]]
    fields: bytes
    capacity: int
    # Where the struct holds the address of each tensor, in their order.
    places: tuple[int, ...]

    def __call__(self, tensors: tuple[Tensor | None, ...]) -> Tensor | None:
        """The answer; None where a sequence has a length that does not fit."""
        query, _, _, lengths, *_ = tensors
        assert query is not None
        out = query.new_empty_strided(*self.room)
        fields = bytearray(self.fields)
        _ADDRESS.pack_into(fields, abi.Call.out.offset, out.data_ptr())
        for place, tensor in zip(self.places, tensors, strict=False):
            if tensor is not None:
                _ADDRESS.pack_into(fields, place, tensor.data_ptr())
        if lengths is not None:
            # The kernel reads this copy: another thread may write to the tensor meanwhile.
            used = array("q", lengths.tolist())
            if used and (min(used) < 0 or max(used) > self.capacity):
                return None
            _ADDRESS.pack_into(fields, abi.Call.length_k.offset, used.buffer_info()[0])
        self.run(bytes(fields))
        return out


def known(tensors: tuple[Tensor | None, ...], problem: Problem) -> _Known | None:
    """What to keep of a call; None where more of it than addresses may change."""
    if not abi.supports(problem.query.dtype) or not available():
        return None
    slopes, bias, mask = tensors[4:7]
    if any(x is not None and x.dtype != torch.float32 for x in (slopes, bias)):
        return None
    flags = mask is not None and mask.dtype == torch.bool
    if mask is not None and not flags and mask.dtype != torch.float32:
        return None
    own = (problem.query, problem.key, problem.value)
    if problem.device.type != "cpu" or not all(map(rows_are_contiguous, own)):
        return None
    out = empty_output(problem.query, problem.value.shape[3])
    fields = abi.Call
    addresses = (
        *(fields.query, fields.key, fields.value, fields.length_k, fields.slopes, fields.bias),
        fields.attend if flags else fields.mask,
    )
    return _Known(
        abi.kernel("sigmoid_attention_forward"),
        (tuple(out.shape), out.stride()),
        struct(problem),
        problem.shape[3],
        tuple(address.offset for address in addresses),
    )
