"""The grid of the construction: cells of a box, letters of tokens, sequences up to order.

Shape letters: S sequences, N tokens, D channels.
"""

import itertools
import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments
from sigmoid_attention.theory.universality.functions import Function


@dataclass(frozen=True)
class Grid:
    """Sequences of n tokens in the box [low, high]^d, each side of it cut into ``cells`` cells.

    A token's cell (c_1, ..., c_d) is its *letter*, the whole number u . c with the weights
    u = (1, cells, cells^2, ...), 0 to K - 1 for K = cells^d letters.

    Raises ``TypeError`` for a wrong type, and ``ValueError`` where n, d or cells are below one, or
    low is not below high.

    Example:
        >>> grid = Grid(n=2, d=2, cells=3)
        >>> grid.letters, grid.sequences, grid.contexts
        (9, 45, 81)
        >>> grid.cell_of(torch.tensor([[0.1, 0.99]])).tolist()
        [[0.0, 2.0]]
    """

    n: int
    d: int
    cells: int
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        for name, number in {"n": self.n, "d": self.d, "cells": self.cells}.items():
            arguments.whole(name, number, 1, "at least 1")
        for name, number in {"low": self.low, "high": self.high}.items():
            arguments.instance(name, number, Real, "a number")
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low must be below high, both finite, got {self.low} and {self.high}")

    @property
    def letters(self) -> int:
        """K = cells^d."""
        return self.cells**self.d

    @property
    def sequences(self) -> int:
        """Sequences of n letters up to their order: (K + n - 1 choose n)."""
        return math.comb(self.letters + self.n - 1, self.n)

    @property
    def contexts(self) -> int:
        """Pairs of a letter and a sequence that holds it: K (K + n - 2 choose n - 1).

        These are the cases that an equivariant function distinguishes: the other n - 1 letters
        form any multiset.
        """
        return self.letters * math.comb(self.letters + self.n - 2, self.n - 1)

    @property
    def weights_D(self) -> Tensor:
        """u = (1, cells, cells^2, ...), float64."""
        return float(self.cells) ** torch.arange(self.d, dtype=torch.float64)

    @property
    def side(self) -> float:
        """The length of a cell's side."""
        return (self.high - self.low) / self.cells

    def cell_of(self, x: Tensor) -> Tensor:
        """The cell (..., D) of each token (..., D), as whole numbers in float64."""
        return ((x - self.low) / self.side).floor().clamp(0, self.cells - 1)

    def centres(self, cell: Tensor) -> Tensor:
        """The middle (..., D) of each cell (..., D)."""
        return self.low + (cell.to(torch.float64) + 0.5) * self.side

    def all_sequences(self) -> Tensor:
        """The cells (S, N, D) of every sequence up to order, with letters ascending."""
        letters = itertools.combinations_with_replacement(range(self.letters), self.n)
        letters_SN = torch.tensor(list(letters))
        return (letters_SN[..., None] // self.weights_D.long() % self.cells).double()

    def sample(self, count: int, seed: int) -> Tensor:
        """``count`` sequences (S, N, D), uniform on the box."""
        draw = torch.Generator().manual_seed(seed)
        unit = torch.rand(count, self.n, self.d, generator=draw, dtype=torch.float64)
        return self.low + (self.high - self.low) * unit


def values(f: Function, x_SND: Tensor) -> Tensor:
    """f of each sequence, (S, N, D)."""
    return torch.stack([f(x_ND) for x_ND in x_SND])


def piecewise_constant(f: Function, grid: Grid, x_SND: Tensor) -> Tensor:
    """The target of the construction: f at the centres of the tokens' cells."""
    return values(f, grid.centres(grid.cell_of(x_SND)))
