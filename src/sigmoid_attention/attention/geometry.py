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


def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Conjunction of two masks, of which None means that everything may be seen."""
    if first is None or second is None:
        return second if first is None else first
    return first & second


def counts_in_window(position_Q1: Tensor, keys: int | Tensor, window: Window) -> Tensor:
    """Number of keys in each query's window, (..., Q, 1), without a (Q, K) array."""
    left, right = window
    first = (position_Q1 - left).clamp(min=0) if left >= 0 else torch.zeros_like(position_Q1)
    last = keys - 1 if right < 0 else (position_Q1 + right).clamp(max=keys - 1)
    return (last - first + 1).clamp(min=0)
