"""Constructions that several tests share, each built once."""

import functools

from sigmoid_attention.theory.universality import (
    FUNCTIONS,
    Construction,
    Design,
    ErrorEstimate,
    Grid,
    build,
)

UNMEASURED = ErrorEstimate(0.0, 0.0, 0.0)
# (n, d, cells): odd sizes, cells that are no power of two, one token, one cell.
GRIDS = [(1, 1, 5), (1, 2, 3), (2, 1, 7), (2, 2, 3), (3, 1, 6), (3, 2, 2), (4, 1, 5), (4, 2, 2)]


def grid_id(sizes: tuple[int, int, int]) -> str:
    return "n{}-d{}-cells{}".format(*sizes)


@functools.cache
def construction(name: str, n: int, d: int, cells: int, low=0.0, high=1.0) -> Construction:
    grid = Grid(n, d, cells, low, high)
    return build(Design(FUNCTIONS[name], grid, p=2.0, samples=256, grid_error=UNMEASURED))
