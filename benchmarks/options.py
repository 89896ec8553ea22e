"""Checks of what options cost: centred keys in training and in decoding, and the mass of a row.

Each is timed by turns with the same work without the option.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.mixtures import Check
from benchmarks.ratios import ratios
from benchmarks.stamp import stamp
from benchmarks.timing import Budget
from sigmoid_attention import NegLogLength, sigmoid_attention, sigmoid_attention_with_mass
from sigmoid_attention.nn import DecoderLM, ModelConfig
from sigmoid_attention.training.optimizer import TrainConfig, decoupled_adamw

CENTRED, MASS, PLAIN = "centred keys", "mass", "plain"
VOCABULARY = 257


@dataclass(frozen=True)
class Scale:
    """How much is measured; `QUICK` shows that it runs, not how fast it is."""

    length: int = 1024
    contexts: tuple[int, ...] = (1024, 4096)
    layers: int = 4
    budget: Budget = field(
        default_factory=lambda: Budget(seconds=30.0, least=15, least_short=15, most=201)
    )


USUAL = Scale()
QUICK = Scale(
    length=32,
    contexts=(48,),
    layers=1,
    budget=Budget(seconds=0.0, least=1, least_short=1, most=1),
)


def _config(scale: Scale, dim: int, length: int, **changes: Any) -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCABULARY,
        dim=dim,
        layers=scale.layers,
        num_heads=dim // 32,
        max_seq_len=length,
        position="rope",
        norm_placement="hybrid",
        qk_norm="rms",
        learn_bias=True,
        **changes,
    )


def training(scale: Scale) -> Iterator[Check]:
    """A step of training: the loss, its gradients and the optimiser."""
    for dim in (128, 256):
        configs = {
            CENTRED: _config(scale, dim, scale.length, centred_keys=True),
            PLAIN: _config(scale, dim, scale.length),
        }
        works = {name: _training_step(config) for name, config in configs.items()}
        name = f"training step, n = {scale.length}, dim {dim}"
        yield from ratios("training", name, works, scale.budget, 1.05)


def _training_step(config: ModelConfig) -> Callable[[], Any]:
    torch.manual_seed(0)
    model = DecoderLM(config)
    optimizer = decoupled_adamw(model, TrainConfig(steps=1, lr=1e-4))
    tokens = torch.randint(0, VOCABULARY, (2, config.max_seq_len + 1))

    def step() -> None:
        optimizer.zero_grad()
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()

    return step


def decoding(scale: Scale) -> Iterator[Check]:
    """A token after a context, with a cache."""
    for window in (None, scale.contexts[0] // 2):
        for context in scale.contexts:
            changes = {"window_size": window}
            configs = {
                CENTRED: _config(scale, 512, 2 * context, centred_keys=True, **changes),
                PLAIN: _config(scale, 512, 2 * context, **changes),
            }
            works = {name: _decoding_step(config, context) for name, config in configs.items()}
            name = f"decoding step, context {context}, window {window}"
            yield from ratios("decoding", name, works, scale.budget, 1.03)


def _decoding_step(config: ModelConfig, context: int) -> Callable[[], Any]:
    torch.manual_seed(0)
    model = DecoderLM(config).eval()
    cache = model.new_cache(1, 2 * context)
    tokens = torch.arange(context)[None] % VOCABULARY
    with torch.no_grad():
        model(tokens, cache=cache, logits_to_keep=1)

    @torch.no_grad()
    def step() -> None:
        if cache[0].length == 2 * context:
            for layer in cache:
                layer.crop(context)
        model(tokens[:, :1], cache=cache)

    return step


def mass(scale: Scale) -> Iterator[Check]:
    """The operator's forward pass."""
    for dtype in (torch.float32, torch.bfloat16):
        for length in scale.contexts:
            tensors = torch.randn(3, 1, 8, length, 64, dtype=dtype).unbind(0)
            works = {
                MASS: _forward(sigmoid_attention_with_mass, tensors),
                PLAIN: _forward(sigmoid_attention, tensors),
            }
            name = f"forward, {str(dtype).removeprefix('torch.')}, n = {length}"
            yield from ratios("mass", name, works, scale.budget, 1.02)


def _forward(operator: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Callable[[], Any]:
    bias = NegLogLength(tensors[0].shape[2])

    @torch.no_grad()
    def call() -> Any:
        return operator(*tensors, bias=bias, is_causal=True)

    return call


SUITES: dict[str, Callable[[Scale], Iterator[Check]]] = {
    "training": training,
    "decoding": decoding,
    "mass": mass,
}


def checks(only: Sequence[str], scale: Scale) -> Iterator[Check]:
    """The chosen checks, by default all, on as many threads as torch uses."""
    for name in only:
        if name not in SUITES:
            raise ValueError(f"--only must be of {', '.join(SUITES)}, got {name}")
    now = {**stamp(torch.device("cpu")), "threads": torch.get_num_threads()}
    for name in only or SUITES:
        for check in SUITES[name](scale):
            yield replace(check, stamp=now)
