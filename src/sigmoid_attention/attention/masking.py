"""Positions of queries on the key axis, and visibility of keys by causality, window and mask.

Shape letters: B batch, H query heads, Q queries, K keys.
"""

import torch
from torch import Tensor

Window = tuple[int, int]

# A window limit of this many keys or more means no limit: no sequence is so long.
NO_LIMIT = 2**30


def effective_window(is_causal: bool, window_size: Window) -> Window:
    """The window with causality included: a causal query sees no key to its right.

    A side of NO_LIMIT or more becomes -1, because kernels use 32-bit integers and a position plus
    such a side would overflow.
    """
    left, right = [side if side < NO_LIMIT else -1 for side in window_size]
    return (left, 0) if is_causal else (left, right)


def query_positions(queries: int, keys: int, device: torch.device) -> Tensor:
    """Positions of the queries on the key axis, (Q, 1): the last query is at the last key."""
    return torch.arange(queries, device=device)[:, None] + (keys - queries)


def offsets(position_Q1: Tensor, keys: int) -> Tensor:
    """Query position minus key position, (..., Q, K); positive for keys left of the query."""
    return position_Q1 - torch.arange(keys, device=position_Q1.device)


def in_window(offset_QK: Tensor, window: Window) -> Tensor | None:
    """True for keys in the window, in the shape of the offsets; None without a window."""
    left, right = window
    inside = None
    if left >= 0:
        inside = offset_QK <= left
    if right >= 0:
        ahead = offset_QK >= -right
        inside = ahead if inside is None else inside & ahead
    return inside


def attended(attn_mask: Tensor) -> Tensor:
    """The mask as a boolean: a float mask hides a key by -inf only."""
    return attn_mask if attn_mask.dtype == torch.bool else attn_mask != float("-inf")


def of_rows(mask: Tensor, rows: slice) -> Tensor:
    """The rows of a mask broadcastable to (..., Q, K) that belong to some of the queries."""
    return mask if mask.dim() < 2 or mask.shape[-2] == 1 else mask[..., rows, :]


def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The conjunction of two boolean masks; None hides no key."""
    if first is None or second is None:
        return second if first is None else first
    return first & second


def window_ends(position_Q1: Tensor, keys: int | Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """First key of each query's window and the key after its last, both (..., Q, 1)."""
    left, right = window
    none = torch.zeros_like(position_Q1)
    first = (position_Q1 - left).clamp(min=0) if left >= 0 else none
    stop = none + keys if right < 0 else (position_Q1 + right + 1).clamp(max=keys)
    # A window outside the keys is empty.
    first = first.clamp(max=keys)
    return first, torch.maximum(first, stop)


def counts_in_window(position_Q1: Tensor, keys: int | Tensor, window: Window) -> Tensor:
    """Number of keys in each query's window, (..., Q, 1), without a (Q, K) array."""
    first, stop = window_ends(position_Q1, keys, window)
    return stop - first


def counts_shown(
    attn_mask: Tensor, position_Q1: Tensor, keys: int | Tensor, window: Window
) -> Tensor:
    """Number of keys in each query's window that the mask does not hide, (..., Q, 1)."""
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
    """Number of keys in [first, stop) that the mask does not hide, (..., Q, J), J spans of keys."""
    shown = attended(mask)
    if mask.shape[-1] == 1:
        return (stop - first) * shown
    # Prefix sums turn a count into a difference.
    before = torch.nn.functional.pad(shown.cumsum(-1), (1, 0))
    shape = torch.broadcast_shapes(before.shape[:-1], first.shape[:-1])
    before = before.expand(*shape, -1)
    return before.gather(-1, stop.expand(*shape, -1)) - before.gather(-1, first.expand(*shape, -1))


# Size of an array for a block of rows of scores, small enough for the processor's cache.
NUMBERS_OF_A_BLOCK = 2**20


def blocks_of_rows(rows: int, numbers_a_row: int, most: int) -> list[slice]:
    """Slices that cover all rows, each with about ``most`` numbers; one slice if all fit."""
    step = max(16, most // max(1, numbers_a_row))
    # A compiled graph serves all lengths, and fuses the operations on a row.
    if torch.compiler.is_compiling() or rows <= step:
        return [slice(None)]
    return [slice(start, start + step) for start in range(0, rows, step)]
