r"""Anneal the bias from one that reproduces the softmax to one that does not read the keys.

With bias -LSE (the row's log-sum-exp) the sigmoid weight is p / (1 + p), p the softmax weight. A
gain g > 1 on the output of attention, and a bias that is lower by log g, give

    g sigmoid(s - LSE - log g) = p / (1 + p / g),

which tends to p for large g. Then the bias moves to one that does not read the keys:

    b(t) = (1 - t) (-LSE - log g) + t b_final,      t from 0 to 1.

Instead, each row can be divided by a power γ of its mass. With γ = 1 and a bias far below all
logits a row is exactly that of the softmax, for every g. First the bias moves up, then γ goes to 0.

Shape letters: B batch, H query heads, Q queries.
"""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sigmoid_attention.attention import arguments, sigmoid_attention, sigmoid_attention_with_mass
from sigmoid_attention.attention.bias import BiasPolicy, RowContext, RowLSE
from sigmoid_attention.nn.mass_exponent import MassExponent
from sigmoid_attention.nn.state_bias import InputBias

# How far below that of `SoftmaxStart` the bias starts where rows are divided by their mass. The
# weights are then e^-12 times as large, and differ from those of a softmax by less than that part.
DEPTH = 12.0


@dataclass(frozen=True)
class SoftmaxStart(BiasPolicy):
    """b_i = -LSE_i - log g: with g times the output, weights p / (1 + p / g).

    Raises ``TypeError`` for a gain that is no number, ``ValueError`` for one that is not positive.

    Example:
        >>> import torch
        >>> from sigmoid_attention import sigmoid_attention
        >>> q, k, v = torch.randn(3, 1, 1, 4, 8).unbind(0)
        >>> p = torch.softmax(q @ k.mT / 8**0.5, -1)
        >>> out = 2 * sigmoid_attention(q, k, v, bias=SoftmaxStart(gain=2.0))
        >>> torch.allclose(out, p / (1 + p / 2) @ v, atol=1e-6)
        True
    """

    gain: float

    def __post_init__(self) -> None:
        if not arguments.number("gain", self.gain, "positive and finite") > 0:
            raise ValueError(f"gain must be positive and finite, got {self.gain}")

    def resolve(self, rows: RowContext) -> Tensor:
        return RowLSE().resolve(rows) - math.log(self.gain)


class Annealed(nn.Module, InputBias):
    """(1 - t) start + t final; the training loop sets ``t``. At t = 1 no row is read.

    Example:
        >>> from sigmoid_attention.attention import Learned
        >>> Annealed(SoftmaxStart(1.5), Learned(-3.0, num_heads=2)).t
        0.0
    """

    def __init__(self, start: BiasPolicy, final: nn.Module) -> None:
        super().__init__()
        self.start = start
        self.final = final
        self.t = 0.0

    def resolve(self, rows: RowContext, input_BNC: Tensor | None = None) -> Tensor:
        own = self.final.with_input(input_BNC) if isinstance(self.final, InputBias) else self.final
        final: Tensor = own.resolve(rows)  # pyright: ignore
        if self.t == 1:
            return final
        return (1 - self.t) * self.start.resolve(rows) + self.t * final


class DividedByMass:
    """The operator with each row divided by (g m)^γ, with m the sum of the row's weights.

    γ is ``exponent``: at 1 the outputs times g are those of rows whose weights have the sum 1, at 0
    they are those of the operator.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 1, 1, 4, 8).unbind(0)
        >>> out = 2 * DividedByMass(gain=2.0)(q, k, v, bias=-30.0)
        >>> torch.allclose(out, torch.softmax(q @ k.mT / 8**0.5, -1) @ v, atol=1e-5)
        True
    """

    def __init__(self, gain: float) -> None:
        self.gain, self.exponent = gain, 1.0

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        if self.exponent == 0:
            return sigmoid_attention(query, key, value, mask, **options)
        dtype, heads = query.dtype, query.shape[1]
        query, key, value = MassExponent.operands(query, key, value)
        out, mass = sigmoid_attention_with_mass(query, key, value, mask, **options)
        return MassExponent(self.exponent, heads)(out, self.gain * mass).to(dtype)


def anneal(step: int, steps: int) -> float:
    """t at `step` of `steps`: linear up to 1 at the middle, then constant.

    Example:
        >>> [anneal(step, 8) for step in range(8)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / max(1, steps // 2))
