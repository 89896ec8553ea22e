"""The random attention layers and inputs of the studies of regularity.

Shape letters: N tokens, C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sigmoid_attention.nn import Attention

KINDS = ("sigmoid", "softmax")


@dataclass(frozen=True)
class DrawnLayers:
    """Attention layers at initialisation, without norms, with equal weights for both activations.

    Args:
        activation: "sigmoid" or "softmax".
        bias: the bias of the sigmoid; None for -log of the number of tokens.
        replicates: the number of layers, each with its own inputs.
    """

    activation: str
    tokens: int
    radius: float
    bias: float | None = None
    dim: int = 8
    num_heads: int = 2
    replicates: int = 12
    seed: int = 0


def layer(setting: DrawnLayers, replicate: int) -> Attention:
    """Layer number ``replicate`` in float64: linear weights have variance 1 / fan_in."""
    rng = generator(setting, replicate, "weights")
    layer = Attention(
        setting.dim,
        setting.num_heads,
        max_seq_len=setting.tokens,
        activation=setting.activation,
        bias=setting.bias,
        is_causal=False,
        impl="reference",
    ).double()
    for part in (layer.query, layer.key, layer.value, layer.output):
        nn.init.normal_(part.weight, std=part.in_features**-0.5, generator=rng)
    return layer.requires_grad_(False)


def tokens_of(setting: DrawnLayers, rng: torch.Generator) -> Tensor:
    """Tokens (N, C) in random directions, all of length ``radius``."""
    x = torch.randn(setting.tokens, setting.dim, generator=rng, dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True) * setting.radius


def generator(setting: DrawnLayers, replicate: int, of: str) -> torch.Generator:
    """The random generator of the "weights" or "tokens" of a replicate, equal for both kinds."""
    stream = ("weights", "tokens").index(of)
    return torch.Generator().manual_seed(2 * (1000 * setting.seed + replicate) + stream)
