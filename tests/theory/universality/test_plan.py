"""Sizes in closed form equal those of the construction, and refusals give the number."""

import itertools
import math

import pytest

from sigmoid_attention.theory.universality import Grid, Plan, layer_counts
from sigmoid_attention.theory.universality.layers import block_parameters
from sigmoid_attention.theory.universality.plan import layers_of, parameters_of, refuse_layers
from tests.support.theory.constructions import GRIDS, construction, grid_id


@pytest.mark.parametrize("sizes", GRIDS, ids=grid_id)
def test_layers_are_as_many_as_were_counted(sizes):
    built = construction("centre", *sizes)
    counts = layer_counts(Grid(*sizes))
    assert len(built.hard.layers) == layers_of(Grid(*sizes)) == sum(counts.values())
    assert len(built.mapper.layers) == len(built.hard.layers) - counts["values"] - sizes[1]
    assert len(built.contexts.codes_C) == counts["values"]
    assert parameters_of(Grid(*sizes)) == len(built.hard.layers) * block_parameters(sizes[1])


@pytest.mark.parametrize("sizes", GRIDS, ids=grid_id)
def test_sequences_and_contexts_are_counted(sizes):
    grid = Grid(*sizes)
    ordered = itertools.product(range(grid.letters), repeat=grid.n)
    unordered = {tuple(sorted(letters)) for letters in ordered}
    assert grid.sequences == len(unordered) == len(grid.all_sequences())
    assert grid.contexts == sum(len(set(letters)) for letters in unordered)


@pytest.mark.parametrize("sizes", GRIDS, ids=grid_id)
def test_the_numbers_hold_what_they_are_for(sizes):
    plan = Plan(Grid(*sizes), low=-3.7, high=1.0)
    grid = plan.grid
    digits = [plan.digit(*symbol) for symbol in plan.symbols()]
    assert digits == list(range(1, grid.n * grid.letters + 1))
    assert plan.radix > max(digits)
    assert all((plan.radix - 1) % m == 0 for m in range(1, grid.n + 1))
    assert plan.gap * plan.radix**grid.n <= 0.5
    assert math.log2(plan.grain).is_integer()
    assert plan.gap / plan.grain == plan.shares
    assert plan.zone % grid.n == 0
    assert plan.zone >= grid.letters
    assert plan.zone > 3.7 * float(grid.weights_D.sum()) + 1


def test_too_many_layers_are_refused_with_their_number():
    with pytest.raises(ValueError, match=r"0\.1 needs 1,540 layers \(3 cells a side, 104,720 para"):
        refuse_layers(Grid(n=4, d=2, cells=3), 1539, "0.1")
    refuse_layers(Grid(n=4, d=2, cells=3), 1540, "0.1")


def test_constructions_beyond_float64_are_refused_with_their_gap():
    plan = Plan(Grid(n=7, d=1, cells=4), low=0.0, high=1.0)
    assert layers_of(plan.grid) < 1000
    with pytest.raises(ValueError, match=r"n = 7 on 4 letters: its smallest gap is \S+e-\d+ besid"):
        plan.refuse()
    Plan(Grid(n=5, d=1, cells=4), low=0.0, high=1.0).refuse()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0, 1, 1), "n must be at least 1, got 0"),
        ((1, -2, 1), "d must be at least 1, got -2"),
        ((1, 1, 0), "cells must be at least 1, got 0"),
        ((1, 1, 1, 2.0, 2.0), "low must be below high, both finite, got 2.0 and 2.0"),
        ((1, 1, 1, 0.0, math.inf), "low must be below high, both finite"),
    ],
)
def test_a_grid_that_cannot_be(arguments, says):
    with pytest.raises(ValueError, match=says):
        Grid(*arguments)
