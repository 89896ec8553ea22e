"""Gaussian experts: their density and its derivatives, EM, and the maximum of the likelihood."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from sigmoid_attention.mixtures import Mixture
from sigmoid_attention.mixtures.data import Samples
from sigmoid_attention.mixtures.gaussian import (
    GaussianDeviance,
    GaussianExperts,
    SharedExperts,
    TrueGaussianExperts,
    em,
    expected,
    maximise,
    near_truth,
)
from sigmoid_attention.mixtures.solver import ParameterBox, SolverSettings

FAMILIES = {
    f"{gate} {expert} {shared.expert if shared else 'alone'}": GaussianExperts(
        Mixture(gate, expert, score, k=3, d=2), shared
    )
    for gate, (expert, score, shared) in itertools.product(
        ("softmax", "normalised_sigmoid"),
        (
            ("linear", "linear", None),
            ("relu+scale", "linear", SharedExperts("relu+bias+scale", 2)),
            ("gelu", "partially_quadratic", SharedExperts("linear", 1)),
        ),
    )
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)

# Two routed experts that cross, told apart by the gate and their variances, and a shared one.
LINE = GaussianExperts(Mixture("softmax", "linear", k=2), SharedExperts("linear", 1))
LINE_THETA = torch.tensor(
    [2.0, 0.5, 3.0, 1.0, -1.0, -2.0, -0.5, -2.0, 0.0, -0.5, 0.5, 4.0, -1.5, 0.0],
    dtype=torch.float64,
)


def drawn(family: GaussianExperts, count: int = 2) -> tuple[torch.Tensor, ...]:
    """Parameters (count, P), inputs (count, 7, d), answers (count, 7)."""
    theta = 0.7 * torch.randn(count, family.size, dtype=torch.float64)
    inputs = torch.randn(count, 7, family.routed.d, dtype=torch.float64)
    return theta, inputs, torch.randn(count, 7, dtype=torch.float64)


def sampled(family: GaussianExperts, theta: torch.Tensor, count: int, n: int, seed: int) -> Samples:
    rng = torch.Generator().manual_seed(seed)
    inputs = 4 * torch.rand(count, n, family.routed.d, generator=rng, dtype=torch.float64) - 2
    return Samples(inputs, family.sample(theta, inputs, rng))


@each_family
def test_derivatives_are_those_of_autograd(family):
    theta, inputs, answers = drawn(family)
    density, score = family.score(theta, inputs, answers)
    torch.testing.assert_close(density, family.log_density(theta, inputs, answers))
    for b in range(len(theta)):
        known = torch.autograd.functional.jacobian(
            lambda theta, b=b: family.log_density(theta, inputs[b], answers[b]), theta[b]
        )
        torch.testing.assert_close(score[b], known, rtol=1e-9, atol=1e-9)


@each_family
def test_densities_integrate_to_one(family):
    theta, inputs, _ = drawn(family)
    answers = torch.linspace(-40, 40, 20_001, dtype=torch.float64)
    for x in inputs[0]:
        density = family.log_density(theta[0], x.expand(len(answers), -1), answers).exp()
        assert abs(float(torch.trapezoid(density, answers)) - 1) < 1e-6


@each_family
def test_samples_are_of_the_density(family):
    """Scores have mean zero under their own law, and under no other."""
    theta = 0.7 * torch.randn(family.size, dtype=torch.float64)
    data = sampled(family, theta, 1, 20_000, seed=1)
    score = family.score(theta, data.inputs_BQd[0], data.observations_BQ[0])[1]
    z = score.mean(0) / (score.std(0) / math.sqrt(len(score)) + 1e-300)
    assert z.abs().max() < 4.5


def test_one_linear_expert_is_ordinary_least_squares():
    family = GaussianExperts(Mixture("softmax", "linear", k=1, d=3))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3))
    y = x @ [1.0, -2.0, 0.5] + 3 + 0.2 * rng.standard_normal(60)
    data = Samples(torch.from_numpy(x)[None], torch.from_numpy(y)[None])
    once = SolverSettings(max_iter=1)
    fit = em(family, data, torch.zeros(1, family.size).double(), box=wide(family), settings=once)
    columns = np.column_stack([x, np.ones(60)])
    known, rss, *_ = np.linalg.lstsq(columns, y)
    np.testing.assert_allclose(fit.theta_BP[0, 4:8], known, rtol=1e-8)
    assert math.exp(fit.theta_BP[0, 8]) == pytest.approx(rss[0] / 60, rel=1e-8)


def wide(family: GaussianExperts, floor: float = -9.0) -> ParameterBox:
    low = torch.full((family.size,), -30.0, dtype=torch.float64)
    low[family.indices.log_variances_c] = floor
    return ParameterBox(low, torch.full_like(low, 30.0))


@pytest.mark.slow
@each_family
def test_em_never_lowers_the_likelihood(family):
    theta = torch.randn(6, family.size, dtype=torch.float64)
    data = sampled(family, theta[0], 6, 150, seed=2)
    start = 2 * torch.randn(6, family.size, dtype=torch.float64)
    deviances = torch.stack(
        [
            em(family, data, start, box=wide(family), settings=SolverSettings(max_iter=i)).chi2_B
            for i in range(25)
        ]
    )
    assert deviances.diff(dim=0).max() < 1e-9
    assert (deviances[0] - deviances[-1] > 1).all()


def test_an_em_iteration_is_that_of_the_textbook():
    """Responsibilities, then weighted least squares, mean squares and mean responsibilities."""
    data = sampled(LINE, LINE_THETA, 1, 400, seed=3)
    x, y = data.inputs_BQd[0, :, 0], data.observations_BQ[0]
    start = LINE_THETA + 0.3 * torch.randn(LINE.size, dtype=torch.float64)
    once = SolverSettings(max_iter=1)
    fit = em(LINE, data, start[None], box=wide(LINE), settings=once).theta_BP[0]
    routed, shared = LINE.atoms(start)
    gate = (x[:, None] * routed[:, 0] + routed[:, 1]).softmax(-1) / 2
    lines = [(*routed[0, 2:], 0), (*routed[1, 2:], 0), (*shared[0],)]
    density = torch.stack(
        [
            torch.distributions.Normal(a * x + b, math.exp(v / 2)).log_prob(y).exp()
            for a, b, v, _ in lines
        ],
        -1,
    )
    weight = torch.cat((gate, torch.full((400, 1), 0.5)), -1) * density
    share = weight / weight.sum(-1, keepdim=True)
    columns = torch.stack((x, torch.ones(400, dtype=torch.float64)), -1)
    for i, place in enumerate((slice(2, 5), slice(7, 10), slice(10, 13))):
        root = share[:, i].sqrt()
        known = torch.linalg.lstsq(columns * root[:, None], (y * root)[:, None]).solution[:, 0]
        residual = y - columns @ known
        variance = (share[:, i] * residual**2).sum() / share[:, i].sum()
        expected_row = torch.cat((known, variance.log()[None]))
        torch.testing.assert_close(fit[place], expected_row, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("gate", ("softmax", "normalised_sigmoid"))
def test_the_maximum_is_the_one_that_scipy_finds(gate):
    family = GaussianExperts(Mixture(gate, "linear", k=2), SharedExperts("linear", 1))
    data = sampled(family, LINE_THETA, 3, 500, seed=4)
    start = LINE_THETA + 0.05 * torch.randn(3, family.size, dtype=torch.float64)
    fit = maximise(family, data, start, box=wide(family))
    assert fit.converged_B.all()
    deviance = GaussianDeviance(family, data)
    # Of some samples the likelihood rises for ever as slopes grow; there the box decides.
    inside = (~fit.at_box_B).nonzero()[:, 0].tolist()
    assert len(inside) >= 2

    for b in inside:
        which = torch.tensor([b])

        def cost(theta, which=which):
            at = torch.from_numpy(theta)[None]
            gradient = deviance.quadratic(at, which)[1]
            return float(deviance.cost(at, which)), -2 * gradient[0].numpy()

        known = minimize(cost, start[b].numpy(), jac=True, method="BFGS")
        assert float(fit.chi2_B[b]) < known.fun + 1e-3


@pytest.mark.parametrize("gate", ("softmax", "normalised_sigmoid"))
def test_em_alone_gets_there_too_where_experts_are_apart(gate):
    family = GaussianExperts(Mixture(gate, "linear", k=2), SharedExperts("linear", 1))
    data = sampled(family, LINE_THETA, 4, 500, seed=5)
    start = (LINE_THETA + 0.05).expand(4, -1)
    alone = em(family, data, start, box=wide(family), settings=SolverSettings(1e-9, 1, 3000))
    both = maximise(family, data, start, box=wide(family))
    torch.testing.assert_close(alone.chi2_B, both.chi2_B, rtol=0, atol=1e-3)


def test_the_gain_of_an_exact_family_is_its_number_of_parameters():
    count = 60
    data = sampled(LINE, LINE_THETA, count, 2000, seed=6)
    start = (LINE_THETA + 0.02).expand(count, -1)
    fit = maximise(LINE, data, start, box=wide(LINE))
    assert fit.converged_B.all() and not fit.at_box_B.any()
    truth = GaussianDeviance(LINE, data).cost(start - 0.02, torch.arange(count))
    gain = truth - fit.chi2_B
    # A shift of the scores and the weight of a single shared expert are no parameters.
    free = LINE.size - 2 - 1
    assert abs(gain.mean() - free) < 4 * math.sqrt(2 * free / count)


def test_a_variance_stops_at_the_box():
    x = torch.linspace(-1, 1, 30, dtype=torch.float64)
    family = GaussianExperts(Mixture("softmax", "linear", k=1))
    data = Samples(x[None, :, None], 2 * x[None])
    fit = maximise(family, data, torch.zeros(1, 5).double(), box=wide(family, floor=-6.0))
    assert float(fit.theta_BP[0, 4]) == -6.0
    assert fit.at_box_B.all() and fit.converged_B.all()


def test_an_expert_without_observations_stays_where_it_is():
    family = GaussianExperts(Mixture("softmax", "linear", k=2))
    data = Samples(torch.linspace(-1, 1, 40).double()[None, :, None], torch.zeros(1, 40).double())
    start = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -29.0, 5.0, 20.0, -2.0]]).double()
    fit = em(family, data, start, box=wide(family))
    assert fit.theta_BP.isfinite().all()
    torch.testing.assert_close(fit.theta_BP[0, 7:9], start[0, 7:9], rtol=0, atol=1e-6)


def test_the_expected_likelihood_has_its_maximum_at_the_truth():
    inputs = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    data = expected(LINE, LINE_THETA, inputs, n=1000.0)
    assert float(data.n_B) == pytest.approx(1000)
    curvature, gradient = GaussianDeviance(LINE, data).quadratic(
        LINE_THETA[None], torch.tensor([0])
    )
    assert gradient.abs().max() < 1e-3 * curvature[0].diagonal().max()
    sample = sampled(LINE, LINE_THETA, 1, 200_000, seed=7)
    deviance = GaussianDeviance(LINE, sample).cost(LINE_THETA[None], torch.tensor([0]))
    mean = GaussianDeviance(LINE, data).cost(LINE_THETA[None], torch.tensor([0]))
    assert float(deviance / 200) == pytest.approx(float(mean), rel=0.01)


@pytest.mark.parametrize("gate", ("softmax", "normalised_sigmoid"))
def test_a_start_without_noise_has_the_density_of_the_truth(gate):
    truth = TrueGaussianExperts(
        GaussianExperts(Mixture(gate, "linear", k=2), SharedExperts("linear", 1)), LINE_THETA
    )
    theta = truth.theta_P.clone()
    theta[[0, 5]] = 0.0
    truth = TrueGaussianExperts(truth.family, theta)
    family = GaussianExperts(Mixture(gate, "linear", k=3), SharedExperts("linear", 3))

    def start_of(times):
        rng = torch.Generator().manual_seed(0)
        return near_truth(truth, family, n=100, times=times, rng=rng)

    start = start_of(0.0)
    x, y = torch.randn(50, 1).double(), torch.randn(50).double()
    torch.testing.assert_close(
        family.log_density(start, x, y), truth.family.log_density(theta, x, y)
    )
    noise = start_of(1.0) - start
    variances = family.indices.log_variances_c
    assert (noise[variances] > 0).all() and (noise[variances] < 0.002).all()
    assert 0.001 < noise.square().mean().sqrt() < 0.006
    others = torch.ones(family.size, dtype=torch.bool)
    others[variances] = False
    torch.testing.assert_close((start_of(9.0) - start)[others], 9 * noise[others])


@pytest.mark.parametrize(
    ("make", "sentence"),
    (
        (lambda: GaussianExperts(Mixture("sigmoid", "linear")), "gate: of a density"),
        (
            lambda: GaussianExperts(Mixture("softmax", "linear", temperature=True)),
            "temperature must be False",
        ),
        (lambda: SharedExperts("linear", 0), "k: of shared experts"),
        (lambda: SharedExperts("cubic"), "expert must be one of"),
        (
            lambda: near_truth(
                TrueGaussianExperts(LINE, LINE_THETA),
                GaussianExperts(Mixture("softmax", "linear", k=1)),
                n=10,
                times=1.0,
                rng=torch.Generator(),
            ),
            "family must have as many experts",
        ),
    ),
)
def test_bad_input_is_refused(make, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        make()
