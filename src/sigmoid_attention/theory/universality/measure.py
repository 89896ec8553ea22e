"""Estimates of L^p errors over the box from random sequences, with intervals.

Shape letters: S sequences, N tokens, D channels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.theory.universality.functions import Function
from sigmoid_attention.theory.universality.grid import Grid, piecewise_constant, values
from sigmoid_attention.theory.universality.quantisation import volume

# Standard errors on each side of the mean: 99.7% if the mean is normally distributed.
STANDARD_ERRORS = 3.0
CHUNK = 512


@dataclass(frozen=True)
class ErrorEstimate:
    """An estimate of (integral over the box of sum |f - g|^p)^(1/p), with two bounds."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def lp_error(difference_SND: Tensor, p: float, volume: float) -> ErrorEstimate:
    """The L^p norm of a function from its values at uniform random points of the box.

    The integral is ``volume`` times the mean over S of sum_ND |difference|^p; the bounds are those
    of three standard errors of that mean.

    Example:
        >>> lp_error(torch.full((8, 1, 4), 0.5), p=2, volume=1.0)
        ErrorEstimate(value=1.0, low=1.0, high=1.0)
    """
    powers_S = difference_SND.double().abs().pow(p).sum((1, 2)) * volume
    mean = float(powers_S.mean())
    half = STANDARD_ERRORS * float(powers_S.std()) / math.sqrt(len(powers_S))
    return ErrorEstimate(
        *(max(power, 0.0) ** (1 / p) for power in (mean, mean - half, mean + half))
    )


@dataclass(frozen=True)
class Target:
    """A function's values at random sequences of the box, for measuring approximations."""

    f: Function
    inputs_SND: Tensor
    outputs_SND: Tensor
    p: float
    volume: float

    @classmethod
    def sample(cls, f: Function, grid: Grid, p: float, samples: int, seed: int) -> "Target":
        """f at ``samples`` uniform sequences of the box; the cells of ``grid`` are not used."""
        inputs_SND = grid.sample(samples, seed)
        return cls(f, inputs_SND, values(f, inputs_SND), p, volume(grid))

    def error(self, g: Callable[[Tensor], Tensor]) -> ErrorEstimate:
        """The error of a network or any function of (B, N, D)."""
        with torch.no_grad():
            answers = [g(chunk) for chunk in self.inputs_SND.split(CHUNK)]
        return lp_error(torch.cat(answers) - self.outputs_SND, self.p, self.volume)

    def grid_error(self, grid: Grid) -> ErrorEstimate:
        """The error of the function that is constant on the cells of ``grid``."""
        return self.error(lambda x_SND: piecewise_constant(self.f, grid, x_SND))
