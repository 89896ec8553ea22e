"""Checks of the integration with transformers: no overhead, and generation that is not slower.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from benchmarks.mixtures import Check
from benchmarks.ratios import ratios
from benchmarks.stamp import stamp
from benchmarks.timing import Budget
from sigmoid_attention import NegLogLength, sigmoid_attention
from sigmoid_attention.integrations.transformers import (
    PerHead,
    convert,
    register,
    sigmoid_attention_forward,
)

# SmolLM2-135M, with a number of layers that leaves time for several rounds.
HEADS, KEY_HEADS, HEAD_DIM, LAYERS = 9, 3, 64, 8
THROUGH, DIRECT = "through transformers", "the operator"
OURS, THEIRS = "sigmoid", "sdpa"


@dataclass(frozen=True)
class Scale:
    """How much is measured; `QUICK` shows that it runs, not how fast it is."""

    contexts: tuple[int, ...] = (1024, 4096)
    layers: int = LAYERS
    budget: Budget = field(
        default_factory=lambda: Budget(seconds=40.0, least=9, least_short=9, most=501)
    )


USUAL = Scale()
QUICK = Scale(contexts=(48,), layers=1, budget=Budget(seconds=0.0, least=1, least_short=1, most=1))


def overhead(scale: Scale) -> Iterator[Check]:
    """A call of an attention module, against the operator with the same tensors and layout."""
    register()
    biases = {"a number": NegLogLength(2048), "per head": PerHead(NegLogLength(2048))}
    for keys in scale.contexts:
        for queries in (1, keys):
            for kind, bias in biases.items():
                query, key, value = _tensors(queries, keys)
                module = nn.Module()
                module.is_causal = True  # pyright: ignore[reportArgumentType]
                module_bias = nn.Parameter(bias.start(HEADS)) if isinstance(bias, PerHead) else bias
                module.sigmoid_bias = module_bias  # pyright: ignore[reportArgumentType]
                direct_bias = module_bias
                if isinstance(module_bias, Tensor):
                    direct_bias = module_bias.view(1, -1, 1, 1)
                works = {
                    THROUGH: _through(module, query, key, value),
                    DIRECT: _direct(query, key, value, direct_bias),
                }
                name = f"call, {queries} x {keys}, bias {kind}"
                yield from ratios("overhead", name, works, scale.budget, 1.05)


def _tensors(queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors in the memory order of projections, (B, Q, H, D); a cache has (B, G, K, D)."""
    query = torch.randn(1, queries, HEADS, HEAD_DIM).transpose(1, 2)
    key, value = torch.randn(2, 1, KEY_HEADS, keys, HEAD_DIM).unbind(0)
    return query, key, value


def _through(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Callable[[], Any]:
    return lambda: sigmoid_attention_forward(module, query, key, value, None, scaling=0.125)


def _direct(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | NegLogLength
) -> Callable[[], Any]:
    causal = query.shape[2] > 1

    def call() -> Tensor:
        out = sigmoid_attention(
            query, key, value, bias=bias, scale=0.125, is_causal=causal, enable_gqa=True
        )
        # A layer needs the heads of a token side by side.
        return out.transpose(1, 2).contiguous()

    return call


def generation(scale: Scale) -> Iterator[Check]:
    """A prompt in one pass and one token after it, against the same model with sdpa."""
    for context in scale.contexts:
        per_head = PerHead(NegLogLength(2 * context))
        models = {
            OURS: convert(_llama(scale, context)),
            f"{OURS}, biases per head": convert(_llama(scale, context), bias=per_head),
            THEIRS: _llama(scale, context),
        }
        tokens = torch.arange(context)[None] % models[OURS].config.vocab_size
        for name, work in (("prompt of", _prompt), ("token after", _step)):
            works = {peer: work(model, tokens) for peer, model in models.items()}
            yield from ratios("generation", f"{name} {context}", works, scale.budget, 1.0)


def _llama(scale: Scale, context: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=HEADS * HEAD_DIM,
        intermediate_size=1536,
        num_hidden_layers=scale.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=2 * context,
        tie_word_embeddings=True,
    )
    config._attn_implementation = THEIRS
    return LlamaForCausalLM(config).eval()


def _prompt(model: LlamaForCausalLM, tokens: Tensor) -> Callable[[], Any]:
    return lambda: model(
        input_ids=tokens, **_with(DynamicCache(config=model.config)), logits_to_keep=1
    )


def _with(cache: DynamicCache) -> dict[str, DynamicCache]:
    """The cache under the argument's name in ``forward``, which changed in transformers 5.24."""
    taken = inspect.signature(LlamaForCausalLM.forward).parameters
    return {"cache" if "cache" in taken else "past_key_values": cache}


def _step(model: LlamaForCausalLM, tokens: Tensor) -> Callable[[], Any]:
    """One token; the cache is cropped after it, so that every step has the same length."""
    cache = DynamicCache(config=model.config)
    named = _with(cache)
    model(input_ids=tokens, **named, logits_to_keep=1)

    def step() -> None:
        model(input_ids=tokens[:, :1], **named)
        cache.crop(-1)

    return step


SUITES: dict[str, Callable[[Scale], Iterator[Check]]] = {
    "overhead": overhead,
    "generation": generation,
}


@torch.no_grad()
def checks(only: Sequence[str], scale: Scale) -> Iterator[Check]:
    """The chosen checks, by default all, on as many threads as torch uses."""
    for name in only:
        if name not in SUITES:
            raise ValueError(f"--only must be of {', '.join(SUITES)}, got {name}")
    now = {**stamp(torch.device("cpu")), "threads": torch.get_num_threads()}
    for name in only or SUITES:
        for check in SUITES[name](scale):
            yield replace(check, stamp=now)
