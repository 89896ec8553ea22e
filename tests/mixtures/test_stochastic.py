"""Mini-batch training as in the papers: optimiser steps, and the distance to the optimum."""

import pytest
import torch

from sigmoid_attention.mixtures import Mixture
from sigmoid_attention.mixtures.data import Samples
from sigmoid_attention.mixtures.solver import Fit, ParameterBox, SolverSettings, chi2, minimise
from sigmoid_attention.mixtures.stochastic import StochasticRecipe, excess, paper_mode

FAMILY = Mixture("sigmoid", "tanh", k=2, d=2)
TRUTH = 2 * torch.arange(10).double().sin()
BOX = ParameterBox.around_zero(10, 20.0)


def samples(n: int, count: int = 3, sigma: float = 0.1) -> Samples:
    return Samples.draw(
        lambda x: FAMILY.predict(TRUTH, x), count=count, n=n, d=2, sigma=sigma, seed=1
    )


START = TRUTH + 0.3 * torch.linspace(-1, 1, 30).double().reshape(3, 10)


@pytest.mark.parametrize("optimiser", ("sgd", "adam"))
def test_with_one_batch_an_epoch_the_steps_are_those_of_torch(optimiser):
    data = samples(50)
    recipe = StochasticRecipe(optimiser, learning_rate=0.05, epochs=7, batch=50)
    ours = paper_mode(FAMILY, data, START, sigma=0.1, recipe=recipe)
    for problem in range(3):
        theta = START[problem].clone().requires_grad_()
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimiser]
        steps = kind([theta], lr=0.05)
        for _ in range(7):
            steps.zero_grad()
            answer = FAMILY.predict(theta, data.inputs_BQd[problem])
            (answer - data.observations_BQ[problem]).square().mean().backward()
            steps.step()
        torch.testing.assert_close(ours.theta_BP[problem], theta.detach())
    torch.testing.assert_close(ours.chi2_B, chi2(FAMILY, data, ours.theta_BP, 0.1))


def test_an_epoch_takes_every_observation_once_in_an_order_of_its_own():
    # An expert that answers c, with an open gate: a step of rate 1 / 2 and batch 1 moves c to y.
    family = Mixture("hard_sigmoid", "constant", k=1, d=1)
    n, count = 7, 2
    data = Samples(
        torch.zeros(count, n, 1, dtype=torch.float64),
        torch.arange(count * n, dtype=torch.float64).reshape(count, n),
    )
    start = torch.tensor([[0.0, 5.0, 0.0]] * count, dtype=torch.float64)
    seen = []
    paper_mode(
        family, data, start, sigma=1.0,
        recipe=StochasticRecipe(learning_rate=0.5, epochs=2, batch=1),
        trace=lambda step, theta: seen.append(theta[:, 2].clone()),
    )  # fmt: skip
    visited = torch.stack(seen[1:], -1).reshape(count, 2, n)
    for problem in range(count):
        for epoch in range(2):
            order = visited[problem, epoch]
            torch.testing.assert_close(order.sort().values, data.observations_BQ[problem])
        assert not torch.equal(visited[problem, 0], visited[problem, 1])
    assert not torch.equal(visited[0, 0], visited[1, 0] - n)


def test_the_result_claims_no_convergence_and_has_the_number_of_steps():
    data = samples(2000)
    fit = paper_mode(FAMILY, data, START, sigma=0.1, recipe=StochasticRecipe(batch=300, epochs=3))
    assert not fit.converged_B.any() and not fit.at_box_B.any()
    assert fit.iterations_B.tolist() == [21] * 3
    left = excess(FAMILY, data, fit, sigma=0.1, box=BOX)
    assert (left > 1).all()
    longer = paper_mode(
        FAMILY, data, START, sigma=0.1, recipe=StochasticRecipe(batch=300, epochs=100)
    )
    assert (excess(FAMILY, data, longer, sigma=0.1, box=BOX) < left).all()
    optimum = minimise(FAMILY, data, fit.theta_BP, sigma=0.1, box=BOX)
    assert (excess(FAMILY, data, optimum, sigma=0.1, box=BOX).abs() < 1e-2).all()


def test_problems_do_not_touch_each_other_and_a_seed_repeats():
    data, recipe = samples(500), StochasticRecipe(batch=64, epochs=2)
    single = paper_mode(FAMILY, data, START, sigma=0.1, recipe=recipe, seed=3)
    again = paper_mode(FAMILY, data, START, sigma=0.1, recipe=recipe, seed=3)
    assert torch.equal(single.theta_BP, again.theta_BP)
    other = paper_mode(FAMILY, data, START, sigma=0.1, recipe=recipe, seed=4)
    assert not torch.equal(single.theta_BP, other.theta_BP)
    spoiled = START.clone()
    spoiled[1] = torch.nan
    beside = paper_mode(FAMILY, data, spoiled, sigma=0.1, recipe=recipe, seed=3)
    assert torch.equal(single.theta_BP[[0, 2]], beside.theta_BP[[0, 2]])


def test_divergence_is_infinite_and_stays_so():
    data = samples(200)
    family = Mixture("tanh", "poly3", k=2, d=2)
    start = torch.ones(3, family.size, dtype=torch.float64)
    fit = paper_mode(family, data, start, sigma=0.1, recipe=StochasticRecipe(learning_rate=50.0))
    assert fit.chi2_B.isinf().all()
    box = ParameterBox.around_zero(family.size, 20.0)
    assert excess(family, data, fit, sigma=0.1, box=box).isinf().all()


def test_excess_without_an_optimum_is_no_number():
    data = samples(200)
    shown = Fit(
        START, chi2(FAMILY, data, START, 0.1), torch.zeros(3) > 0, torch.zeros(3), torch.zeros(3)
    )
    few = SolverSettings(max_iter=1)
    left = excess(FAMILY, data, shown, sigma=0.1, box=BOX, settings=few)
    assert left.isnan().all()


@pytest.mark.parametrize(
    ("make", "sentence"),
    (
        (lambda: StochasticRecipe("lion"), "optimiser must be one of sgd, adam, got 'lion'"),
        (lambda: StochasticRecipe(learning_rate=0.0), "learning_rate must be positive, got 0.0"),
        (lambda: StochasticRecipe(epochs=-1), "epochs must be positive, got -1"),
        (lambda: StochasticRecipe(batch=0), "batch must be positive, got 0"),
        (
            lambda: paper_mode(FAMILY, samples(50), START[:2], sigma=0.1),
            r"start must be \(problems, parameters\) = \(3, 10\), got \(2, 10\)",
        ),
    ),
)
def test_bad_input_is_refused(make, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        make()
