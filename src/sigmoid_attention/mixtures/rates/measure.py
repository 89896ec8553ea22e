"""The measurement of convergence rates: losses of many fits over n, with checks of each fit.

Shape letters: N sample sizes, R replicates, B = N R fits, P parameters, Q inputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sigmoid_attention.extras import lab_imports
from sigmoid_attention.mixtures import voronoi
from sigmoid_attention.mixtures.data import FiniteDesign, LeastSquares, Samples
from sigmoid_attention.mixtures.model import Mixture
from sigmoid_attention.mixtures.multistart import multistart
from sigmoid_attention.mixtures.rates.setting import RateSetting, box, draw_truth, start
from sigmoid_attention.mixtures.solver import DEFAULTS, SolverSettings, chi2

with lab_imports("sigmoid_attention.mixtures"):
    import numpy as np

# The unit of the stopping rule without noise.
UNIT_WITHOUT_NOISE = 0.1


@dataclass(frozen=True)
class RateCurve:
    """The fits of one setting: every loss as (N, R), with checks of each fit.

    ``gain`` is (RSS(truth) - RSS(fit)) / sigma^2. For an exactly specified, regular family its mean
    is the number of free parameters. A fit with a negative gain is not the least-squares estimate.
    ``theta`` holds the estimates, (N, R, P).
    """

    setting: RateSetting
    losses: dict[str, np.ndarray]
    gain: np.ndarray
    converged: np.ndarray
    at_box: np.ndarray
    theta: np.ndarray
    free: int


def measure(setting: RateSetting, settings: SolverSettings = DEFAULTS) -> RateCurve:
    """Fit all sizes and replicates of a setting on its finite design, in one batch.

    Example:
        >>> from sigmoid_attention.mixtures.rates.setting import RateSetting
        >>> curve = measure(RateSetting("sigmoid", "gelu", extra=0, sizes=(1000,), replicates=3))
        >>> curve.losses["L2"].shape
        (1, 3)
    """
    truth = draw_truth(setting)
    inputs = setting.inputs_Qd
    truth_Q = truth.family.predict(truth.theta_P, inputs)
    sizes = [n for n in setting.sizes for _ in range(setting.replicates)]
    data = FiniteDesign(inputs).draw(truth_Q, sizes, sigma=setting.sigma, seed=setting.seed)
    return _curve(setting, data, truth, settings)


def measure_continuous(
    setting: RateSetting, settings: SolverSettings = DEFAULTS
) -> list[RateCurve]:
    """`measure` with inputs that are uniform on the cube, the law of the papers, for each size.

    Losses that are averages over inputs use the nodes of the finite design, for comparison with
    `measure`. The cost grows with n.
    """
    truth = draw_truth(setting)
    return [
        _curve(replace(setting, sizes=(n,)), data, truth, settings)
        for n, data in continuous_data(setting)
    ]


def continuous_data(setting: RateSetting) -> Iterator[tuple[int, Samples]]:
    """The data sets of all replicates for each size, with inputs that are uniform on the cube."""
    truth = draw_truth(setting)
    for index, n in enumerate(setting.sizes):
        yield (
            n,
            Samples.draw(
                lambda inputs: truth.family.predict(truth.theta_P, inputs),
                count=setting.replicates,
                n=n,
                d=setting.d,
                sigma=setting.sigma,
                seed=setting.seed + index,
            ),
        )


def _curve(
    setting: RateSetting, data: LeastSquares, truth: voronoi.TrueMixture, settings: SolverSettings
) -> RateCurve:
    unit = setting.sigma or UNIT_WITHOUT_NOISE
    bounds = box(setting, truth)
    rng = torch.Generator().manual_seed(setting.seed + 1)
    starts_BSP = torch.stack(
        [
            torch.stack([start(setting, truth, rng) for _ in range(setting.starts)])
            for _ in range(len(data.n_B))
        ]
    )
    fit = multistart(
        setting.family, data, starts_BSP, sigma=unit, box=bounds, settings=settings
    ).best
    count = len(fit.theta_BP)
    at_truth = chi2(truth.family, data, truth.theta_P.expand(count, -1), unit)
    shape = (len(setting.sizes), setting.replicates)
    as_grid = lambda values: values.reshape(*shape, *values.shape[1:]).numpy()  # noqa: E731
    inputs = setting.inputs_Qd
    losses = losses_of(setting.family, fit.theta_BP, truth, inputs)
    return RateCurve(
        setting,
        {name: as_grid(loss) for name, loss in losses.items()},
        as_grid(at_truth - fit.chi2_B),
        as_grid(fit.converged_B),
        as_grid(fit.at_box_B),
        as_grid(fit.theta_BP),
        bounds.free,
    )


def losses_of(
    family: Mixture, theta_BP: Tensor, truth: voronoi.TrueMixture, inputs_Qd: Tensor
) -> dict[str, Tensor]:
    """The losses of the papers, their parts, and two losses that ignore split experts, (B,).

    "exact" sums the errors in cells with one fitted expert. "over" is the largest error of an
    expert's parameters in a cell with several; the papers' tables give rates of this error.
    "over_weighted" is its mean by mass. D1 and D2 are the losses with powers 1 and 2 in crowded
    cells; Yan et al. 2025 has other powers than 2 for the parts of a fully quadratic score.
    """
    square = voronoi.voronoi(family, theta_BP, truth, powers=voronoi.quadratic_powers(family))
    plain = voronoi.voronoi(family, theta_BP, truth, powers=dict.fromkeys(family.parts, 1.0))
    truth_Q = truth.family.predict(truth.theta_P, inputs_Qd)
    return {
        "L2": voronoi.l2(family, theta_BP, truth_Q, inputs_Qd),
        "contribution": voronoi.contribution_loss(family, theta_BP, truth, inputs_Qd),
        "exact": square.exact_Bt.sum(-1),
        "over": square.largest_Bt.amax(-1),
        "over_weighted": square.weighted_Bt.sum(-1),
        "mass": square.mass_Bt.sum(-1),
        "D1": plain.total_B,
        "D2": square.total_B,
    }
