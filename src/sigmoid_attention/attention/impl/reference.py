"""The definition of sigmoid attention, in plain PyTorch: the specification of all implementations.

    O_i = sum_j w_ij v_j,   w_ij = sigmoid(u_ij) where key j is visible to query i, else 0
    u_ij = cap(scale * q_i . k_j) + bias_ij + mask_ij - slope_h * |p_i - j|

with cap(x) = softcap * tanh(x / softcap), and p_i the position of query i on the key axis. The
term uses the full distance, since a sigmoid, unlike a softmax, is not invariant to a shift of its
row (Ramapuram et al. 2024, section 4). The code is differentiable to any order and in forward mode,
supports vmap and compiles without graph breaks.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim, E value dim.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sigmoid_attention.attention.autocast import product


class AttentionStatistics(NamedTuple):
    """Sum of the weights, largest weight and number of visible keys of each row, all (B, H, Q).

    The weights are those before dropout. ``largest`` is zero for a row without visible keys.
    """

    mass: Tensor
    largest: Tensor
    visible: Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of logits, bias and weights: never below fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _by_group(rows_BHQE: Tensor, groups: int) -> Tensor:
    """(B, G, R, E), with R the rows of all query heads of a group, which share their keys."""
    batch, heads, queries, dim = rows_BHQE.shape
    return rows_BHQE.reshape(batch, groups, heads // groups * queries, dim)


def scores(query: Tensor, key: Tensor, *, scale: float, softcap: float | None) -> Tensor:
    """cap(scale q.k), (B, H, Q, K); query heads share the keys of their group."""
    # Scaling the queries changes Q x D numbers, scaling the scores would change Q x K.
    scores_BGRK = product(_by_group(query * scale, key.shape[1]), key.mT)
    scores_BHQK = scores_BGRK.reshape(*query.shape[:3], key.shape[2])
    return scores_BHQK if softcap is None else softcap * torch.tanh(scores_BHQK / softcap)


def position_bias(offset_QK: Tensor, alibi_slopes: Tensor, dtype: torch.dtype) -> Tensor:
    """-slope |p_i - j| with the full distance, (B or 1, H, Q, K)."""
    return -alibi_slopes.to(dtype)[..., None, None] * offset_QK.abs().to(dtype)


def logits(
    query: Tensor,
    key: Tensor,
    *,
    scale: float,
    softcap: float | None,
    bias: float | Tensor,
    float_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    offset_QK: Tensor,
) -> Tensor:
    """u_ij of the formula above, (B, H, Q, K), in the dtype of ``query``."""
    logits_BHQK = scores(query, key, scale=scale, softcap=softcap) + bias
    if float_mask is not None:
        logits_BHQK = logits_BHQK + float_mask
    if alibi_slopes is not None:
        logits_BHQK = logits_BHQK + position_bias(offset_QK, alibi_slopes, query.dtype)
    return logits_BHQK


def weights(logits_BHQK: Tensor, visible: Tensor | None) -> Tensor:
    """sigmoid(u), exactly zero where a key is not visible."""
    weights_BHQK = torch.sigmoid(logits_BHQK)
    return weights_BHQK if visible is None else weights_BHQK.masked_fill(~visible, 0.0)


def weighted_sum(weights_BHQK: Tensor, value: Tensor) -> Tensor:
    """sum_j w_ij v_j, (B, H, Q, E)."""
    out_BGRE = product(_by_group(weights_BHQK, value.shape[1]), value)
    return out_BGRE.reshape(*weights_BHQK.shape[:3], value.shape[3])


def attention_weights(
    query: Tensor,
    key: Tensor,
    *,
    scale: float,
    softcap: float | None,
    bias: float | Tensor,
    float_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    offset_QK: Tensor,
    visible: Tensor | None,
) -> Tensor:
    """w_ij of the formula above for validated arguments, (B, H, Q, K), in at least fp32.

    ``visible`` is boolean and broadcastable to (B, H, Q, K); None if every key is visible.
    """
    dtype = compute_dtype(query.dtype)
    return weights(
        logits(
            query.to(dtype),
            key.to(dtype),
            scale=scale,
            softcap=softcap,
            bias=bias.to(dtype) if isinstance(bias, Tensor) else bias,
            float_mask=None if float_mask is None else float_mask.to(dtype),
            alibi_slopes=alibi_slopes,
            offset_QK=offset_QK,
        ),
        visible,
    )


def output(weights_BHQK: Tensor, value: Tensor, dropout_p: float, dtype: torch.dtype) -> Tensor:
    """O_i of the formula above from the weights, (B, H, Q, E), in ``dtype``."""
    if dropout_p > 0:
        weights_BHQK = torch.dropout(weights_BHQK, dropout_p, train=True)
    return weighted_sum(weights_BHQK, value.to(weights_BHQK.dtype)).to(dtype)


def row_statistics(weights_BHQK: Tensor, visible: Tensor | None) -> AttentionStatistics:
    """Mass, largest weight and number of visible keys of every row."""
    keys = weights_BHQK.shape[-1]
    mass = weights_BHQK.sum(-1)
    return AttentionStatistics(
        mass=mass,
        largest=weights_BHQK.amax(-1) if keys > 0 else mass,
        visible=torch.full_like(mass, keys, dtype=torch.int64)
        if visible is None
        else visible.expand(weights_BHQK.shape).sum(-1),
    )
