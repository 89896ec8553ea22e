"""The work list computed with tensors, for comparison with the kernels of ``schedule.py``.

Shape letters: B batch, H query heads, G key heads, I blocks of rows.
"""

import torch
from torch import Tensor

from sigmoid_attention.attention.impl.experimental.gluon import walk


def visits(
    rows: int,
    columns: int,
    left: int,
    right: int,
    block_rows: int,
    block_columns: int,
    spans: Tensor | None = None,
    span: int = 128,
) -> Tensor:
    """(I, 6), or (B, H, I, 6) with ``spans``: tiles as a row of the list has them behind its block.

    ``spans`` are the plan's ranges, (4, B, H, I), in units of ``span`` rows and columns; a block
    then holds ``span`` rows. Without them every tile needs the full sigmoid.
    """
    device = torch.device("cpu") if spans is None else spans.device
    start = torch.arange(0, rows, block_rows, device=device)
    position = start + columns - rows
    last = (start + block_rows).clamp(max=rows) - 1 + columns - rows
    tiles = -(-columns // block_columns)
    nothing, everything = torch.zeros_like(start), torch.full_like(start, tiles)
    first = inner = nothing
    end = inner_end = everything
    if left >= 0:
        first = ((position - left).clamp(min=0) // block_columns).clamp(max=tiles)
        inner = -(-(last - left).clamp(min=0) // block_columns)
    if right >= 0:
        end = -(-(last + right + 1).clamp(0, columns) // block_columns)
        edge = (position + right + 1).clamp(min=0)
        inner_end = torch.where(edge >= columns, tiles, edge // block_columns)
    full, full_end = nothing, everything
    if spans is not None:
        first, full, full_end, end = _narrowed(first, end, spans * (span // block_columns))
    first = torch.minimum(first, end)
    inner = torch.minimum(torch.maximum(inner, first), end)
    inner_end = torch.minimum(torch.maximum(inner_end, inner), end)
    full = torch.minimum(torch.maximum(full, inner), inner_end)
    full_end = torch.minimum(torch.maximum(full_end, full), inner_end)
    return torch.stack(torch.broadcast_tensors(first, inner, full, full_end, inner_end, end), -1)


def _narrowed(first: Tensor, end: Tensor, ranges: Tensor) -> tuple[Tensor, ...]:
    start, full, full_end, stop = ranges.long()
    end = torch.minimum(end, stop)
    return torch.minimum(torch.maximum(first, start), end), full, full_end, end


def work(visits: Tensor, batch: int, heads: int, group: int) -> Tensor:
    """The list, int32: (items, group, 9) with an item for every block of rows of ``group`` heads.

    ``group`` is 1 in the forward pass, and there an item is one head's; in the backward pass it is
    as many query heads as share a key head.
    """
    blocks = visits.shape[-2]
    visits = visits.expand(batch, heads, blocks, 6)
    place = torch.cartesian_prod(
        *(torch.arange(size, device=visits.device) for size in (batch, heads, blocks))
    ).view(batch, heads, blocks, 3)
    rows = torch.cat([place, visits], -1)
    rows = rows.view(batch, heads // group, group, blocks, 9).transpose(2, 3)
    length = (rows[..., 8] - rows[..., 3]).sum(-1)
    each = torch.arange(batch * (heads // group), device=visits.device)
    each //= -(-walk.TOGETHER.value // blocks)
    # One number to sort by: first the group of heads, then the length, the longest first.
    longest = (rows[..., 8].amax() + 1) * group
    order = (each.view(batch, -1, 1) * longest - length).flatten().argsort(stable=True)
    return rows.reshape(-1, group, 9)[order].int().contiguous()
