"""Sigmoid attention for the models of transformers, independent of this package, in float64.

Shape letters: B batch, H query heads, Q queries, K keys.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import sdpa_mask

from sigmoid_attention.integrations.transformers import attention_modules

NAME = "oracle"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Scores, softcap, centring, position bias, mask, bias of the head, sigmoid, weighted sum."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1).double() for x in (key, value))
    scores = query.double() @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    products = scores
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if position_bias is not None:
        scores = scores + position_bias
    scores = scores + module.oracle_bias.double()[:, None, None]
    hidden = torch.zeros_like(scores, dtype=torch.bool)
    if attention_mask is None:
        causal = module.is_causal if is_causal is None else is_causal
        queries, keys = scores.shape[-2:]
        if causal:
            assert queries == keys
            hidden = hidden | torch.ones(queries, keys, dtype=torch.bool).triu(1)
    elif attention_mask.dtype == torch.bool:
        hidden = hidden | ~attention_mask
    else:
        hidden = hidden | (attention_mask <= -1e4)
        scores = scores + attention_mask
    if module.oracle_bias_centring is not None:
        seen = (~hidden).sum(-1, keepdim=True).clamp(min=1)
        mean = products.masked_fill(hidden, 0).sum(-1, keepdim=True) / seen
        scores = scores - module.oracle_bias_centring.double()[:, None, None] * mean
    scores = scores.masked_fill(hidden, -torch.inf)
    # The weights that are returned are those that the output is made of, for a loss of both.
    weights = scores.sigmoid().to(query.dtype)
    out = (weights.double() @ value).transpose(1, 2).to(query.dtype)
    return out.contiguous(), weights


def whole_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask in full, where transformers would leave it out."""
    kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(*args, **kwargs)


def twin(parent: PreTrainedModel, converted: PreTrainedModel) -> PreTrainedModel:
    """A copy of the softmax parent that attends by this file, with the converted model's biases.

    The bias and the strength of centring of each module are parameters of the copy.
    """
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, whole_mask)
    model = copy.deepcopy(parent)
    # Not `set_attn_implementation`: until transformers 5.17 at least it forgets T5's stacks.
    for module in model.modules():
        if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
            config._attn_implementation = NAME
    for name, module in attention_modules(converted).items():
        other, strength = model.get_submodule(name), getattr(module, "sigmoid_bias_centring", None)
        other.oracle_bias = nn.Parameter(module.sigmoid_bias.detach().clone())
        other.oracle_bias_centring = (
            None if strength is None else nn.Parameter(strength.detach().clone())
        )
    return model
