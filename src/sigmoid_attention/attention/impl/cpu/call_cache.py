"""Repeats a call of the CPU kernel: its argument block with the addresses of other tensors."""

from array import array
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from struct import Struct

import torch
from torch import Tensor, get_num_threads

from sigmoid_attention.attention.impl.cpu import abi
from sigmoid_attention.attention.impl.cpu.library import forced
from sigmoid_attention.attention.impl.cpu.ops import argument_block, available
from sigmoid_attention.attention.impl.layout import empty_output, rows_are_contiguous
from sigmoid_attention.attention.problem import Problem

_ADDRESS = Struct("=q")
_OUT, _MASS = abi.ArgumentBlock.out.offset, abi.ArgumentBlock.mass.offset
_LENGTH_K = abi.ArgumentBlock.length_k.offset
# Sizes and strides of a result.
_Form = tuple[tuple[int, ...], tuple[int, ...]]
# The first call with a key is cached, which takes next to no time.
CALLS_BEFORE_CACHING = 1


def environment_key() -> Hashable:
    """What a call depends on beside its arguments."""
    return get_num_threads(), forced()


@dataclass(frozen=True, slots=True)
class CachedCall:
    """A call of the kernel, for any tensors of the same shapes, strides and dtypes."""

    run: Callable[[bytes], None]
    output: _Form
    mass: _Form | None
    block: bytes
    capacity: int
    # The offset of each tensor's address in the block, in the order of the tensors.
    offsets: tuple[int, ...]

    def __call__(self, tensors: tuple[Tensor | None, ...]) -> Tensor | tuple[Tensor, Tensor] | None:
        """The output, with the mass if the call has one.

        None if the length of a sequence is negative or exceeds the capacity.
        """
        query, _, _, lengths, *_ = tensors
        assert query is not None
        out = query.new_empty_strided(*self.output)
        block = bytearray(self.block)
        _ADDRESS.pack_into(block, _OUT, out.data_ptr())
        for offset, tensor in zip(self.offsets, tensors, strict=False):
            if tensor is not None:
                _ADDRESS.pack_into(block, offset, tensor.data_ptr())
        if lengths is not None:
            # The kernel reads this copy: another thread may write to the tensor meanwhile.
            used = array("q", lengths.tolist())
            if used and (min(used) < 0 or max(used) > self.capacity):
                return None
            _ADDRESS.pack_into(block, _LENGTH_K, used.buffer_info()[0])
        if self.mass is None:
            self.run(bytes(block))
            return out
        mass = query.new_empty_strided(*self.mass, dtype=torch.float32)
        _ADDRESS.pack_into(block, _MASS, mass.data_ptr())
        self.run(bytes(block))
        return out, mass


def prepare(
    tensors: tuple[Tensor | None, ...], problem: Problem, with_mass: bool
) -> CachedCall | None:
    """The call for other tensors; None if more of its argument block than addresses may change."""
    if not abi.supports(problem.query.dtype) or not available():
        return None
    slopes, bias, mask = tensors[4:7]
    if any(x is not None and x.dtype != torch.float32 for x in (slopes, bias)):
        return None
    flags = mask is not None and mask.dtype == torch.bool
    if mask is not None and not flags and mask.dtype != torch.float32:
        return None
    rows = (problem.query, problem.key, problem.value)
    if problem.device.type != "cpu" or not all(map(rows_are_contiguous, rows)):
        return None
    out = empty_output(problem.query, problem.value.shape[3])
    mass = empty_output(problem.query, 1, dtype=torch.float32) if with_mass else None
    block = abi.ArgumentBlock
    fields = (block.query, block.key, block.value, block.length_k, block.slopes, block.bias)
    mask_field = block.attend if flags else block.mask
    return CachedCall(
        abi.kernel("sigmoid_attention_forward"),
        (tuple(out.shape), out.stride()),
        None if mass is None else (tuple(mass.shape[:3]), mass.stride()[:3]),
        argument_block(problem, out, mass),
        problem.shape[3],
        tuple(field.offset for field in (*fields, mask_field)),
    )
