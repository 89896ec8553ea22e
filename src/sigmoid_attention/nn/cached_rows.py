"""The rows of a layer's new tokens, for the bias of centred keys beside a cache.

A decoding step with a tensor as bias takes the operator's short way: calls with tensors of known
shapes are not validated again. With a policy it would take a few times as long as short attention.

Shape letters: B batch, H query heads, G key heads, N new tokens, D head dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.attention import CentredKeys, masking
from sigmoid_attention.attention.bias import (
    Bias,
    BiasPolicy,
    Constant,
    HeadValues,
    NegLogEffectiveLength,
    NegLogLength,
    NegLogVisible,
)
from sigmoid_attention.attention.impl.reference import compute_dtype
from sigmoid_attention.nn.state_bias import StateBias

# Policies that read no logits of a row, and whose results need no check.
_KNOWN = (Constant, HeadValues, NegLogLength, NegLogVisible, NegLogEffectiveLength, StateBias)


def short_way(bias: CentredKeys, rows: "CachedRows") -> Tensor | CentredKeys:
    """The bias as a tensor; the policy with the means if it has a policy of the caller's."""
    inner = bias.bias
    # A state's bias is wrapped together with its input.
    if isinstance(inner, BiasPolicy) and not isinstance(getattr(inner, "bias", inner), _KNOWN):
        return CentredKeys(inner, bias.strength, rows.means_BGND)
    return bias.resolve(rows)


@dataclass(frozen=True)
class CachedRows:
    """The :class:`RowContext` of N new tokens, the last of ``keys``, with the means of their keys.

    ``means_BGND`` are in the precision of the cache's sums, ``attn_mask_BK`` is the layer's.
    """

    query: Tensor
    keys: int
    window: masking.Window
    attn_mask_BK: Tensor | None
    means_BGND: Tensor

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return compute_dtype(self.query.dtype)

    @property
    def device(self) -> torch.device:
        return self.query.device

    def visible_counts(self) -> Tensor:
        positions = masking.query_positions(self.query.shape[2], self.keys, self.device)
        if self.attn_mask_BK is None:
            return masking.counts_in_window(positions, self.keys, self.window)
        mask = self.attn_mask_BK[:, None, None]
        return masking.counts_shown(mask, positions, self.keys, self.window)

    def row_lse(self) -> Tensor:
        raise NotImplementedError("the policies of the short way read no logits of a row")

    def mean_logits(self, means: Tensor | None = None) -> Tensor:
        means = self.means_BGND.to(self.dtype)
        shared_by = self.heads // means.shape[1]
        if shared_by > 1:
            means = means.repeat_interleave(shared_by, 1)
        scale = self.query.shape[-1] ** -0.5
        return (self.query.to(self.dtype) * means).sum(-1, keepdim=True) * scale

    def aligned(self, rows_BHQ: Tensor) -> Tensor:
        return rows_BHQ

    def resolved(self, bias: Bias) -> float | Tensor:
        bias = bias.resolve(self) if isinstance(bias, BiasPolicy) else bias
        return bias.view(-1, 1, 1) if isinstance(bias, Tensor) and bias.dim() == 1 else bias
