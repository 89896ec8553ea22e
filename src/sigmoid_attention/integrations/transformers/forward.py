"""The function behind `attn_implementation="sigmoid"`: the operator with transformers' arguments.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim, E value dim.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import __version__ as installed
from transformers.utils.output_capturing import _active_collector

from sigmoid_attention.attention import sigmoid_attention
from sigmoid_attention.attention.impl import reference
from sigmoid_attention.integrations.transformers import biases, paged
from sigmoid_attention.integrations.transformers.paged import UnsupportedCall

# A masked key comes as True or False, as -inf, or as a number so low that a softmax cannot tell:
# -10000 in the oldest models, the dtype's minimum in others. No position bias that was learned
# gets there.
HIDDEN_BELOW = -1e4
# A module's attribute with another operator, which a conversion sets while it trains.
OPERATOR = "sigmoid_operator"
# Names under which models pass the logits of their attention sinks.
SINKS = ("s_aux", "sinks")
# What models hand to their attention. A name that is not here may change what attention means.
KNOWN = paged.NAMES | {
    "attention_mask", "scaling", "dropout", "is_causal", "position_bias", "softcap", "cache",
    "sliding_window",  # in the mask, where there is one
    "output_attentions",
    "input_ids", "inputs_embeds", "position_ids", "position_embeddings",
    "cache_position", "use_cache", "seq_idx",
    "output_hidden_states", "output_router_logits", "return_dict",
    "num_items_in_batch", "logits_to_keep", "logits_indices", "logits_processor_args",
    "deterministic",
}  # fmt: skip


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
    """Compute one attention module's call, with the signature of transformers' AttentionInterface.

    Args:
        module: holds the bias as ``sigmoid_bias``; its ``is_causal`` counts where the argument
            is None and there is no mask.
        query: (batch, heads, queries, head_dim). key, value: (batch, key_heads, keys, ...).
        attention_mask: (batch or 1, heads or 1, queries or 1, keys), boolean with True = attend,
            or floating and added; a window is already in it. None for no padding.
        position_bias: (1, heads, queries, keys), added to the logits; it gets its gradient.
        cache: the paged cache of continuous batching, until transformers 5.23.
        kwargs: ``cu_seq_lens_q`` and ``cu_seq_lens_k`` say where packed sequences end, and some
            models say ``output_attentions`` here, which asks for the weights. The rest of what is
            ``KNOWN`` does not concern attention.

    Returns:
        (batch, queries, heads, value_dim), contiguous, and the weights (batch, heads, queries,
        keys) before dropout, or None. The output is made of these weights, so that gradients pass
        through them; that takes the memory of a softmax in plain PyTorch.

    Raises:
        TypeError: a mask that is no tensor.
        ValueError: attention sinks, a mask of an unsupported shape or dtype, a module without a
            bias, an argument or a way of packing that this version does not know.
    """
    if kwargs:
        refuse_unknown(module, kwargs)
    bias = biases.operator_bias(module)
    if not query.dtype == key.dtype == value.dtype:
        # Autocast leaves rotated queries and keys in fp32 beside values of its own dtype.
        query, key = query.to(value.dtype), key.to(value.dtype)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    if cache is not None:
        key, value, kwargs = paged.update_cache(module, key, value, cache, kwargs)
        # It was made without a look at the cache.
        attention_mask = None
    if attention_mask is not None:
        check_mask(attention_mask)
    ends = paged.ends(query, key, kwargs) if kwargs else None
    operator = vars(module).get(OPERATOR, sigmoid_attention)
    wanted = _weights_wanted(module, kwargs)
    if ends is not None:
        if attention_mask is None:
            if operator is not sigmoid_attention:
                raise UnsupportedCall("packed sequences (cu_seq_lens_q): a student has none")
            if wanted or position_bias is not None:
                name = "output_attentions" if wanted else "position_bias"
                raise UnsupportedCall(f"{name}: packed sequences (cu_seq_lens_q) have none")
            return paged.attend(
                query, key, value, ends, bias=bias, scale=scaling, softcap=softcap,
                is_causal=bool(is_causal), window=kwargs.get("sliding_window"), dropout_p=dropout,
            ), None  # fmt: skip
        attention_mask = paged.keep_sequences_apart(ends, attention_mask, query, key)
    queries = query.shape[2]
    causal = queries > 1 and attention_mask is None and bool(is_causal)
    if causal and key.shape[2] > queries:
        # The first tokens of a static cache: there is no mask, and the rest of the cache is empty.
        key, value = key[:, :, :queries], value[:, :, :queries]
        if position_bias is not None:
            position_bias = position_bias[..., :queries]
    mask = position_bias
    if attention_mask is not None:
        mask = joined(attention_mask, position_bias)
    settings: dict[str, Any] = {
        "bias": bias,
        "scale": scaling,
        "is_causal": causal,
        "softcap": softcap,
        "enable_gqa": True,
    }
    if not wanted:
        out_BHQE = operator(query, key, value, mask, dropout_p=dropout, **settings)
        return out_BHQE.transpose(1, 2).contiguous(), None
    # Attention is linear in its values: with the identity in their place it is the weights.
    keys = key.shape[2]
    identity_KK = torch.eye(keys, dtype=key.dtype, device=key.device)
    identity = identity_KK.expand(*key.shape[:2], keys, keys)
    weights_BHQK = operator(query, key, identity, mask, **settings)
    out_BHQE = reference.weighted_sum(F.dropout(weights_BHQK, dropout), value)
    return out_BHQE.transpose(1, 2).contiguous(), weights_BHQK


def _weights_wanted(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether the call or the config has ``output_attentions=True``.

    Most models do not tell their attention modules: they collect what those give back, by hooks.
    """
    if kwargs.get("output_attentions"):
        return True
    if torch.compiler.is_compiling() and not getattr(_active_collector, "compiling", False):
        # A layer that is compiled by itself. No graph can look at the collector, and where there
        # is no hook of transformers, none has to.
        hooks = module._forward_hooks.values()
        if not any(getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks):
            config = getattr(module, "config", None)
            return bool(getattr(config, "output_attentions", False))
    collected = _active_collector.get()
    return collected is not None and any(name.endswith("attentions") for name in collected)


