"""Sigmoid attention to centred keys in float64, with the whole array of pairs.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim, E value dim.
"""

import math

import torch
from torch import Tensor


def visibility(queries: int, keys: int, window: tuple[int, int]) -> Tensor:
    """True for the keys in each query's window, (Q, K); the last query is at the last key."""
    behind = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)
    left, right = window
    return ((behind <= left) | (left < 0)) & ((behind >= -right) | (right < 0))


def centred_by_hand(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor, *, bias: float, strength: Tensor
) -> Tensor:
    """sum_j sigmoid(q_i·(k_j - λ_h k̄_i) / sqrt D + b) v_j over the visible keys, (B, H, Q, E).

    The key heads may be fewer than the query heads; ``strength`` is (H,).
    """
    share = query.shape[1] // key.shape[1]
    query = query.double()
    key, value = (x.double().repeat_interleave(share, 1) for x in (key, value))
    weights = visible.double().expand(*query.shape[:3], key.shape[2])
    mean = weights @ key / weights.sum(-1, keepdim=True).clamp(min=1)
    centred = key[:, :, None] - strength.double()[:, None, None, None] * mean[..., None, :]
    logits = (query[..., None, :] * centred).sum(-1) / math.sqrt(query.shape[-1]) + bias
    return (logits.sigmoid() * weights) @ value
