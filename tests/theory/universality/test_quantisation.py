"""Feed-forward layers round every token to its cell, exactly, and clip the output."""

import pytest
import torch

from sigmoid_attention.theory.universality import Grid, Network
from sigmoid_attention.theory.universality.quantisation import (
    RAMP,
    clipping,
    lost,
    rounding,
    scaling,
)

GRIDS = [
    Grid(n=3, d=1, cells=7),
    Grid(n=2, d=3, cells=4),
    Grid(n=1, d=2, cells=1),
    Grid(n=2, d=2, cells=5, low=-1.5, high=0.25),
]


def grid_id(grid):
    return f"n{grid.n}-d{grid.d}-cells{grid.cells}-from{grid.low:g}to{grid.high:g}"


def rounded(grid, x):
    with torch.no_grad():
        return Network([*scaling(grid), *rounding(grid)])(x)


@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_tokens_become_their_cells_exactly(grid):
    x_SND = grid.sample(500, seed=3)
    cells_SND = torch.floor((x_SND - grid.low) * grid.cells / (grid.high - grid.low))
    assert torch.equal(rounded(grid, x_SND), cells_SND)


@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_the_box_is_closed_and_what_lies_outside_goes_to_its_border(grid):
    ends = torch.tensor([grid.low, grid.high, grid.low - 2, grid.high + 2], dtype=torch.float64)
    x_SND = ends[:, None, None].expand(4, grid.n, grid.d)
    last = grid.cells - 1
    assert rounded(grid, x_SND)[:, 0, 0].tolist() == [0, last, 0, last]


def test_only_a_sliver_below_the_next_cell_is_lost():
    grid = Grid(n=1, d=1, cells=4)
    inside, ramp = 2 - 2 * RAMP, 2 - RAMP / 2
    x_SND = torch.tensor([inside, ramp], dtype=torch.float64)[:, None, None] / 4
    kept, broken = rounded(grid, x_SND).flatten().tolist()
    assert kept == 1
    assert 1 < broken < 2


def test_the_error_of_ramps_is_bounded_by_their_measure():
    grid = Grid(n=2, d=1, cells=4, low=0.0, high=2.0)
    # 2 entries, each on a ramp with probability 2^-40, in a box of measure 4; both off by 3.
    assert lost(grid, -1.0, 2.0, p=1.0) == pytest.approx(2 * RAMP * 4 * 2 * 3)
    assert lost(grid, -1.0, 2.0, p=2.0) == pytest.approx((2 * RAMP * 4 * 2 * 9) ** 0.5)


def test_clipping():
    network = Network(list(clipping(2, low=-1.0, high=2.5)))
    x_SND = torch.tensor([[[-7.0, 3.0], [0.5, -1.0], [2.5, 1e6]]], dtype=torch.float64)
    with torch.no_grad():
        assert network(x_SND).tolist() == [[[-1.0, 2.5], [0.5, -1.0], [2.5, 2.5]]]
