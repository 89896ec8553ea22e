"""Tensors between protected pages of memory: an access one byte too far ends the process.

The memory between their elements holds NaN, or numbers that are no valid length or page, and shows
writes.
"""

import ctypes
import math
import mmap
import random

import torch
from torch import Tensor

_PAGE = mmap.PAGESIZE
_NOTHING = {torch.bool: True, torch.int32: 2**31 - 7, torch.int64: 2**62 - 7}


def fenced(count: int, dtype: torch.dtype, at_end: bool) -> Tensor:
    """So many elements with a forbidden page right behind them, or right before them."""
    if count == 0:
        return torch.empty(0, dtype=dtype)
    size = count * dtype.itemsize
    room = -(-size // _PAGE) * _PAGE
    # The tensor keeps it; it goes back to the system when the tensor does.
    memory = mmap.mmap(-1, room + 2 * _PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (start, start + _PAGE + room):
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), ctypes.c_size_t(_PAGE), 0):
            raise OSError("mprotect refused")
    offset = _PAGE + (room - size if at_end else 0)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset)


class Fence:
    """Places tensors, each with an order of its dimensions and gaps that chance decides."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self._placed: list[tuple[Tensor, Tensor]] = []

    def place(self, values: Tensor) -> Tensor:
        """The same numbers, fenced."""
        chance = self.chance
        if values.dim() == 4 and values.is_floating_point() and chance.random() < 0.1:
            # Every copy along one dimension is the same memory.
            dim = chance.randrange(4)
            if values.shape[dim] > 1 and (values == values.narrow(dim, 0, 1)).all():
                return self._spread(values.narrow(dim, 0, 1)).expand(values.shape)
        if values.is_floating_point() and chance.random() < 0.1:
            # What torch shows is the negative of what memory holds.
            return torch._neg_view(self._spread(-values))
        return self._spread(values)

    def _spread(self, values: Tensor) -> Tensor:
        chance, dims = self.chance, list(range(values.dim()))
        if chance.random() < 0.3:
            chance.shuffle(dims)
        steps = [chance.choice((1, 1, 1, 1, 2)) for _ in dims]
        gaps = [chance.choice((0, 0, 0, 1, 5)) for _ in dims]
        strides, run = [0] * len(dims), 1
        for dim in reversed(dims):
            strides[dim] = run * steps[dim]
            run *= max(values.shape[dim] * steps[dim] + gaps[dim], 1)
        ends = [(size - 1) * step for size, step in zip(values.shape, strides, strict=True)]
        count = 1 + sum(ends) if values.numel() else 0
        memory = fenced(count, values.dtype, at_end=chance.random() < 0.75)
        memory.fill_(_NOTHING.get(values.dtype, math.nan))
        placed = memory.as_strided(values.shape, strides)
        placed.copy_(values)
        self._placed.append((memory, memory.clone()))
        return placed

    def untouched(self) -> bool:
        """Whether all memory that was placed holds what it held."""
        return all(
            torch.equal(memory.view(torch.uint8), before.view(torch.uint8))
            for memory, before in self._placed
        )
