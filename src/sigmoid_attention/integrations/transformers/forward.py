"""The operator under transformers' names: what `attn_implementation="sigmoid"` calls.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim, E value dim.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.output_capturing import _active_collector

from sigmoid_attention.attention import sigmoid_attention
from sigmoid_attention.integrations.transformers import biases, paged

# A masked key comes as True or False, as -inf, or as a number so low that a softmax cannot tell:
# -10000 in the oldest models, the dtype's minimum in others. No position bias that was learned
# gets there.
HIDDEN_BELOW = -1e4
# Names under which models pass the logits of their attention sinks.
SINKS = ("s_aux", "sinks")


class AttentionSinks(ValueError):
    """A model has attention sinks, so it cannot run as sigmoid attention."""


def sigmoid_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    cache: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """One attention module's call, as transformers' AttentionInterface makes it.

    Args:
        module: holds the bias as ``sigmoid_bias``; its ``is_causal`` counts where the argument
            is None and there is no mask.
        query: (batch, heads, queries, head_dim). key, value: (batch, key_heads, keys, ...).
        attention_mask: (batch or 1, heads or 1, queries or 1, keys), boolean with True = attend,
            or floating and added; a window is already in it. None for no padding.
        position_bias: (1, heads, queries, keys), added to the logits; it gets its gradient.
        cache: the paged cache of continuous batching.
        kwargs: some models say ``output_attentions`` here, which asks for the weights; what else
            they pass is not needed.

    Returns:
        (batch, queries, heads, value_dim), contiguous, and the weights (batch, heads, queries,
        keys) before dropout, or None.

    Raises:
        ValueError: attention sinks, a mask of another kind, a module without a bias.
    """
    if kwargs:
        refuse_sinks(module, kwargs)
    bias = biases.of(module)
    if not query.dtype == key.dtype == value.dtype:
        # Autocast leaves rotated queries and keys in fp32 beside values of its own dtype.
        query, key = query.to(value.dtype), key.to(value.dtype)
    if cache is not None:
        settings = {"bias": bias, "scale": scaling, "softcap": softcap}
        return paged.attend(module, query, key, value, cache, kwargs, **settings), None
    queries = query.shape[2]
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    causal = queries > 1 and attention_mask is None and bool(is_causal)
    if causal and key.shape[2] > queries:
        # The first tokens of a static cache: there is no mask, and the rest of the cache is empty.
        key, value = key[:, :, :queries], value[:, :, :queries]
        if position_bias is not None:
            position_bias = position_bias[..., :queries]
    mask = position_bias
    if attention_mask is not None:
        check_mask(attention_mask)
        mask = joined(attention_mask, position_bias)
    out_BHQE = sigmoid_attention(
        query, key, value, mask, bias=bias, scale=scaling, is_causal=causal, softcap=softcap,
        enable_gqa=True, dropout_p=dropout,
    )  # fmt: skip
    weights_BHQK = None
    if _weights_wanted(kwargs):
        # Attention is linear in its values: with the identity in their place it is the weights.
        keys = key.shape[2]
        identity_KK = torch.eye(keys, dtype=key.dtype, device=key.device)
        weights_BHQK = sigmoid_attention(
            query, key, identity_KK.expand(*key.shape[:2], keys, keys), mask, bias=bias,
            scale=scaling, is_causal=causal, softcap=softcap, enable_gqa=True,
        )  # fmt: skip
    return out_BHQE.transpose(1, 2).contiguous(), weights_BHQK


def _weights_wanted(kwargs: dict[str, Any]) -> bool:
    """Whether the model was called with ``output_attentions=True``.

    Most models do not tell their attention modules: they collect what those give back.
    """
    collected = _active_collector.get()
    asked = collected is not None and any(name.endswith("attentions") for name in collected)
    return asked or bool(kwargs.get("output_attentions"))


def refuse_sinks(module: nn.Module, kwargs: dict[str, Any]) -> None:
    """A sink is a logit in a softmax's denominator; a sigmoid has no denominator."""
    for name in SINKS:
        if kwargs.get(name) is not None:
            raise AttentionSinks(
                f"{name}: {type(module).__name__} has attention sinks, which mean nothing to a "
                f"sigmoid; this architecture cannot run as sigmoid attention"
            )


def check_mask(mask: object) -> None:
    """A boolean or floating tensor of four dimensions."""
    if not isinstance(mask, Tensor):
        raise ValueError(f"attention_mask: must be a tensor or None, got {type(mask).__name__}")
    if mask.dim() != 4 or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise ValueError(
            f"attention_mask: must be boolean or floating and (batch, heads, queries, keys), "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )


def joined(mask: Tensor, position_bias: Tensor | None) -> Tensor:
    """One mask for the operator: boolean, or added with -inf for every hidden key."""
    if mask.dtype == torch.bool:
        return mask if position_bias is None else position_bias.masked_fill(~mask, float("-inf"))
    hidden = mask.masked_fill(mask <= HIDDEN_BELOW, float("-inf"))
    return hidden if position_bias is None else hidden + position_bias
