"""Multi-start fits: each start ends as it does alone, the best counts, failures are reported."""

import pytest
import torch

from sigmoid_attention.mixtures import FiniteDesign, Mixture
from sigmoid_attention.mixtures.multistart import (
    Attempts,
    best_of,
    multistart,
    spread,
    uniform_starts,
)
from sigmoid_attention.mixtures.objective import Penalised, Repeated, SumOfSquares
from sigmoid_attention.mixtures.solver import ParameterBox, SolverSettings, chi2, minimise

FAMILY = Mixture("sigmoid", "tanh", k=2, d=2)
DESIGN = FiniteDesign.sobol(64, d=2)
TRUTH = 2 * torch.arange(10).double().sin()
DATA = DESIGN.draw(
    FAMILY.predict(TRUTH, DESIGN.inputs_Qd), [10**3, 10**5, 10**7], sigma=0.1, seed=0
)
BOX = ParameterBox.around_zero(FAMILY.size, 10.0)
STARTS = uniform_starts(spread(FAMILY, 3.0), problems=3, starts=6, seed=1)


def test_every_start_ends_where_it_would_alone():
    together = multistart(FAMILY, DATA, STARTS, sigma=0.1, box=BOX)
    split = best_of(SumOfSquares(FAMILY, DATA, 0.1), STARTS, box=BOX, at_once=5)
    for place in range(6):
        alone = minimise(FAMILY, DATA, STARTS[:, place], sigma=0.1, box=BOX)
        for actual in (together, split):
            costs = actual.cost_BS[:, place] + actual.constant_B
            torch.testing.assert_close(costs, alone.chi2_B, rtol=1e-9, atol=1e-3)
            assert (actual.converged_BS[:, place] == alone.converged_B).all()


def test_the_best_end_counts_and_is_the_global_one_here():
    fits = multistart(FAMILY, DATA, STARTS, sigma=0.1, box=BOX)
    best = fits.best
    assert (fits.excess_BS > -0.1).all() and (fits.excess_BS.amin(-1) <= 0).all()
    assert (fits.near_B >= 1).all() and (fits.near_B < 6).any()
    assert not fits.failed_B.any()
    at_truth = chi2(FAMILY, DATA, TRUTH.expand(3, -1), 0.1)
    assert (best.chi2_B < at_truth).all()
    torch.testing.assert_close(best.chi2_B, chi2(FAMILY, DATA, best.theta_BP, 0.1))


def ends(cost, converged) -> Attempts:
    cost_BS = torch.tensor([cost], dtype=torch.float64)
    count = cost_BS.shape[1]
    return Attempts(
        torch.arange(count).double()[None, :, None], cost_BS, torch.tensor([converged]),
        torch.arange(count)[None], torch.zeros(1, count, dtype=torch.bool), torch.tensor([5.0]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cost", "converged", "chosen"),
    (
        ((3.0, 1.0, 2.0), (True, True, True), 1),
        ((3.0, 1.0, 1.005), (True, False, True), 2),  # as low, and it converged
        ((3.0, 1.0, 2.0), (True, False, True), 1),  # the minimum lies lower than any that was met
        ((3.0, float("nan"), 2.0), (True, True, True), 2),
        ((3.0, 2.0, 1.0), (False, False, False), 2),
    ),
)
def test_which_start_counts(cost, converged, chosen):
    actual = ends(cost, converged)
    assert actual.chosen_B.item() == chosen
    assert actual.best.theta_BP.item() == chosen
    assert actual.best.chi2_B.item() == cost[chosen] + 5.0
    assert actual.best.converged_B.item() == converged[chosen]
    assert actual.failed_B.item() == (not any(converged))


def test_near_counts_starts_within_a_unit():
    assert ends((3.0, 1.0, 1.9), (True, True, True)).near_B.item() == 2


def test_starts_that_ran_out_of_steps_are_no_estimates():
    settings = SolverSettings(max_iter=2)
    fits = multistart(FAMILY, DATA, STARTS, sigma=0.1, box=BOX, settings=settings)
    assert fits.failed_B.all()
    assert not fits.best.converged_B.any()


def test_repeated_problems_are_those_of_their_index():
    objective = SumOfSquares(FAMILY, DATA, 0.1)
    repeated = Repeated(objective, torch.tensor([2, 0, 2]))
    theta = STARTS[:, 0]
    some = torch.tensor([0, 2])
    expected = objective.cost(theta[:2], torch.tensor([2, 2]))
    torch.testing.assert_close(repeated.cost(theta[:2], some), expected)
    expected = objective.quadratic(theta[:2], torch.tensor([2, 2]))
    torch.testing.assert_close(repeated.quadratic(theta[:2], some), expected)
    assert repeated.constant_B.tolist() == [objective.constant_B[i] for i in (2, 0, 2)]


def test_a_penalty_adds_to_cost_and_model_alike():
    plain = SumOfSquares(FAMILY, DATA, 0.1)
    ridge = Penalised(plain, 2.5)
    which, theta = torch.arange(3), STARTS[:, 0].clone().requires_grad_()
    added = ridge.cost(theta, which) - plain.cost(theta, which)
    torch.testing.assert_close(added, 2.5 * theta.square().sum(-1))
    (slope,) = torch.autograd.grad(ridge.cost(theta, which).sum(), theta)
    curvature, gradient = ridge.quadratic(theta.detach(), which)
    torch.testing.assert_close(gradient, -slope / 2)
    eye = 2.5 * torch.eye(FAMILY.size, dtype=torch.float64)
    expected = plain.quadratic(theta.detach(), which)[0] + eye
    torch.testing.assert_close(curvature, expected)


# Starts ---------------------------------------------------------------------------------------


def test_a_range_of_starts_suits_the_dimension():
    family = Mixture("softmax", "linear", k=3, d=16, temperature=True)
    within = spread(family, 2.0)
    starts = uniform_starts(within, problems=2, starts=50, seed=0)
    assert starts.shape == (2, 50, family.size)
    assert ((starts >= within.low_P) & (starts <= within.high_P)).all()
    assert (starts[..., -1] == 0).all()  # the logarithm of the temperature
    wide = family.atoms(within.high_P)
    assert (wide[:, family.parts["beta1"]] == 0.5).all()
    assert (wide[:, family.parts["beta0"]] == 2.0).all()
    assert starts.std() > 0.2


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    (
        (lambda starts: starts.fill_(float("nan")), r"start must be finite.* got \(3, 6, 10\)"),
        (lambda starts: starts[..., :9], "start must be finite, with the box's 10 parameters"),
        (
            lambda starts: starts[..., :5].repeat(1, 1, 2),
            "start: every start of problem 0 is singular, since two experts are equal",
        ),
    ),
)
def test_bad_starts_are_refused(spoil, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        multistart(FAMILY, DATA, spoil(STARTS.clone()), sigma=0.1, box=BOX)


def test_one_singular_start_among_others_is_only_a_bad_start():
    starts = STARTS.clone()
    starts[1, 2, 5:] = starts[1, 2, :5]
    fits = multistart(FAMILY, DATA, starts, sigma=0.1, box=BOX)
    assert fits.best.converged_B.all()


def test_a_start_that_no_observation_sees_is_refused():
    family = Mixture("relu", "tanh", k=1, d=2)
    shut = torch.tensor([[[0.0, 0.0, -1.0, 1.0, 1.0]]] * 3, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"^start:? .* singular, since no observation sees a param"
    ):
        multistart(family, DATA, shut, sigma=0.1, box=ParameterBox.around_zero(5, 10.0))
