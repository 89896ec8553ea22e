"""The constructed transformers have at most the requested error."""

import math

import pytest
import torch

from sigmoid_attention.theory.universality import FUNCTIONS, Grid, design, universal_transformer
from sigmoid_attention.theory.universality.grid import piecewise_constant
from sigmoid_attention.theory.universality.measure import Target, lp_error
from tests.support.theory.constructions import GRIDS, construction, grid_id

# Errors that a few hundred to 1540 layers reach.
ERRORS = {
    (2, 1): {"sorting": 0.2, "centre": 0.05, "max": 0.06, "mix": 0.1, "edge": 0.2},
    (3, 1): {"sorting": 0.25, "centre": 0.1, "max": 0.1, "mix": 0.15, "edge": 0.3},
    (4, 1): {"sorting": 0.28, "centre": 0.15, "max": 0.15, "mix": 0.2, "edge": 0.45},
    (2, 2): {"sorting": 0.45, "centre": 0.15, "max": 0.2, "mix": 0.35, "edge": 0.45},
    (3, 2): {"sorting": 0.45, "centre": 0.3, "max": 0.3, "mix": 0.4, "edge": 0.6},
    (4, 2): {"sorting": 0.62, "centre": 0.4, "max": 0.45, "mix": 0.55, "edge": 0.9},
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("n", "d"), ERRORS, ids=[f"n{n}-d{d}" for n, d in ERRORS])
def test_the_measured_error_is_below_the_requested_one(name, n, d):
    requested = ERRORS[n, d][name]
    built = universal_transformer(FUNCTIONS[name], n=n, d=d, error=requested, samples=256)
    assert built.contexts.duplicates == 0
    hard, steep = built.error(), built.error(built.plan.steepness)
    # Of itself the function is larger, so that zero would not do.
    zero = built.target.error(torch.zeros_like)
    assert hard.value + built.lost <= requested < zero.low
    assert steep.value == pytest.approx(hard.value, abs=built.plan.gap)


@pytest.mark.parametrize("sizes", GRIDS, ids=grid_id)
@pytest.mark.parametrize("steep", [False, True], ids=["heaviside", "sigmoid"])
def test_the_network_is_the_function_at_the_centres_of_cells(sizes, steep):
    built = construction("mix", *sizes, low=-0.5, high=1.25)
    network = built.hard.with_steepness(built.plan.steepness) if steep else built.hard
    x_SND = built.plan.grid.sample(300, seed=9)
    with torch.no_grad():
        answer = network(x_SND)
    expected = piecewise_constant(FUNCTIONS["mix"], built.plan.grid, x_SND)
    atol = built.plan.gap / 4 if steep else 1e-10
    torch.testing.assert_close(answer, expected, rtol=0, atol=atol)


def test_the_network_is_equivariant():
    built = construction("sorting", 4, 1, 5)
    x_SND = built.plan.grid.sample(200, seed=4)
    order = [2, 0, 3, 1]
    with torch.no_grad():
        assert torch.equal(built.hard(x_SND[:, order]), built.hard(x_SND)[:, order])


def test_the_fewest_cells_are_chosen():
    chosen = design(FUNCTIONS["max"], n=2, d=1, error=0.08, samples=512)
    coarser = Grid(2, 1, chosen.grid.cells - 1)
    target = Target.sample(FUNCTIONS["max"], coarser, 2.0, 512, seed=1)
    assert chosen.grid_error.high <= 0.08 < target.grid_error(coarser).high


def test_errors_fall_with_the_steepness_from_guessing_to_the_grids():
    built = construction("max", 2, 1, 7)
    errors = [built.error(steepness).value for steepness in (4.0, 30.0, built.plan.steepness)]
    assert errors[0] > 3 * built.error().value
    assert errors[0] > errors[1] >= errors[2] - 1e-12
    # Clipped, so that no steepness does worse than the function's range in each entry.
    assert errors[0] <= 2**0.5


def test_the_error_is_the_norm_over_the_box():
    """f = x - mean on [0, 2]^2 against zero: the integral of 2 ((x_1 - x_2) / 2)^2 is 4 / 3."""
    target = Target.sample(FUNCTIONS["centre"], Grid(2, 1, 1, 0.0, 2.0), 2.0, 20_000, seed=0)
    error = target.error(torch.zeros_like)
    assert error.low < (4 / 3) ** 0.5 < error.high
    assert error.high - error.low < 0.05
    assert lp_error(torch.full((5, 2, 1), -2.0), p=1, volume=3.0).value == pytest.approx(12)


@pytest.mark.parametrize("p", [1.0, 4.0], ids="p{:g}".format)
def test_other_norms(p):
    built = universal_transformer(FUNCTIONS["centre"], n=2, d=1, error=0.1, p=p, samples=512)
    assert built.error().value + built.lost <= 0.1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"error": 0.0}, "error must be positive and finite, got 0.0"),
        ({"error": math.nan}, "error must be positive and finite, got nan"),
        ({"p": 0.5}, "p must be at least 1 and finite, got 0.5"),
        ({"samples": 1}, "samples must be at least 2, got 1"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"low": 1.0}, "low must be below high"),
        ({"f": lambda x: x.sort(0).values}, "function must be permutation-equivariant"),
        ({"max_layers": 100, "error": 0.01}, r"error: 0.01 needs [\d,]+ layers \(\d+ cells"),
        ({"f": lambda x: torch.sin(1e6 * x)}, "error: 0.1 is not reached with 4096 cells"),
        ({"n": 7, "error": 0.4}, "n: float64 cannot hold the construction for n = 7"),
    ],
    # Not the function's own name, which is an address that every worker writes differently.
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_bad_arguments_and_large_constructions_are_refused(wrong, says):
    arguments = {"f": FUNCTIONS["centre"], "n": 2, "d": 1, "error": 0.1, "samples": 64}
    with pytest.raises(ValueError, match=says):
        universal_transformer(**(arguments | wrong))


def test_a_steepness_that_cannot_be():
    with pytest.raises(ValueError, match="steepness must be positive and finite, got -1"):
        construction("max", 2, 1, 2).error(-1.0)
