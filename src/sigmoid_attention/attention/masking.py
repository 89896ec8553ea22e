"""Where a query stands on the key axis, and which keys it may see from there.

Shape letters: B batch, H query heads, Q queries, K keys.
"""

import torch
from torch import Tensor

Window = tuple[int, int]

# No sequence is so long.
NO_LIMIT = 2**30


def effective_window(is_causal: bool, window_size: Window) -> Window:
    """Fold causality into the window: a causal query sees nothing to its right.

    A side of NO_LIMIT or more, a usual way to say so, becomes -1: kernels count in 32 bits, and a
    position with such a side added would wrap around.
    """
    left, right = [side if side < NO_LIMIT else -1 for side in window_size]
    return (left, 0) if is_causal else (left, right)


def query_positions(queries: int, keys: int, device: torch.device) -> Tensor:
    """Positions of the queries on the key axis, (Q, 1): the last query stands on the last key."""
    return torch.arange(queries, device=device)[:, None] + (keys - queries)


def offsets(position_Q1: Tensor, keys: int) -> Tensor:
    """Signed distance from each key to each query, (..., Q, K); positive where the key is past."""
    return position_Q1 - torch.arange(keys, device=position_Q1.device)


def in_window(offset_QK: Tensor, window: Window) -> Tensor | None:
    """Which keys lie in the window, as a boolean of the offsets' shape; None where all do."""
    left, right = window
    inside = None
    if left >= 0:
        inside = offset_QK <= left
    if right >= 0:
        ahead = offset_QK >= -right
        inside = ahead if inside is None else inside & ahead
    return inside


def attended(attn_mask: Tensor) -> Tensor:
    """The boolean meaning of a mask: True, or any float but -inf, may be seen."""
    return attn_mask if attn_mask.dtype == torch.bool else attn_mask != float("-inf")


def of_rows(mask: Tensor, rows: slice) -> Tensor:
    """The part of a mask that broadcasts to (..., Q, K) for some of the queries."""
    return mask if mask.dim() < 2 or mask.shape[-2] == 1 else mask[..., rows, :]


def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Conjunction of two masks, of which None means that everything may be seen."""
    if first is None or second is None:
        return second if first is None else first
    return first & second


def window_ends(position_Q1: Tensor, keys: int | Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Where each query's window begins on the key axis, and where it ends, both (..., Q, 1)."""
    left, right = window
    none = torch.zeros_like(position_Q1)
    first = (position_Q1 - left).clamp(min=0) if left >= 0 else none
    stop = none + keys if right < 0 else (position_Q1 + right + 1).clamp(max=keys)
    # A window that lies beside the keys is empty.
    first = first.clamp(max=keys)
    return first, torch.maximum(first, stop)


def counts_in_window(position_Q1: Tensor, keys: int | Tensor, window: Window) -> Tensor:
    """Number of keys in each query's window, (..., Q, 1), without a (Q, K) array."""
    first, stop = window_ends(position_Q1, keys, window)
    return stop - first


def counts_shown(
    attn_mask: Tensor, position_Q1: Tensor, keys: int | Tensor, window: Window
) -> Tensor:
    """Number of keys in each query's window that the mask shows, (..., Q, 1), likewise."""
    mask = attn_mask.view(*(1,) * (2 - attn_mask.dim()), *attn_mask.shape)
    first, stop = window_ends(position_Q1, keys, window)
    if 1 in mask.shape[-2:]:
        return counts_between(mask, first, stop)
    place = torch.arange(mask.shape[-1], device=mask.device)

    def counted(rows: slice) -> Tensor:
        after = place >= first[..., rows, :]
        return (attended(mask[..., rows, :]) & after & (place < stop[..., rows, :])).sum(
            -1, keepdim=True
        )

    numbers = mask.shape[:-2].numel() * mask.shape[-1]
    blocks = blocks_of_rows(mask.shape[-2], numbers, NUMBERS_OF_A_BLOCK)
    return torch.cat([counted(rows) for rows in blocks], -2)


def counts_between(mask: Tensor, first: Tensor, stop: Tensor) -> Tensor:
    """Number of shown keys from ``first`` up to before ``stop``, (..., Q, J), J spans of keys."""
    shown = attended(mask)
    if mask.shape[-1] == 1:
        return (stop - first) * shown
    # Prefix sums turn a count into a difference.
    before = torch.nn.functional.pad(shown.cumsum(-1), (1, 0))
    shape = torch.broadcast_shapes(before.shape[:-1], first.shape[:-1])
    before = before.expand(*shape, -1)
    return before.gather(-1, stop.expand(*shape, -1)) - before.gather(-1, first.expand(*shape, -1))


# Numbers in an array that is formed of some rows of scores, so that it stays near the processor.
NUMBERS_OF_A_BLOCK = 2**20


def blocks_of_rows(rows: int, numbers_a_row: int, most: int) -> list[slice]:
    """All rows, some at a time: as many as hold about ``most`` numbers; one block if they fit."""
    step = max(16, most // max(1, numbers_a_row))
    # A graph is one for all lengths, and fuses what is formed for a row.
    if torch.compiler.is_compiling() or rows <= step:
        return [slice(None)]
    return [slice(start, start + step) for start in range(0, rows, step)]
