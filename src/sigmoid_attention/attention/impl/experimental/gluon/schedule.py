"""The list of work of a planned call: its items, the longest first, and the tiles of each.

A row of the list is (batch, head, block, first, inner, full, full_end, inner_end, end), as
``walk.py`` reads it: a block of rows, and the range of tiles of columns that it visits. In the
forward pass rows are queries and columns are keys. The backward pass exchanges the two, and mirrors
the window.

Rows and columns past the last one need no mask: they are loaded as zeros and not stored.

The list is divided into groups of heads, and each group starts with its longest items. The thread
blocks take items in alternating order, so that all have about the same amount of work. A group is
so small that the position of an item is listed by counting the longer items in parallel.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigmoid_attention.attention.impl.experimental.gluon import walk
from sigmoid_attention.attention.impl.triton.call import cdiv
from sigmoid_attention.attention.impl.triton.launch import launch

_NUMBERS = ("items", "group", "blocks", "rows", "columns", "before", "after", "together")
# Items of a program, and the number of items that it compares them with at a time.
_ITEMS, _OTHERS = 64, 256


def work(
    spans: Tensor,
    rows: int,
    columns: int,
    window: tuple[int, int],
    tile: int,
    group: int,
    span: int,
) -> Tensor:
    """The list, int32: (items, group, 9) with an item for every block of rows of ``group`` heads.

    Args:
        spans: the plan's ranges, (4, B, H, I), in units of ``span`` rows and columns.
        window: how far a row sees to the left and to the right, -1 for no limit.
        tile: columns of a tile. Blocks hold ``span`` rows.
        group: 1 in the forward pass; in the backward pass as many query heads as share a key head.
    """
    _, batch, heads, blocks = spans.shape
    items = batch * heads // group * blocks
    together = cdiv(walk.TOGETHER.value, blocks)
    length = torch.empty(items, dtype=torch.int32, device=spans.device)
    listed = torch.empty((items, group, 9), dtype=torch.int32, device=spans.device)
    before, after = (walk.UNLIMITED.value if side < 0 else side for side in window)
    numbers = items, group, blocks, rows, columns, before, after, together
    constants = {"SPAN": span, "TILE": tile, "ITEMS": _ITEMS, "num_warps": 4}
    launch(_count_tiles, cdiv(items, _ITEMS), spans, length, *numbers, **constants)
    launch(
        _write_longest_first, cdiv(items, together * blocks) * cdiv(together * blocks, _ITEMS),
        spans, length, listed, heads, *numbers, OTHERS=_OTHERS, **constants,
    )  # fmt: skip
    return listed


@triton.jit
def _visited_tiles(
    spans, step, head, block, exists, blocks, rows, columns, before, after,
    SPAN: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The tile ranges of blocks: the tiles in the window that the plan has kept.

    Computed as in ``walk.visited_tiles``. That is Gluon, which Triton cannot call.
    """
    position = block * SPAN + columns - rows
    last = tl.minimum(block * SPAN + SPAN, rows) - 1 + columns - rows
    every = tl.cdiv(columns, TILE)
    end = tl.cdiv(tl.minimum(tl.maximum(last + after + 1, 0), columns), TILE)
    first = tl.maximum(position - before, 0) // TILE
    inner = tl.cdiv(tl.maximum(last - before, 0), TILE)
    edge = tl.maximum(position + after + 1, 0)
    inner_end = tl.where(edge >= columns, every, edge // TILE)
    address = spans + head.to(tl.int64) * blocks + block
    start = tl.load(address, mask=exists, other=0) * (SPAN // TILE)
    full = tl.load(address + step, mask=exists, other=0) * (SPAN // TILE)
    full_end = tl.load(address + 2 * step, mask=exists, other=0) * (SPAN // TILE)
    stop = tl.load(address + 3 * step, mask=exists, other=0) * (SPAN // TILE)
    end = tl.minimum(end, stop)
    first = tl.minimum(tl.maximum(first, start), end)
    inner = tl.minimum(tl.maximum(inner, first), end)
    inner_end = tl.minimum(tl.maximum(inner_end, inner), end)
    full = tl.minimum(tl.maximum(full, inner), inner_end)
    full_end = tl.minimum(tl.maximum(full_end, full), inner_end)
    return first, inner, full, full_end, inner_end, end


@triton.jit(do_not_specialize=_NUMBERS)
def _count_tiles(
    spans, length, items, group, blocks, rows, columns, before, after, together,
    SPAN: tl.constexpr, TILE: tl.constexpr, ITEMS: tl.constexpr,
):  # fmt: skip
    """The number of tiles of each item, (items,)."""
    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    exists = item < items
    head, block = item // blocks * group, item % blocks
    step = (items * group).to(tl.int64)
    total = tl.zeros((ITEMS,), tl.int32)
    for member in range(group):
        first, _, _, _, _, end = _visited_tiles(
            spans, step, head + member, block, exists, blocks, rows, columns, before, after,
            SPAN, TILE,
        )  # fmt: skip
        total += end - first
    tl.store(length + item, total, mask=exists)


@triton.jit(do_not_specialize=("heads", *_NUMBERS))
def _write_longest_first(
    spans, length, work, heads, items, group, blocks, rows, columns, before, after, together,
    SPAN: tl.constexpr, TILE: tl.constexpr, ITEMS: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """Write each item's rows behind those of all longer items of its group of heads."""
    parts = tl.cdiv(together * blocks, ITEMS)
    begin = tl.program_id(0) // parts * (together * blocks)
    stop = tl.minimum(begin + together * blocks, items)
    item = begin + tl.program_id(0) % parts * ITEMS + tl.arange(0, ITEMS)
    exists = item < stop
    length_here = tl.load(length + item, mask=exists, other=0)[:, None]
    position = begin + tl.zeros((ITEMS,), tl.int32)
    for start in range(begin, stop, OTHERS):
        other = start + tl.arange(0, OTHERS)
        theirs = tl.load(length + other, mask=other < stop, other=-1)[None, :]
        earlier = (theirs > length_here) | (
            (theirs == length_here) & (other[None, :] < item[:, None])
        )
        position += tl.sum(earlier.to(tl.int32), 1)
    head, block = item // blocks * group, item % blocks
    step = (items * group).to(tl.int64)
    for member in range(group):
        first, inner, full, full_end, inner_end, end = _visited_tiles(
            spans, step, head + member, block, exists, blocks, rows, columns, before, after,
            SPAN, TILE,
        )  # fmt: skip
        row = work + (position.to(tl.int64) * group + member) * 9
        tl.store(row, head // heads, mask=exists)
        tl.store(row + 1, head % heads + member, mask=exists)
        tl.store(row + 2, block, mask=exists)
        tl.store(row + 3, first, mask=exists)
        tl.store(row + 4, inner, mask=exists)
        tl.store(row + 5, full, mask=exists)
        tl.store(row + 6, full_end, mask=exists)
        tl.store(row + 7, inner_end, mask=exists)
        tl.store(row + 8, end, mask=exists)
