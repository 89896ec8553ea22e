"""Greedy or sampled text of a decoder, with a cache, for prompts of unequal length.

Shape letters: B batch, N prompt tokens, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sigmoid_attention.attention import arguments
from sigmoid_attention.nn.models.decoder import DecoderLM
from sigmoid_attention.nn.sizes import (
    number_from_zero,
    positive_number,
    positive_whole,
    whole_between,
)


def _check_prompt(model: DecoderLM, prompt: Tensor, attn_mask: Tensor | None) -> None:
    arguments.dense("prompt", prompt)
    if prompt.dim() != 2 or prompt.numel() == 0 or prompt.dtype != torch.int64:
        raise ValueError(
            f"prompt must be int64 of shape (batch, tokens) with a token or more in each row, "
            f"got {prompt.dtype} of shape {tuple(prompt.shape)}"
        )
    smallest, largest = int(prompt.min()), int(prompt.max())
    if smallest < 0 or largest >= model.config.vocab_size:
        raise ValueError(
            f"prompt: tokens must be 0 to {model.config.vocab_size - 1}, "
            f"got {smallest if smallest < 0 else largest}"
        )
    if attn_mask is None:
        return
    arguments.dense("attn_mask", attn_mask)
    if attn_mask.dtype != torch.bool or attn_mask.shape != prompt.shape:
        raise ValueError(
            f"attn_mask must be boolean of the prompt's shape {tuple(prompt.shape)}, "
            f"got {attn_mask.dtype} of shape {tuple(attn_mask.shape)}"
        )
    if attn_mask.device != prompt.device:
        raise ValueError(
            f"attn_mask must be on the prompt's device, got {attn_mask.device} and {prompt.device}"
        )
    real = attn_mask.long()
    if not attn_mask[:, -1].all() or (real.diff(dim=-1) < 0).any():
        raise ValueError("attn_mask: padding must stand on the left, real tokens to its right")


def _check_length(model: DecoderLM, prompt: Tensor, max_new_tokens: int) -> int:
    new = positive_whole("max_new_tokens", max_new_tokens)
    longest = model.position.max_length
    if longest is not None and prompt.shape[1] + new > longest:
        raise ValueError(
            f"max_new_tokens: the learned position table ends at {longest} tokens, "
            f"got a prompt of {prompt.shape[1]} and {new} new ones"
        )
    return new


def _check_choice(
    temperature: float, top_p: float, generator: torch.Generator | None
) -> tuple[float, float]:
    temperature = number_from_zero("temperature", temperature, "0 (greedy) or more, and finite")
    if 0 < temperature < arguments.SMALLEST:
        raise ValueError(
            f"temperature must be 0 (greedy) or {arguments.SMALLEST} or more, got {temperature}"
        )
    top_p = positive_number("top_p", top_p, "above 0 and at most 1")
    if top_p > 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {arguments.shown(top_p)}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator or None, got {arguments.shown(generator)}"
        )
    return temperature, top_p


def _check_stop(stop_token: int | None, vocab_size: int) -> int | None:
    if stop_token is None:
        return None
    largest = vocab_size - 1
    wanted = f"a whole number of 0 to {largest}, or None"
    return whole_between("stop_token", stop_token, 0, largest, wanted)


def _choose(
    logits_BV: Tensor, temperature: float, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """One token a row, (B, 1)."""
    if temperature == 0:
        return logits_BV.argmax(-1, keepdim=True)
    # Subtracting the largest logit changes no probability, and avoids overflow at low temperature.
    below_BV = logits_BV.float() - logits_BV.float().amax(-1, keepdim=True)
    probability_BV = (below_BV / temperature).softmax(-1)
    descending_BV, order_BV = probability_BV.sort(-1, descending=True)
    # The nucleus: the fewest tokens that reach top_p, with the token that crosses it.
    before_BV = descending_BV.cumsum(-1) - descending_BV
    outside_BV = before_BV >= top_p
    # The likeliest token stays, also where top_p is below the smallest float32.
    outside_BV[:, 0] = False
    nucleus_BV = descending_BV.masked_fill(outside_BV, 0.0)
    rank_B1 = torch.multinomial(nucleus_BV, 1, generator=generator)
    return order_BV.gather(-1, rank_B1)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode; afterwards restore the mode of each module."""
    training = [module for module in model.modules() if module.training]
    try:
        if training:
            model.eval()
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def generate(
    model: DecoderLM,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    attn_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    stop_token: int | None = None,
) -> Tensor:
    """Continue prompts (B, N) by up to ``max_new_tokens`` tokens each and return (B, N + new).

    ``temperature`` 0 takes the likeliest token; above, tokens are drawn from
    softmax(logits / temperature), cut to the likeliest that reach ``top_p`` together (Holtzman et
    al. 2020). Shorter prompts are padded on the left with any token, which is False in
    ``attn_mask`` (B, N). A row that has produced ``stop_token`` repeats it, and generation
    ends when every row has. A model in training mode is put in evaluation mode for the call, so
    threads may share a model only if it is in evaluation mode already. Raises ``ValueError`` for
    values outside these ranges, and where a learned position table ends first.

    Example:
        >>> from sigmoid_attention.nn import PRESETS
        >>> model, prompt = DecoderLM(PRESETS["tiny"]), torch.tensor([[1, 2, 3]])
        >>> generate(model, prompt, max_new_tokens=4).shape
        torch.Size([1, 7])
    """
    _check_prompt(model, prompt, attn_mask)
    max_new_tokens = _check_length(model, prompt, max_new_tokens)
    temperature, top_p = _check_choice(temperature, top_p, generator)
    stop_token = _check_stop(stop_token, model.config.vocab_size)
    batch, prompt_length = prompt.shape
    with _evaluating(model):
        cache = model.new_cache(batch, prompt_length + max_new_tokens)
        tokens, unread, mask = prompt, prompt, attn_mask
        stopped_B1 = torch.zeros(batch, 1, dtype=torch.bool, device=prompt.device)
        for _ in range(max_new_tokens):
            # The model is called as a module, since offloading and sharding act on that call.
            logits = model(unread, cache=cache, attn_mask=mask, logits_to_keep=1)
            unread = _choose(logits[:, -1], temperature, top_p, generator)
            if stop_token is not None:
                unread = unread.masked_fill(stopped_B1, stop_token)
                stopped_B1 = stopped_B1 | (unread == stop_token)
            tokens = torch.cat([tokens, unread], -1)
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(batch, 1)], -1)
            if stop_token is not None and bool(stopped_B1.all()):
                break
    return tokens
