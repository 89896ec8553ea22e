"""Jacobian bounds of a network at one input, composed from the bound of each layer at its input.

Shape letters: C channels, F hidden channels, N tokens.
"""

import copy
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigmoid_attention.attention import arguments
from sigmoid_attention.nn.attention import Attention
from sigmoid_attention.nn.block import Residual
from sigmoid_attention.nn.feed_forward import GELUFeedForward, SwiGLU
from sigmoid_attention.nn.norm import RMSNorm
from sigmoid_attention.theory.regularity.at_input import attention_bound_at
from sigmoid_attention.theory.regularity.domain import spectral_norm
from sigmoid_attention.theory.regularity.network import (
    LayerBound,
    branches,
    largest_gain,
    unknown,
)


@torch.no_grad()
def network_bound_at(blocks: Iterable[nn.Module], x_NC: Tensor) -> list[LayerBound]:
    r"""A bound on the Jacobian at ``x`` for every residual branch of a stack of blocks.

    As `network_bound`, with the norms, weights and slopes at x, token by token. The bound of
    attention is `attention_bound_at` between its norms. The bound of a feed-forward layer is the
    norm of its matrices times the largest factor between them. The product bounds the Jacobian of
    the stack at x. It does not depend on other inputs, and does not hold for them.

    Args:
        blocks: `Block` modules, in evaluation mode.
        x_NC: N tokens, alone in their batch.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: an unsupported part, which the message names; x of another shape or not finite.

    Example:
        >>> from sigmoid_attention.nn import Attention, Block, SwiGLU
        >>> block = Block(Attention(8, 2, max_seq_len=4), SwiGLU(8, 16))
        >>> [bound.name for bound in network_bound_at([block], torch.ones(4, 8))]
        ['0.attention', '0.feed_forward']
    """
    arguments.tensor("x_NC", x_NC)
    bounds = []
    x = x_NC.detach().cpu().double()
    for name, residual, layer in branches(blocks):
        residual, layer = (copy.deepcopy(part).cpu().double() for part in (residual, layer))
        bound, x = _residual(name, cast(Residual, residual), layer, x)
        bounds.append(bound)
    return bounds


def _residual(
    name: str, residual: Residual, layer: nn.Module, x_NC: Tensor
) -> tuple[LayerBound, Tensor]:
    normed = residual.norm_in(x_NC)
    answer = layer(normed[None])[0]
    before_N = _steepness(residual.norm_in, x_NC)
    behind_N = _steepness(residual.norm_out, answer)
    if isinstance(layer, Attention):
        branch = attention_bound_at(layer, normed, rows_N=behind_N, columns_N=before_N).jacobian
    elif isinstance(layer, SwiGLU):
        branch = float((behind_N * _swiglu(layer, normed) * before_N).max())
    elif isinstance(layer, GELUFeedForward):
        branch = float((behind_N * _gelu(layer, normed) * before_N).max())
    else:
        raise unknown(name, layer)
    branch *= largest_gain(residual.scale)
    summed = x_NC + residual.scale(residual.norm_out(answer))
    steep = float(_steepness(residual.norm_after, summed).max())
    lengths = x_NC.norm(dim=-1)
    bound = LayerBound(
        name, float(lengths.min()), float(lengths.max()), branch, (1 + branch) * steep
    )
    return bound, residual.norm_after(summed)


def _steepness(norm: nn.Module, x_NC: Tensor) -> Tensor:
    """An upper bound on the norm layer's Jacobian norm at every token, (N,)."""
    if isinstance(norm, nn.Identity):
        return torch.ones(len(x_NC), dtype=x_NC.dtype)
    assert isinstance(norm, RMSNorm)
    root_N = (x_NC.square().mean(-1) + norm.eps).sqrt()
    return norm.weight.abs().max() / root_N


def _swiglu(layer: SwiGLU, x_NC: Tensor) -> Tensor:
    gate_NF, up_NF = layer.gate(x_NC), layer.up(x_NC)
    open_NF = torch.sigmoid(gate_NF)
    slope_NF = open_NF * (1 + gate_NF * (1 - open_NF))
    through_gate_N = (slope_NF * up_NF).abs().amax(-1) * spectral_norm(layer.gate.weight)
    through_up_N = F.silu(gate_NF).abs().amax(-1) * spectral_norm(layer.up.weight)
    return spectral_norm(layer.down.weight) * (through_gate_N + through_up_N)


def _gelu(layer: GELUFeedForward, x_NC: Tensor) -> Tensor:
    up_NF = layer.up(x_NC)
    normal = torch.distributions.Normal(0.0, 1.0)
    slope_NF = normal.cdf(up_NF) + up_NF * normal.log_prob(up_NF).exp()
    matrices = spectral_norm(layer.down.weight) * spectral_norm(layer.up.weight)
    return slope_NF.abs().amax(-1) * matrices
