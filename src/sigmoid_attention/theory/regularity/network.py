"""Jacobian bounds of a network, composed from norms, feed-forward layers and residual branches.

Shape letters: C channels, F hidden channels, N tokens.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sigmoid_attention.attention import arguments
from sigmoid_attention.nn.attention import Attention
from sigmoid_attention.nn.block import Block, Residual
from sigmoid_attention.nn.feed_forward import GELUFeedForward, SwiGLU
from sigmoid_attention.nn.norm import LayerScale, RMSNorm
from sigmoid_attention.theory.regularity.attention import attention_bound
from sigmoid_attention.theory.regularity.domain import Ball, Domain, spectral_norm

# The largest slopes of silu and of gelu, 1.09984 and 1.12904, rounded up.
SILU_SLOPE, GELU_SLOPE = 1.0999, 1.1291


@dataclass(frozen=True)
class LayerBound:
    """One residual branch of a network: the norms of its input, and bounds of branch and sum."""

    name: str
    least: float
    most: float
    branch: float
    jacobian: float


def network_bound(blocks: Iterable[nn.Module], domain: Domain, tokens: int) -> list[LayerBound]:
    r"""A bound for every residual branch of a stack of blocks; their product bounds the stack.

    A branch :math:`x + s\,f(\mathrm{norm}(x))` has a Jacobian of norm at most
    :math:`1 + |s| L_f L_{\mathrm{norm}}`, with each factor taken on the set of its inputs. A root
    mean square norm divides by :math:`\rho = (|x|^2 / C + \epsilon)^{1/2}`. Its Jacobian is the
    gain times a projection over :math:`\rho`, at most :math:`\max|g| / \rho` for the least
    :math:`|x|`. Its output has norm at most :math:`\max|g| \min(C^{1/2}, |x| / \epsilon^{1/2})`.
    With r the reach of the branch, the norm of a token of the sum lies between the least input norm
    minus r and the largest plus r. Once the least norm is zero, the Jacobian norm of a norm layer
    may be :math:`\epsilon^{-1/2}`: the bound of a deep network on a whole ball is then very loose.

    Args:
        blocks: `Block` modules, in evaluation mode, such as ``model.blocks``.
        domain: the set of the tokens of the first input.
        tokens: N.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: an unsupported part; the message names it.

    Example:
        >>> from sigmoid_attention.nn import Attention, Block, SwiGLU
        >>> from sigmoid_attention.theory.regularity import Ball
        >>> block = Block(Attention(8, 2, max_seq_len=4), SwiGLU(8, 16))
        >>> bounds = network_bound([block], Ball(3.0, lower=2.0), tokens=4)
        >>> [bound.name for bound in bounds]
        ['0.attention', '0.feed_forward']
    """
    arguments.instance("domain", domain, Domain, "a Domain, such as a Ball or a Box")
    bounds = []
    for name, residual, layer in branches(blocks):
        bound, domain = _residual(name, residual, layer, domain, tokens)
        bounds.append(bound)
    return bounds


def branches(blocks: Iterable[nn.Module]) -> Iterator[tuple[str, Residual, nn.Module]]:
    """The residual branches of a stack in order: the name, the branch and its layer.

    Raises:
        TypeError: a module that is no `Block`.
    """
    arguments.instance("blocks", blocks, Iterable, "an iterable of Block modules")
    for index, block in enumerate(blocks):
        if not isinstance(block, Block):
            raise TypeError(f"block {index}: {type(block).__name__} is not a part with a bound")
        yield f"{index}.attention", block.attention_residual, block.attention
        yield f"{index}.feed_forward", block.feed_forward_residual, block.feed_forward


def composed(bounds: Sequence[LayerBound]) -> float:
    """The product of the bounds, which bounds their composition.

    Example:
        >>> composed([LayerBound("0.attention", 0.0, 1.0, 1.0, 2.0)] * 3)
        8.0
    """
    return math.prod(bound.jacobian for bound in bounds)


def _residual(
    name: str, residual: Residual, layer: nn.Module, domain: Domain, tokens: int
) -> tuple[LayerBound, Domain]:
    inner, steep = _normed(residual.norm_in, domain)
    reach, branch = _layer(name, layer, inner, tokens)
    branch *= steep
    after, steep = _normed(residual.norm_out, Ball(max(reach, 1e-300)))
    scale = largest_gain(residual.scale)
    reach, branch = scale * after.upper, scale * branch * steep
    most = domain.upper + reach
    summed = Ball(most, max(domain.lower - reach, 0.0))
    out, steep = _normed(residual.norm_after, summed)
    bound = LayerBound(name, domain.lower, domain.upper, branch, (1 + branch) * steep)
    return bound, out


def _normed(norm: nn.Module, domain: Domain) -> tuple[Domain, float]:
    """The set after a norm, and a bound on the norm's Jacobian on the set before."""
    if isinstance(norm, nn.Identity):
        return domain, 1.0
    assert isinstance(norm, RMSNorm)
    gain = norm.weight.detach().abs().double()
    most, least = float(gain.max()), float(gain.min())

    def length(x: float) -> float:
        """The set and the bound for x divided by its root mean square."""
        return x / (x * x / len(gain) + norm.eps) ** 0.5

    root = (domain.lower**2 / len(gain) + norm.eps) ** 0.5
    upper = most * length(domain.upper)
    return Ball(max(upper, 1e-300), min(least * length(domain.lower), upper)), most / root


