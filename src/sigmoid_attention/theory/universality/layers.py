"""The layers of the class T^{4,1,4}: four heads of width one, a ReLU layer of width four.

A network of the class applies residual layers x + layer(x) one after another. A block of the class
is an attention layer followed by a feed-forward layer, and either may have zero weights. Here the
half with zero weights is left out, so each layer counts as one block.

Shape letters: B batch, N tokens, D channels, H heads, Q queries, K keys, F hidden units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigmoid_attention.attention.impl import reference
from sigmoid_attention.nn.attention import Attention

A = TypeVar("A", bound=Attention)

HEADS = 4
HIDDEN = 4


class HeavisideAttention(Attention):
    """An attention layer with 1[u > 0] in place of sigmoid(u): the limit of a steep sigmoid.

    Its logits and sums are those of the operator's definition. A logit of exactly zero has weight 0
    here and 1/2 under any sigmoid; the construction has no such logit.
    """

    def _operate(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: object,
        attn_mask: Tensor | None,
        dropout_p: float,
    ) -> Tensor:
        logits_BHQK = reference.scores(query, key, scale=1.0, softcap=None)
        return reference.weighted_sum((logits_BHQK > 0).to(value.dtype), value)


class ReLUFeedForward(nn.Module):
    """down relu(up x + up_bias) + down_bias, with four hidden units.

    It is made from its tensors directly: ``nn.Linear`` would first draw weights for each of
    thousands of layers.
    """

    def __init__(self, up_FD: Tensor, up_bias_F: Tensor, down_DF: Tensor, down_bias_D: Tensor):
        super().__init__()
        self.up, self.up_bias = nn.Parameter(up_FD), nn.Parameter(up_bias_F)
        self.down, self.down_bias = nn.Parameter(down_DF), nn.Parameter(down_bias_D)

    def forward(self, x_BND: Tensor) -> Tensor:
        hidden_BNF = F.relu(F.linear(x_BND, self.up, self.up_bias))
        return F.linear(hidden_BNF, self.down, self.down_bias)


@dataclass(frozen=True)
class AffineFunction:
    """The function factor * (u . x) + shift of a token x."""

    factor: float = 0.0
    shift: float = 0.0


ONE = AffineFunction(shift=1.0)


@dataclass(frozen=True)
class ConstructedHead:
    """A head of width one: out * sum_j H(query(x_i) key(x_j)) value(x_j)."""

    query: AffineFunction
    key: AffineFunction
    value: AffineFunction
    out: float


@dataclass(frozen=True)
class ReLUUnit:
    """A hidden unit: the token gains relu(up . x + shift) * down."""

    up: Tensor
    shift: float
    down: Tensor


def attention_layer(
    weights_D: Tensor, n: int, heads: Sequence[ConstructedHead]
) -> HeavisideAttention:
    """The attention layer of up to four ``heads``, which adds its output to channel 0.

    Every head reads a token as u . x with u = ``weights_D``. Since u_0 = 1, u . x grows by the
    output.
    """
    layer = _blank(HeavisideAttention, len(weights_D), n)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        for number, head in enumerate(heads):
            parts = (layer.query, head.query), (layer.key, head.key), (layer.value, head.value)
            for linear, affine in parts:
                linear.weight[number] = affine.factor * weights_D
                linear.bias[number] = affine.shift
            layer.output.weight[0, number] = head.out
    return layer


def _blank(kind: type[A], dim: int, n: int) -> A:
    """A layer of the class without parameter values."""
    # On the meta device, since random initial values would advance the caller's generator.
    with torch.device("meta"):
        layer = kind(
            dim,
            HEADS,
            head_dim=1,
            max_seq_len=n,
            bias=0.0,
            is_causal=False,
            linear_bias=True,
            impl="reference",
        )
    return layer.double().to_empty(device="cpu")


def feed_forward_layer(
    dim: int, units: Sequence[ReLUUnit], shift_D: Tensor | None = None
) -> ReLUFeedForward:
    """The feed-forward layer of up to four hidden ``units``, plus ``shift_D`` for every token."""
    up_FD = torch.zeros(HIDDEN, dim, dtype=torch.float64)
    up_bias_F, down_DF = up_FD.new_zeros(HIDDEN), up_FD.new_zeros(dim, HIDDEN)
    for number, unit in enumerate(units):
        up_FD[number], up_bias_F[number], down_DF[:, number] = unit.up, unit.shift, unit.down
    down_bias_D = up_FD.new_zeros(dim) if shift_D is None else shift_D
    return ReLUFeedForward(up_FD, up_bias_F, down_DF, down_bias_D)


class Network(nn.Module):
    """x <- x + layer(x) for each layer in order, on x (B, N, D) in float64."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x_BND: Tensor) -> Tensor:
        for layer in self.layers:
            x_BND = x_BND + layer(x_BND)
        return x_BND

    def with_steepness(self, steepness: float) -> "Network":
        """The network with sigmoid(steepness * u) for every Heaviside step 1[u > 0].

        The factor multiplies the queries' weights, so the result consists of unchanged `Attention`
        layers. Layers without attention are shared with this network.
        """
        return Network([_steep(layer, steepness) for layer in self.layers])


def _steep(layer: nn.Module, steepness: float) -> nn.Module:
    if not isinstance(layer, HeavisideAttention):
        return layer
    steep = _blank(Attention, layer.dim, layer.max_seq_len)
    steep.load_state_dict(layer.state_dict())
    with torch.no_grad():
        steep.query.weight.mul_(steepness)
        steep.query.bias.mul_(steepness)
    return steep


def block_parameters(d: int) -> int:
    """Parameters of one block of T^{4,1,4} on d channels: 26 d + 16.

    Query, key and value 3 * 4 (d + 1), output 5 d; feed-forward 4 (d + 1) + 5 d.

    Example:
        >>> layer = attention_layer(torch.ones(3), 2, []), feed_forward_layer(3, [])
        >>> sum(p.numel() for half in layer for p in half.parameters()) == block_parameters(3)
        True
    """
    return 26 * d + 16
