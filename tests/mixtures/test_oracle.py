"""The solver against scipy's least squares: from the same start it ends at no higher cost."""

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from sigmoid_attention.mixtures import FiniteDesign, Mixture, RawData
from sigmoid_attention.mixtures.data import LeastSquares
from sigmoid_attention.mixtures.model import free_parameters
from sigmoid_attention.mixtures.rates.setting import RateSetting, draw_truth
from sigmoid_attention.mixtures.solver import ParameterBox, chi2, minimise

SIGMA = 0.1

# Truths are well conditioned, so that no fit follows an endless valley.
SETTINGS = (
    RateSetting("sigmoid", "relu", extra=0),
    RateSetting("sigmoid", "gelu", "partially_quadratic", extra=0, d=3),
    RateSetting("softmax", "gelu", extra=0, k=3),
    RateSetting("softmax", "linear", extra=0),
    RateSetting("normalised_sigmoid", "tanh", "euclidean", extra=0),
    RateSetting("tanh", "silu", extra=0, k=1),
)


def identity(setting: RateSetting) -> str:
    family = setting.family
    return f"{family.gate}-{family.expert}-{family.score}-k{family.k}-d{family.d}"


def finite(family: Mixture, truth: torch.Tensor, n: int) -> LeastSquares:
    design = FiniteDesign.sobol(128, d=family.d)
    return design.draw(family.predict(truth, design.inputs_Qd), [n], sigma=SIGMA, seed=1)


def raw(family: Mixture, truth: torch.Tensor, n: int) -> LeastSquares:
    rng = np.random.default_rng(n)
    x = rng.uniform(-1, 1, (n, family.d))
    f = family.predict(truth, torch.from_numpy(x)).numpy()
    return RawData.of(x, f + SIGMA * rng.standard_normal(n), chunk=300)


def scipy_end(family: Mixture, data: LeastSquares, start: np.ndarray, free: np.ndarray):
    """Where scipy ends, moving only the free parameters; weights go into the residuals."""
    chunks = list(data.chunks(torch.arange(1)))
    inputs = torch.cat([chunk.inputs for chunk in chunks])
    mean = torch.cat([chunk.mean_BQ[0] for chunk in chunks])
    root = torch.cat([chunk.weight_BQ[0] for chunk in chunks]).sqrt() / SIGMA

    def whole(moving: np.ndarray) -> torch.Tensor:
        theta = start.copy()
        theta[free] = moving
        return torch.from_numpy(theta)

    def residuals(moving: np.ndarray) -> np.ndarray:
        return (root * (family.predict(whole(moving), inputs) - mean)).numpy()

    def jacobian(moving: np.ndarray) -> np.ndarray:
        slopes = family.predict_with_jacobian(whole(moving), inputs)[1]
        return (root[:, None] * slopes).numpy()[:, free]

    fit = least_squares(
        residuals, start[free], jacobian, method="lm", x_scale="jac", max_nfev=4000,
        ftol=1e-14, xtol=1e-14, gtol=1e-14,
    )  # fmt: skip
    return whole(fit.x)


@pytest.mark.parametrize(
    ("make", "n"), ((finite, 10**4), (finite, 10**9), (raw, 2000)), ids=("1e4", "1e9", "raw")
)
@pytest.mark.parametrize("setting", SETTINGS, ids=identity)
def test_the_end_is_as_low_as_scipys(setting, make, n):
    family, truth = setting.family, draw_truth(setting).theta_P
    free = free_parameters(family)
    rng = torch.Generator().manual_seed(family.size)
    jitter = 0.1 * torch.randn(family.size, generator=rng, dtype=torch.float64)
    start = truth + jitter * free
    data = make(family, truth, n)
    box = ParameterBox.around_zero(family.size, 100.0).pinned(~free, truth[~free])
    ours = minimise(family, data, start[None], sigma=SIGMA, box=box)
    theirs = scipy_end(family, data, start.numpy(), free.numpy())
    assert ours.converged_B.all() and not ours.at_box_B.any()
    best = chi2(family, data, theirs[None], SIGMA)
    assert (ours.chi2_B <= best + 1e-3).all()
    # Both moved: a start that is an end says nothing.
    assert (chi2(family, data, start[None], SIGMA) > best + 5).all()