def largest_gain(scale: nn.Module) -> float:
    """The largest factor of a LayerScale, one where there is none."""
    return float(scale.gamma.detach().abs().max()) if isinstance(scale, LayerScale) else 1.0


def _layer(name: str, layer: nn.Module, domain: Domain, tokens: int) -> tuple[float, float]:
    """Bounds on the output norm and on the Jacobian norm of a branch's layer."""
    if isinstance(layer, Attention):
        bound = attention_bound(layer, domain, tokens)
        return bound.reach, bound.jacobian
    rule = FEED_FORWARD_BOUNDS.get(type(layer))
    if rule is None:
        raise unknown(name, layer)
    return rule(layer, domain)


def unknown(name: str, layer: nn.Module) -> ValueError:
    """The error for a layer without a rule."""
    known = ", ".join(kind.__name__ for kind in (Attention, *FEED_FORWARD_BOUNDS))
    return ValueError(f"{name}: {type(layer).__name__} has no bound here; {known} have")


# Feed-forward layers ---------------------------------------------------------------------------


def _swiglu(layer: nn.Module, domain: Domain) -> tuple[float, float]:
    """silu'(g) u dg + silu(g) du, with |silu(g)| <= |g| and each channel's own largest |g|, |u|."""
    assert isinstance(layer, SwiGLU)
    gate, up, down = (_weight(part) for part in (layer.gate, layer.up, layer.down))
    gate_F, up_F = (_channels(part, domain) for part in (gate, up))
    steep = SILU_SLOPE * spectral_norm(up_F[:, None] * gate) + spectral_norm(gate_F[:, None] * up)
    reach = float(gate_F.max()) * domain.reach(up, torch.zeros(len(up), dtype=torch.float64))
    return spectral_norm(down) * reach, spectral_norm(down) * steep


def _gelu(layer: nn.Module, domain: Domain) -> tuple[float, float]:
    """down gelu'(u) du, with |gelu(u)| <= |u|."""
    assert isinstance(layer, GELUFeedForward)
    up, down = _weight(layer.up), _weight(layer.down)
    reach = domain.reach(up, torch.zeros(len(up), dtype=torch.float64))
    return spectral_norm(down) * reach, GELU_SLOPE * spectral_norm(down) * spectral_norm(up)


FEED_FORWARD_BOUNDS: dict[type[nn.Module], Callable[[nn.Module, Domain], tuple[float, float]]] = {
    SwiGLU: _swiglu,
    GELUFeedForward: _gelu,
}


def _weight(linear: nn.Linear) -> Tensor:
    return linear.weight.detach().cpu().double()


def _channels(weight_FC: Tensor, domain: Domain) -> Tensor:
    """The largest |w . x| of every channel, (F,)."""
    return weight_FC.norm(dim=-1) * domain.upper
