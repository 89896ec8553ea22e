"""Pseudo-true parameters: the minimisers from many descents, their counts, and limits of fits."""

from dataclasses import replace

import pytest
import torch

from sigmoid_attention.mixtures import FiniteDesign, Mixture
from sigmoid_attention.mixtures.distance import d3
from sigmoid_attention.mixtures.projection import (
    ApproximationProblem,
    distance_to,
    distance_to_pseudo_true,
    project,
    pseudo_true,
    starts_in,
)
from sigmoid_attention.mixtures.rates.measure import measure
from sigmoid_attention.mixtures.rates.setting import RateSetting, box, draw_truth
from sigmoid_attention.mixtures.solver import ParameterBox
from sigmoid_attention.mixtures.voronoi import l2

# A dense truth whose first expert is held near, twice: it cannot be made of two.
MISSPECIFIED = RateSetting(
    "sigmoid", "tanh", radius=0.3, truth_seed=1, sizes=(10**6, 10**10), replicates=10
)


@pytest.mark.parametrize("gate", ("sigmoid", "softmax"))
def test_a_truth_inside_the_family_is_its_own_projection(gate):
    setting = RateSetting(gate, "tanh", extra=0)
    projection, truth = pseudo_true(setting, starts=16), draw_truth(setting)
    assert projection.floor < 1e-8
    assert projection.starts == 16
    assert d3(truth.family, truth.theta_P[None], projection.theta_MP).item() < 1e-5
    # Near starts all go there; experts in another order are no other minimiser.
    assert projection.found_M.max() >= 8
    assert not projection.at_box_M.any()


def pinned(family: Mixture, half_width: float, values: dict[int, float]) -> ParameterBox:
    places = torch.tensor(list(values))
    held = torch.tensor(list(values.values()), dtype=torch.float64)
    return ParameterBox.around_zero(family.size, half_width).pinned(places, held)


def test_different_minimisers_are_distinguished_and_counted():
    """(a x + b)^2 does not know the sign of (a, b)."""
    family = Mixture("sigmoid", "poly2", k=1, d=1)
    inputs = FiniteDesign.sobol(64, d=1).inputs_Qd
    truth = torch.tensor([1.5, 0.2, 1.0, 2.0], dtype=torch.float64)
    opposite = truth * torch.tensor([1, 1, -1, -1])
    problem = ApproximationProblem(
        family, family.predict(truth, inputs), inputs, ParameterBox.around_zero(4, 5.0)
    )
    near = torch.tensor([[-0.1], [0.05], [0.1]], dtype=torch.float64)
    starts = torch.cat((truth + near, opposite + near[1:]))
    projection = project(problem, starts)
    signs = projection.theta_MP[:, 2].sign().tolist()
    assert dict(zip(signs, projection.found_M.tolist(), strict=True)) == {1: 3, -1: 2}
    assert project(problem, starts, apart=100.0).found_M.tolist() == [5]


def test_ends_that_lie_higher_are_no_minimisers():
    """One ReLU for a bent line takes its steeper side, or is held by the other."""
    family = Mixture("sigmoid", "relu", k=1, d=1)
    inputs = torch.linspace(-1, 1, 64, dtype=torch.float64)[:, None]
    target = torch.where(inputs > 0, inputs, -inputs / 2)[:, 0]
    problem = ApproximationProblem(family, target, inputs, pinned(family, 9.0, {0: 0.0, 1: 0.0}))
    starts = torch.tensor([[0, 0, 1], [0, 0, -3], [0, 0, 3]], dtype=torch.float64)
    projection = project(problem, starts)
    assert projection.theta_MP[:, 2].tolist() == pytest.approx([2.0])
    assert (projection.found_M.tolist(), projection.starts, projection.converged) == ([2], 3, 1.0)
    assert projection.floor == pytest.approx(l2(family, projection.theta_MP, target, inputs).item())
    other = project(problem, starts[1:2])
    assert other.theta_MP[0, 2].item() == pytest.approx(-1.0)
    assert other.floor == pytest.approx(2 * projection.floor)


def test_a_minimiser_at_the_end_of_an_interval_says_so():
    family = Mixture("sigmoid", "constant", k=1, d=1)
    inputs = torch.linspace(-1, 1, 32, dtype=torch.float64)[:, None]
    target = (4 * inputs[:, 0]).sigmoid()
    ends = torch.tensor([[0.0, 1.0, 1.0], [2.0, 3.0, 1.0]], dtype=torch.float64)
    problem = ApproximationProblem(family, target, inputs, ParameterBox(*ends))
    projection = project(problem, starts_in(problem.box, 4, seed=0))
    assert projection.at_box_M.tolist() == [True]
    assert projection.theta_MP[0].tolist() == pytest.approx([2.0, 1.0, 1.0])


