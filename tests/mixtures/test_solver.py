"""The solver reaches the least-squares estimate: its gain over the truth agrees with theory."""

import numpy as np
import pytest
import torch

from sigmoid_attention.mixtures import FiniteDesign, RawData, binned
from sigmoid_attention.mixtures.rates.measure import measure
from sigmoid_attention.mixtures.rates.setting import RateSetting
from sigmoid_attention.mixtures.rates.slopes import slope
from sigmoid_attention.mixtures.solver import ParameterBox, chi2, minimise


@pytest.mark.parametrize(
    ("gate", "expert"), (("sigmoid", "relu"), ("softmax", "gelu"), ("sigmoid", "tanh"))
)
def test_the_gain_of_an_exact_family_is_its_number_of_parameters(gate, expert):
    sizes = tuple(10**power for power in (4, 6, 8, 10, 12))
    curve = measure(RateSetting(gate, expert, extra=0, sizes=sizes, replicates=40))
    assert curve.converged.all()
    assert curve.gain.min() > 0
    # The gain is chi-squared: its mean over m fits errs by sqrt(2 free / m).
    error = np.sqrt(2 * curve.free / curve.gain.size)
    assert abs(curve.gain.mean() - curve.free) < 4 * error
    rate = slope(sizes, curve.losses["exact"])
    assert rate.near(-0.5)


def test_raw_data_and_its_means_have_the_same_optimum():
    family = RateSetting("sigmoid", "tanh", d=1, extra=0).family
    rng = np.random.default_rng(0)
    x = np.round(rng.uniform(-1, 1, (5000, 1)), 2)
    theta = 2 * torch.randn(family.size, dtype=torch.float64)
    y = family.predict(theta, torch.from_numpy(x)).numpy() + 0.1 * rng.standard_normal(5000)
    raw, means = RawData.of(x, y, chunk=777), binned(x, y, bins=4001)
    box = ParameterBox.around_zero(family.size, 20)
    fits = [minimise(family, data, theta[None], sigma=0.1, box=box) for data in (raw, means)]
    assert all(fit.converged_B.all() for fit in fits)
    torch.testing.assert_close(fits[0].chi2_B, fits[1].chi2_B, rtol=0, atol=1e-3)
    # One sum of squares, however it is kept.
    at = fits[0].theta_BP
    torch.testing.assert_close(chi2(family, raw, at, 0.1), chi2(family, means, at, 0.1))


def test_no_observation_beyond_the_box_and_pins_hold():
    setting = RateSetting("sigmoid", "gelu", extra=0)
    design = FiniteDesign.sobol(64, d=2)
    family = setting.family
    theta = torch.randn(family.size, dtype=torch.float64)
    data = design.draw(family.predict(theta, design.inputs_Qd), [1000] * 8, sigma=0.1, seed=0)
    box = ParameterBox.around_zero(family.size, 0.3).pinned(
        torch.tensor([1]), torch.tensor(0.25).double()
    )
    fit = minimise(family, data, theta.expand(8, -1), sigma=0.1, box=box)
    assert (fit.theta_BP.abs() <= 0.3).all()
    assert (fit.theta_BP[:, 1] == 0.25).all()
    assert fit.at_box_B.any()
    assert (fit.chi2_B <= chi2(family, data, theta.clamp(-0.3, 0.3).expand(8, -1), 0.1) + 1).all()


def test_a_finite_design_has_the_moments_of_its_observations():
    design = FiniteDesign.sobol(16, d=2)
    truth = torch.linspace(-1, 1, 16, dtype=torch.float64)
    n = 10**6
    data = design.draw(truth, [n] * 200, sigma=0.5, seed=3)
    assert (data.n_B == n).all()
    z = (data.mean_BQ - truth) * data.count_BQ.sqrt() / 0.5
    assert abs(z.mean()) < 4 / np.sqrt(z.numel())
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / z.numel())
    within = data.within_B / (0.25 * (n - 16))
    assert abs(within.mean() - 1) < 4 * np.sqrt(2 / n / 200)


@pytest.mark.parametrize(
    ("make", "sentence"),
    (
        (lambda: FiniteDesign(torch.zeros(1, 2)), "inputs must be"),
        (lambda: FiniteDesign(torch.tensor([[0.0], [np.nan]])), "inputs must be finite"),
        (lambda: RawData.of(np.zeros((3, 1)), np.zeros(2)), "data must be"),
        (lambda: RawData.of(np.zeros((2, 1)), np.array([0, np.inf])), "data must be finite"),
        (lambda: ParameterBox(torch.ones(2), torch.zeros(2)), "box: a lower end"),
        (lambda: RateSetting("sigmoid", "relu", regime="thin"), "regime must be"),
    ),
)
def test_bad_input_is_refused(make, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        make()
