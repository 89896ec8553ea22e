"""Softmax attention with the arguments of the sigmoid operator, for comparisons.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim, E value dim.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigmoid_attention.attention import arguments, autocast, masking, validation
from sigmoid_attention.attention.impl import reference
from sigmoid_attention.attention.impl.reference import AttentionStatistics
from sigmoid_attention.attention.torch_function import overridable

NOT_VISIBLE = float("-inf")


@overridable
def softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    enable_gqa: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    r"""Softmax attention with the arguments and the output shape of `sigmoid_attention`.

    .. math::
        O_i = \sum_j \frac{e^{u_{ij}}}{\sum_k e^{u_{ik}}} v_j

    over the visible keys, with the logits u, the shapes and the bottom-right alignment of
    `sigmoid_attention`, without the bias: a constant added to a row does not change a softmax. A
    query that sees no key gets exact zeros, where a plain softmax is undefined. Torch's
    ``scaled_dot_product_attention`` computes the result, on its fast causal path where no mask is
    needed. ``softcap`` requires the full array of weights. `softmax_statistics` returns the
    statistics of the weights. Raises ``ValueError`` for an argument that `sigmoid_attention`
    would refuse.

    Example:
        >>> q = k = v = torch.randn(1, 2, 3, 8)
        >>> softmax_attention(q, k, v, is_causal=True)[0, 0, 0].equal(v[0, 0, 0])
        True
    """
    out, _ = _attend(
        query,
        key,
        value,
        attn_mask,
        scale=scale,
        is_causal=is_causal,
        window_size=window_size,
        alibi_slopes=alibi_slopes,
        softcap=softcap,
        enable_gqa=enable_gqa,
        dropout_p=dropout_p,
    )
    return out


@overridable
def softmax_statistics(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
) -> AttentionStatistics:
    """The statistics of each row's weights before dropout, of the same arguments.

    Example:
        >>> q = k = v = torch.randn(1, 2, 3, 8)
        >>> softmax_statistics(q, k, v, is_causal=True).visible[0, 0].tolist()
        [1, 2, 3]
    """
    _, statistics = _attend(query, key, value, attn_mask, **options, with_statistics=True)
    assert statistics is not None
    return statistics


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    enable_gqa: bool = False,
    dropout_p: float = 0.0,
    with_statistics: bool = False,
) -> tuple[Tensor, AttentionStatistics | None]:
    names = ("query", "key", "value")
    query, key, value = validation.same_kind(query, key, value, names)
    validation.dense_shapes(query, key, value, names)
    validation.head_groups(query.shape[1], key.shape[1], enable_gqa)
    batch, heads, queries, head_dim = query.shape
    keys = key.shape[2]
    factor, softcap, window = validation.logit_options(
        head_dim,
        scale=scale,
        softcap=softcap,
        is_causal=is_causal,
        window_size=window_size,
        dropout_p=dropout_p,
    )
    # Equal to torch's default to the last digit.
    scale = 1 / math.sqrt(head_dim) if scale is None else factor
    validation.mask(attn_mask, (batch, heads, queries, keys), query.device)
    validation.slopes(alibi_slopes, batch, heads, query.device)
    formed = with_statistics or softcap is not None
    enable_gqa, dropout_p = bool(enable_gqa), arguments.scalar(dropout_p)
    if query.device.type == "cpu":
        # Torch would form the weights here too, by products whose gradients autocast rounds.
        learned = _learned(attn_mask) or _learned(alibi_slopes)
        formed = formed or dropout_p > 0 or learned or query.shape[3] != value.shape[3]
    causal = window == (-1, 0)
    # One query at the end of the keys sees all of them, and so needs no causal mask.
    unmasked = window == (-1, -1) or (causal and queries in (1, keys))
    if unmasked and attn_mask is None and alibi_slopes is None and not formed:
        with autocast.off(query.device):
            out = F.scaled_dot_product_attention(
                query,
                key,
                value,
                scale=scale,
                is_causal=causal and queries > 1,
                enable_gqa=enable_gqa,
                dropout_p=dropout_p,
            )
        return out, None

    offset_QK = masking.offsets(masking.query_positions(queries, keys, query.device), keys)
    visible = masking.in_window(offset_QK, window)
    float_mask = None
    if attn_mask is not None:
        visible = masking.both(visible, masking.attended(attn_mask))
        float_mask = None if attn_mask.dtype == torch.bool else attn_mask
    if formed:
        return _formed(
            query,
            key,
            value,
            scale=scale,
            softcap=softcap,
            float_mask=float_mask,
            alibi_slopes=alibi_slopes,
            offset_QK=offset_QK,
            visible=visible,
            dropout_p=dropout_p,
        )
    additive = float_mask
    if alibi_slopes is not None:
        slope_term = reference.position_bias(offset_QK, alibi_slopes, torch.float32)
        additive = slope_term if additive is None else additive + slope_term
    with autocast.off(query.device):
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=_sdpa_mask(additive, visible, query.dtype),
            scale=scale,
            enable_gqa=enable_gqa,
            dropout_p=dropout_p,
        )
    if visible is not None:
        out = out.masked_fill(~visible.any(-1, keepdim=True), 0.0)
    return out, None


def _learned(added: Tensor | None) -> bool:
    return added is not None and added.requires_grad and torch.is_grad_enabled()


def _sdpa_mask(
    additive: Tensor | None, visible: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    """The combination of both masks; a row without a visible key gets all keys instead.

    The output of such a row depends on the kernel. A NaN there would reach the gradients of every
    key, even if the row is overwritten afterwards.
    """
    mask = additive
    if visible is not None:
        closed = ~visible.any(-1, keepdim=True)
        if additive is None:
            mask = visible | closed
        else:
            mask = additive.masked_fill(~visible, NOT_VISIBLE).masked_fill(closed, 0.0)
    if mask is None:
        return None
    # Torch's fused kernels take a mask of four dimensions, a float one in the query's dtype only.
    mask = mask.view((1,) * (4 - mask.dim()) + tuple(mask.shape))
    return mask if mask.dtype == torch.bool else mask.to(dtype)


def _formed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    softcap: float | None,
    float_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    offset_QK: Tensor,
    visible: Tensor | None,
    dropout_p: float,
) -> tuple[Tensor, AttentionStatistics]:
    """Attention through an explicit (B, H, Q, K) array of weights, in fp32 or better."""
    dtype = reference.compute_dtype(query.dtype)
    logits_BHQK = reference.logits(
        query.to(dtype),
        key.to(dtype),
        scale=scale,
        softcap=softcap,
        bias=0.0,
        float_mask=None if float_mask is None else float_mask.to(dtype),
        alibi_slopes=alibi_slopes,
        offset_QK=offset_QK,
    )
    if visible is None:
        weights_BHQK = logits_BHQK.softmax(-1)
    else:
        closed = ~visible.any(-1, keepdim=True)
        logits_BHQK = logits_BHQK.masked_fill(~visible, NOT_VISIBLE).masked_fill(closed, 0.0)
        weights_BHQK = logits_BHQK.softmax(-1).masked_fill(~visible, 0.0)
    dropped = torch.dropout(weights_BHQK, dropout_p, train=True) if dropout_p > 0 else weights_BHQK
    out = reference.weighted_sum(dropped, value.to(dtype)).to(query.dtype)
    return out, reference.row_statistics(weights_BHQK, visible)
