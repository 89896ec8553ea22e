"""Computes the bias of centred keys for the new tokens of a layer that decodes with a cache.

The result is a tensor where possible, because the operator does not validate tensors of known
shapes again. With a bias policy, validation takes a few times as long as attention to a short
cache.

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
from sigmoid_attention.nn.cache import KVCache
from sigmoid_attention.nn.state_bias import StateBias

# Policies that read no logits of a row, and whose results need no check.
_KNOWN = (Constant, HeadValues, NegLogLength, NegLogVisible, NegLogEffectiveLength, StateBias)


def bias_of_new_tokens(
    bias: CentredKeys, query: Tensor, cache: KVCache, left: int, attn_mask: Tensor | None
) -> Tensor | CentredKeys:
    """The bias of the cache's last tokens, the queries of which are ``query`` (B, H, N, D).

    A tensor; or the policy with its means if it has a policy of the caller's.
    """
    inner, strength = bias.bias, bias.strength
    # One call of the kernel, for the step and the policies that layers decode with most.
    if type(inner) is HeadValues and attn_mask is None and isinstance(strength, Tensor):
        step = cache.next_bias(query, query.shape[-1] ** -0.5, left, strength, inner.value)
        if step is not None:
            return step
    # A state's bias is wrapped together with its input.
    if isinstance(inner, BiasPolicy) and not isinstance(getattr(inner, "bias", inner), _KNOWN):
        return CentredKeys(inner, strength, cache.key_means(query.shape[2], left, attn_mask))
    return bias.resolve(CachedRows(query, cache, (left, 0), attn_mask))


@dataclass(frozen=True)
class CachedRows:
    """The :class:`RowContext` of the last N tokens of a cache; the mask is the layer's."""

    query: Tensor
    cache: KVCache
    window: masking.Window
    attn_mask_BK: Tensor | None

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
        positions = masking.query_positions(self.query.shape[2], self.cache.length, self.device)
        if self.attn_mask_BK is None:
            return masking.counts_in_window(positions, self.cache.length, self.window)
        mask = self.attn_mask_BK[:, None, None]
        return masking.counts_shown(mask, positions, self.cache.length, self.window)

    def row_lse(self) -> Tensor:
        raise NotImplementedError("the policies of the short way read no logits of a row")

    def mean_logits(self, means: Tensor | None = None) -> Tensor:
        tokens, (left, _) = self.query.shape[2], self.window
        means = self.cache.key_means(tokens, left, self.attn_mask_BK).to(self.dtype)
        query_BGRND = self.query.to(self.dtype).unflatten(1, (means.shape[1], -1))
        products = (query_BGRND * means[:, :, None]).sum(-1, keepdim=True).flatten(1, 2)
        return products * self.query.shape[-1] ** -0.5

    def aligned(self, rows_BHQ: Tensor) -> Tensor:
        return rows_BHQ

    def resolved(self, bias: Bias) -> float | Tensor:
        bias = bias.resolve(self) if isinstance(bias, BiasPolicy) else bias
        return bias.view(-1, 1, 1) if isinstance(bias, Tensor) and bias.dim() == 1 else bias