def test_the_distance_to_a_continuum_is_to_the_nearest_of_all_its_points():
    """sigmoid(0) c1 + sigmoid(0) c2 = 1 wherever c1 + c2 = 2."""
    family = Mixture("sigmoid", "constant", k=2, d=1)
    inputs = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    bounds = pinned(family, 9.0, {0: 0.0, 1: 0.0, 3: 0.0, 4: 0.0})
    problem = ApproximationProblem(family, torch.ones(8, dtype=torch.float64), inputs, bounds)
    projection = project(problem, starts_in(bounds, 3, seed=0))
    assert len(projection.theta_MP) == 3
    fits = torch.zeros(20, 6, dtype=torch.float64)
    fits[:, 2] = torch.linspace(-6, 1, 20)
    fits[:, 5] = 2 - fits[:, 2] + 1e-3
    distance = distance_to(problem, projection, fits)
    torch.testing.assert_close(distance, torch.full_like(distance, 1e-3), rtol=1e-4, atol=0)
    assert d3(family, fits, projection.theta_MP).median() > 0.1
    # A point is its own nearest one, and an end above the floor is none.
    single = replace(projection, theta_MP=fits[:1], floor=-1.0)
    torch.testing.assert_close(distance_to(problem, single, fits), d3(family, fits, fits[:1]))


def test_nothing_in_the_box_is_nearer_than_the_floor():
    projection, truth = pseudo_true(MISSPECIFIED, starts=24), draw_truth(MISSPECIFIED)
    inputs, family = MISSPECIFIED.inputs_Qd, MISSPECIFIED.family
    truth_Q = truth.family.predict(truth.theta_P, inputs)
    assert projection.floor > 1e-2
    bounds = box(MISSPECIFIED, truth)
    anywhere = starts_in(bounds, 2000, seed=5)
    around = projection.theta_MP[0] + 1e-3 * torch.randn(2000, family.size, dtype=torch.float64)
    for others in (anywhere, around.clamp(bounds.low_P, bounds.high_P)):
        assert l2(family, others, truth_Q, inputs).min().item() > projection.floor * (1 - 1e-9)
    at = l2(family, projection.theta_MP, truth_Q, inputs)
    torch.testing.assert_close(at, torch.full_like(at, projection.floor), rtol=1e-5, atol=0)


def test_misspecified_fits_converge_to_it():
    curve = measure(MISSPECIFIED)
    theta = torch.from_numpy(curve.theta)
    away = [distance_to_pseudo_true(MISSPECIFIED, fits).median().item() for fits in theta]
    # From n = 1e6 to 1e10 a root-n rate gains a factor of 100.
    assert away[1] < away[0] / 30
    assert away[1] < 1e-3


def test_noise_and_sizes_do_not_matter():
    other = replace(MISSPECIFIED, sizes=(7,), sigma=1.0, seed=3)
    assert pseudo_true(other, starts=24) is pseudo_true(MISSPECIFIED, starts=24)
    assert pseudo_true(replace(other, radius=0.2), starts=4) is not pseudo_true(other, starts=4)


def test_starts_keep_to_the_box_at_all_scales():
    bounds = ParameterBox.around_zero(3, 10.0).pinned(
        torch.tensor([1]), torch.tensor([7.0]).double()
    )
    starts = starts_in(bounds, 500, seed=0)
    assert (starts[:, 1] == 7).all()
    assert (starts.abs() <= 10).all()
    size = starts[:, 0].abs()
    assert (size < 0.5).double().mean() > 0.2
    assert (size > 3).double().mean() > 0.1
    assert not torch.equal(starts, starts_in(bounds, 500, seed=1))


@pytest.mark.parametrize(
    ("target", "starts", "sentence"),
    (
        (torch.zeros(3), torch.zeros(2, 3), r"target must be finite, \(8,\), got \(3,\)"),
        (torch.full((8,), torch.nan), torch.zeros(2, 3), "target must be finite"),
        (torch.zeros(8), torch.zeros(0, 3), "starts must be 1 or more, got none"),
        (torch.zeros(8), torch.zeros(2, 4), "start must be finite, with the box's 3 parameters"),
        (torch.zeros(8), torch.full((2, 3), torch.inf), "start must be finite"),
    ),
)
def test_bad_input_is_refused(target, starts, sentence):
    family, inputs = Mixture("sigmoid", "constant", k=1), torch.zeros(8, 1).double()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        project(
            ApproximationProblem(family, target.double(), inputs, ParameterBox.around_zero(3, 1.0)),
            starts.double(),
        )
