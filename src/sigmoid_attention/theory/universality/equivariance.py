"""A test that a function is permutation-equivariant, with a counterexample in the error.

Shape letters: N tokens, D channels.
"""

import itertools
from collections.abc import Callable, Iterator
from numbers import Integral

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments
from sigmoid_attention.theory.universality.functions import Function
from sigmoid_attention.theory.universality.grid import Grid

POINTS = 24
# Tolerance relative to the largest value: sums in another order differ in their last digits.
TOLERANCE = 1e-9
# All permutations of up to four tokens, and the same number for more tokens.
PERMUTATIONS = 24


def check_equivariance(f: Function, grid: Grid, *, seed: int = 0) -> None:
    """Refuse a function for which f(P X) is not P f(X) at some X of the box and permutation P.

    The test points are random points, the same points with their first two tokens equal, and
    centres of cells. Each is tested with all permutations of up to four tokens, or 24 random
    permutations of more. This is a test at finitely many points and not a proof.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: f does not return a finite float64 tensor of the shape of its input, or is not
            equivariant; then the message contains X, the permutation and both outputs.

    Example:
        >>> from sigmoid_attention.theory.universality import Grid
        >>> check_equivariance(lambda x: x.cumsum(0), Grid(n=2, d=1, cells=1))
        Traceback (most recent call last):
        ...
        ValueError: function must be permutation-equivariant; for tokens [[0.97...], ...
    """
    arguments.instance("f", f, Callable, "a function of a tensor")
    arguments.instance("grid", grid, Grid, "a Grid")
    arguments.instance("seed", seed, Integral, "a whole number")
    for x_ND in _points(grid, seed):
        answer_ND = _answer(f, x_ND)
        size = float(answer_ND.abs().amax().clamp(min=1))
        for order in _permutations(grid.n, seed):
            permuted_ND = _answer(f, x_ND[order])
            if (permuted_ND - answer_ND[order]).abs().amax() > TOLERANCE * size:
                raise ValueError(
                    f"function must be permutation-equivariant; for tokens {x_ND.tolist()} it "
                    f"gives {answer_ND.tolist()}, in the order {order} it gives "
                    f"{permuted_ND.tolist()} where {answer_ND[order].tolist()} is wanted"
                )


def _points(grid: Grid, seed: int) -> Iterator[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    for number in range(POINTS):
        x_ND = torch.rand(grid.n, grid.d, generator=draw, dtype=torch.float64)
        x_ND = grid.low + (grid.high - grid.low) * x_ND
        if number % 3 == 1:
            x_ND[: min(2, grid.n)] = x_ND[0].clone()
        yield grid.centres(grid.cell_of(x_ND)) if number % 3 == 2 else x_ND


def _permutations(n: int, seed: int) -> Iterator[list[int]]:
    if n <= 4:
        yield from map(list, itertools.permutations(range(n)))
        return
    draw = torch.Generator().manual_seed(seed)
    for _ in range(PERMUTATIONS):
        yield torch.randperm(n, generator=draw).tolist()


def _answer(f: Function, x_ND: Tensor) -> Tensor:
    # A copy, since a function may write into its argument.
    answer = f(x_ND.clone())
    if not isinstance(answer, Tensor) or answer.shape != x_ND.shape:
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(f"function must return a tensor of shape {tuple(x_ND.shape)}, got {got}")
    if answer.dtype != torch.float64:
        raise ValueError(f"function must return float64, got {answer.dtype}")
    if not answer.isfinite().all():
        raise ValueError(f"function must be finite on the box, is not at {x_ND.tolist()}")
    return answer
