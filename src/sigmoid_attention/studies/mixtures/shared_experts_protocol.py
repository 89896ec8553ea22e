"""The simulations of Nguyen et al. 2025: four truths, their data, and fits from nearby starts.

Shape letters: B data sets, Q inputs, M minimisers, P parameters.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sigmoid_attention.lab.study import Row
from sigmoid_attention.mixtures import Mixture
from sigmoid_attention.mixtures.data import Samples
from sigmoid_attention.mixtures.gaussian import (
    EM,
    GaussianDeviance,
    GaussianExperts,
    SharedExperts,
    TrueGaussianExperts,
    em,
    expected,
    losses,
    maximise,
    near_truth,
)
from sigmoid_attention.mixtures.identifiability import rank_of
from sigmoid_attention.mixtures.solver import ParameterBox

SIZES = tuple(round(10 ** (2 + i / 3)) for i in range(10))
HALF_WIDTH = 3.0
# EM stops when an iteration adds less than this to the log likelihood per observation, or at the
# paper's 1000 iterations. The paper gives 1e-6 without a unit; for the sum over all observations
# hardly any fit would stop earlier.
TOLERANCE = 1e-6
# The compact set: the truths' parameters are at most 12, their variances at least 0.2.
LARGEST, LOG_VARIANCES = 40.0, (math.log(1e-4), math.log(1e4))

# Exponents in crowded cells; parts that are not named have 2.
LINEAR: losses.Powers = {
    "beta1": losses.SYSTEM, "eta_a": losses.HALF_SYSTEM, "eta_b": losses.SYSTEM,
    "a": losses.HALF_SYSTEM, "b": losses.SYSTEM, "variance": losses.HALF_SYSTEM,
}  # fmt: skip


@dataclass(frozen=True)
class TheoremSetting:
    """A setting of the paper: its truth, its loss, and the slope on log(log n / n) of its figure.

    ``routed`` has a row (beta1, beta0, expert's parameters, variance) for each true expert,
    ``shared`` one (expert's parameters, variance).
    """

    name: str
    gate: str
    experts: tuple[str, str]
    routed: tuple[tuple[float, ...], ...]
    shared: tuple[float, ...]
    published: float
    powers: losses.Powers
    dense: bool = False

    @property
    def truth(self) -> TrueGaussianExperts:
        rows = [(*row[:-1], math.log(row[-1])) for row in self.routed]
        shared = (*self.shared[:-1], math.log(self.shared[-1]), 0.0)
        theta = torch.tensor([*itertools.chain(*rows, shared)], dtype=torch.float64)
        return TrueGaussianExperts(self.family(), theta)

    def family(self, extra: int = 0) -> GaussianExperts:
        """With ``extra`` routed and shared experts beyond the truth's."""
        of_shared, of_routed = self.experts
        routed = Mixture(self.gate, of_routed, k=len(self.routed) + extra)
        return GaussianExperts(routed, SharedExperts(of_shared, 1 + extra))


# The paper's routed ReLU expert is eta2 ReLU(eta1 x); of its shared one, with kappa0 = 0, we take
# it to be kappa2 ReLU(kappa1 x + kappa0). "Scale" is eta2 and kappa2, which come last here.
RELU = ("relu+bias+scale", "relu+scale")
THEOREMS = (
    TheoremSetting(
        "1: softmax, ReLU", "softmax", RELU,
        ((5.0, -0.5, -12.0, 4.0, 0.4), (5.0, 0.5, 12.0, 4.0, 0.4)),
        (6.0, 0.0, -8.0, 0.25), 0.451, {},
    ),
    TheoremSetting(
        "2: softmax, linear", "softmax", ("linear", "linear"),
        ((5.0, -0.5, 8.0, 2.0, 0.4), (5.0, 0.5, -6.0, 1.0, 0.4)),
        (2.0, 0.0, 0.2), 0.517, LINEAR,
    ),
    TheoremSetting(
        "3: normalised sigmoid, sparse, ReLU", "normalised_sigmoid", RELU,
        ((0.0, -0.5, -12.0, 4.0, 0.4), (0.0, 0.5, 12.0, 4.0, 0.4)),
        (6.0, 0.0, -8.0, 0.25), 0.46, {},
    ),
    TheoremSetting(
        "4: normalised sigmoid, dense, linear", "normalised_sigmoid", (RELU[0], "linear"),
        ((5.0, -0.5, 8.0, 2.0, 0.4), (5.0, 0.5, -6.0, 1.0, 0.4)),
        (6.0, 0.0, -8.0, 0.25), 0.552, {}, dense=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class SharedExpertsSetting:
    """Some data sets of one size, and the settings of their fits.

    Args:
        theorem: index in ``THEOREMS``.
        first, count: replicates; random data depend on theorem, n and replicate only.
        start: distance of the start from the truth, relative to the published code.
        to_the_end: continue from the end of EM to the maximum of the likelihood.
        extra: routed and shared experts in addition to the true ones.
    """

    theorem: int
    n: int
    first: int
    count: int
    start: float = 1.0
    to_the_end: bool = False
    extra: int = 1

    @property
    def replicates(self) -> range:
        return range(self.first, self.first + self.count)


# Runs -----------------------------------------------------------------------------------------


def run(setting: SharedExpertsSetting) -> Iterator[Row]:
    """The losses of each fit, and the deviance of the truth minus that of the fit."""
    theorem = THEOREMS[setting.theorem]
    truth, family = theorem.truth, theorem.family(setting.extra)
    data, bounds = sampled(setting), box(family)
    start_BP = torch.stack([_start(setting, family, replicate) for replicate in setting.replicates])
    if setting.to_the_end:
        fit = maximise(family, data, start_BP, box=bounds)
    else:
        stop = replace(EM, tol=2 * TOLERANCE * setting.n)
        fit = em(family, data, start_BP, box=bounds, settings=stop)
    if setting.extra == 0:
        score_QP = truth.family.score(truth.theta_P, data.inputs_BQd[0], data.observations_BQ[0])[1]
        yield Row("seen", float(rank_of(score_QP).rank), n=float(setting.n))
    at_truth = truth.theta_P.expand(setting.count, -1)
    gain = (
        GaussianDeviance(truth.family, data).cost(at_truth, torch.arange(setting.count))
        - fit.chi2_B
    )
    for quantity, loss_B in {**losses_of(setting, fit.theta_BP), "gain": gain}.items():
        for replicate, value, converged, at_box in zip(
            setting.replicates,
            loss_B.tolist(),
            fit.converged_B.tolist(),
            fit.at_box_B.tolist(),
            strict=True,
        ):
            yield Row(quantity, value, float(setting.n), replicate, -1, converged, at_box)


def losses_of(setting: SharedExpertsSetting, theta_BP: Tensor) -> dict[str, Tensor]:
    """The theorem's loss, and the error of the experts for any gate."""
    theorem = THEOREMS[setting.theorem]
    truth, family = theorem.truth, theorem.family(setting.extra)
    if theorem.dense:
        members = pseudo_true(setting.theorem) if setting.extra else truth.theta_P[None]
        routed_B = losses.matched(family, theta_BP, members)
    else:
        routed_B = losses.routed_loss(family, theta_BP, truth, theorem.powers).total_B
    shared_B = losses.shared_loss(family, theta_BP, truth, theorem.powers).total_B
    return {
        "loss": routed_B + shared_B,
        "experts": losses.expert_loss(family, theta_BP, truth, _grid(100)),
    }


def _grid(count: int) -> Tensor:
    """Midpoints of equal parts of the inputs' interval, (count, 1)."""
    step = 2 * HALF_WIDTH / count
    return (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) * step - HALF_WIDTH


@lru_cache(maxsize=1)
def pseudo_true(theorem: int) -> Tensor:
    """Maxima of the expected likelihood near the truth, (M, P), each with one extra expert.

    This is the dense regime: its gates cannot share a true expert. The family contains the truth
    only in the limit where the weight of an expert is 0.
    """
    truth, family = THEOREMS[theorem].truth, THEOREMS[theorem].family(1)
    data = expected(truth.family, truth.theta_P, _grid(100), n=SIZES[-1], order=12)
    rng = torch.Generator().manual_seed(theorem)
    starts = [near_truth(truth, family, n=SIZES[0], times=1.0, rng=rng)[None] for _ in range(4)]
    return torch.cat(
        [maximise(family, data, start, box=box(family), warm=200).theta_BP for start in starts]
    )


def sampled(setting: SharedExpertsSetting) -> Samples:
    """The data sets: x uniform on [-3, 3], y from the truth."""
    truth = THEOREMS[setting.theorem].truth
    inputs, answers = [], []
    for replicate in setting.replicates:
        rng = _generator(setting, replicate, "data")
        x = (2 * torch.rand(setting.n, 1, generator=rng, dtype=torch.float64) - 1) * HALF_WIDTH
        inputs.append(x)
        answers.append(truth.family.sample(truth.theta_P, x, rng))
    return Samples(torch.stack(inputs), torch.stack(answers))


def _start(setting: SharedExpertsSetting, family: GaussianExperts, replicate: int) -> Tensor:
    rng = _generator(setting, replicate, "start")
    truth = THEOREMS[setting.theorem].truth
    return near_truth(truth, family, n=setting.n, times=setting.start, rng=rng)


def _generator(setting: SharedExpertsSetting, replicate: int, purpose: str) -> torch.Generator:
    stream = ("data", "start").index(purpose)
    seeds = np.random.SeedSequence([setting.theorem, setting.n, replicate, stream])
    return torch.Generator().manual_seed(int(seeds.generate_state(1)[0]))


def box(family: GaussianExperts) -> ParameterBox:
    """The compact set of the theory, with a lower bound of the variances."""
    low = torch.full((family.size,), -LARGEST, dtype=torch.float64)
    high = -low
    low[family.indices.log_variances_c], high[family.indices.log_variances_c] = LOG_VARIANCES
    return ParameterBox(low, high)