def refuse_unknown(module: nn.Module, kwargs: dict[str, Any]) -> None:
    """Raise for an argument that may change the meaning of attention and is not supported.

    A sink, of all known ones, is a logit in a softmax's denominator; a sigmoid has no denominator.
    """
    for name in kwargs:
        if name in KNOWN or kwargs[name] is None or kwargs[name] is False:
            continue
        kind = type(module).__name__
        if name in SINKS:
            raise UnsupportedCall(
                f"{name}: {kind} has attention sinks, which mean nothing to a sigmoid; this "
                f"architecture cannot run as sigmoid attention"
            )
        raise UnsupportedCall(
            f"{name}: {kind} of transformers {installed} hands this to its attention, and this "
            f"version of sigmoid_attention does not know what it means there"
        )


def check_mask(mask: object) -> None:
    """Validate that the mask is a boolean or floating tensor of four dimensions."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask must be a tensor or None, got {type(mask).__name__}")
    if mask.dim() != 4 or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise ValueError(
            f"attention_mask must be boolean or floating and (batch, heads, queries, keys), "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )


def joined(mask: Tensor, position_bias: Tensor | None) -> Tensor:
    """Combine masks into one: boolean, or added to the logits with -inf for every hidden key."""
    if mask.dtype == torch.bool:
        return mask if position_bias is None else position_bias.masked_fill(~mask, float("-inf"))
    hidden = mask.masked_fill(mask <= HIDDEN_BELOW, float("-inf"))
    return hidden if position_bias is None else hidden + position_bias
