"""Convergence rates: how fast a loss falls with n, with an interval and the controls beside it.

Shape letters: N sample sizes, R replicates, B = N R fits, P parameters, Q inputs.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sigmoid_attention.mixtures import voronoi
from sigmoid_attention.mixtures.data import FiniteDesign
from sigmoid_attention.mixtures.gates import gate
from sigmoid_attention.mixtures.identifiability import jacobian_rank
from sigmoid_attention.mixtures.model import Mixture
from sigmoid_attention.mixtures.solver import Box, Fit, chi2, minimise

CANDIDATES = 200


@dataclass(frozen=True)
class Setting:
    """One cell of a study: everything that its numbers depend on.

    ``regime`` says what the over-specified expert's score is at the truth: "sparse" is zero beside
    the intercept (P2's regime 1), "dense" is not (regime 2). ``extra`` experts beyond the true k
    are fitted. ``jitter`` is the standard deviation of a start around the truth; a start for an
    extra expert shares the first one's place and mass.
    """

    gate: str
    expert: str
    score: str = "linear"
    regime: str = "dense"
    d: int = 2
    k: int = 2
    extra: int = 1
    sigma: float = 0.1
    jitter: float = 0.1
    starts: int = 1
    nodes: int = 256
    sizes: tuple[int, ...] = tuple(int(10 ** (2 + i / 3)) for i in range(10))
    replicates: int = 20
    truth_seed: int = 0
    seed: int = 0
    half_width: float = 10.0

    def __post_init__(self) -> None:
        if self.regime not in ("sparse", "dense"):
            raise ValueError(f"regime: must be sparse or dense, got {self.regime!r}")
        if self.extra < 0:
            raise ValueError(f"extra: must be 0 or more, got {self.extra}")

    @property
    def truth_family(self) -> Mixture:
        return Mixture(self.gate, self.expert, self.score, self.k, self.d)

    @property
    def family(self) -> Mixture:
        return replace(self.truth_family, k=self.k + self.extra)

    @property
    def key(self) -> str:
        """A hash of all of it: rows of the same key are rows of the same experiment."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


# Truths ---------------------------------------------------------------------------------------


def free_parameters(family: Mixture) -> Tensor:
    """Which parameters a fit may move, (P,): under a shift-blind gate not the last one's score.

    That holds for Euclidean scores too: |x|^2 cancels, and what is left is linear in x.
    """
    free = torch.ones(family.size, dtype=torch.bool)
    if gate(family.gate).shift:
        last = (family.k - 1) * family.atom_size
        free[last : last + family.score_size] = False
    return free


def draw_truth(setting: Setting, inputs_Qd: Tensor) -> voronoi.Truth:
    """The best conditioned of some random mixtures: of a poor one, no n within reach says much."""
    family = setting.truth_family
    rng = torch.Generator().manual_seed(setting.truth_seed)
    free = free_parameters(family)
    best, best_value = None, -1.0
    for _ in range(CANDIDATES):
        theta = _random(family, rng)
        if setting.regime == "sparse":
            theta[: family.score_size - 1] = 0.0
        value = jacobian_rank(family, theta, inputs_Qd, free).smallest
        if value > best_value:
            best, best_value = theta, value
    assert best is not None
    return voronoi.Truth(family, best)


def _random(family: Mixture, rng: torch.Generator) -> Tensor:
    normal = torch.randn(family.k, family.atom_size, generator=rng, dtype=torch.float64)
    normal[:, : family.score_size - 1] *= 2.0
    normal[:, family.score_size - 1] *= 0.5
    normal[:, family.score_size :] *= 1.5
    return normal.flatten()


# Starts ---------------------------------------------------------------------------------------


def near_truth(setting: Setting, truth: voronoi.Truth, rng: torch.Generator) -> Tensor:
    """A start: the true experts, the first one's mass shared with the extra ones, and jitter."""
    family, atoms = setting.family, truth.atoms
    shares = 1 + setting.extra
    first = atoms[0].clone()
    intercept = family.score_size - 1
    first[intercept] = _shared_intercept(family.gate, float(first[intercept]), shares)
    # Extra experts come first, so that the last one stays the reference of a shift-blind gate.
    whole = torch.cat((first.expand(shares, -1), atoms[1:])).flatten()
    jitter = torch.randn(whole.shape, generator=rng, dtype=torch.float64) * setting.jitter
    return whole + jitter * free_parameters(family)


def _shared_intercept(gate_name: str, intercept: float, shares: int) -> float:
    if gate_name == "softmax":
        return intercept - math.log(shares)
    if gate_name in ("sigmoid", "normalised_sigmoid"):
        mass = 1 / (1 + math.exp(-intercept)) / shares
        return math.log(mass / (1 - mass))
    return intercept / shares


def box(setting: Setting, truth: voronoi.Truth) -> Box:
    """The compact set that the theory asks for, with a shift-blind gate's reference held."""
    family = setting.family
    whole = Box.around_zero(family.size, setting.half_width)
    held = ~free_parameters(family)
    if not held.any():
        return whole
    atoms = torch.cat((truth.atoms[:1].expand(1 + setting.extra, -1), truth.atoms[1:])).flatten()
    return whole.pinned(held, atoms[held])


# Fits and losses ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """The fits of one setting: every loss as (N, R), with what tells whether to believe it.

    ``gain`` is (RSS(truth) - RSS(fit)) / sigma^2. Of an exactly specified, regular family its mean
    is the number of free parameters; below zero the fit is certainly no least-squares estimate.
    """

    setting: Setting
    losses: dict[str, np.ndarray]
    gain: np.ndarray
    converged: np.ndarray
    at_box: np.ndarray
    free: int


def measure(setting: Setting) -> Curve:
    """All sizes and replicates of a setting, fitted together."""
    design = FiniteDesign.sobol(setting.nodes, d=setting.d)
    truth = draw_truth(setting, design.inputs_Qd)
    truth_Q = truth.family.predict(truth.theta_P, design.inputs_Qd)
    sizes = [n for n in setting.sizes for _ in range(setting.replicates)]
    noise = setting.sigma
    data = design.draw(truth_Q, sizes, sigma=noise, seed=setting.seed)
    unit = noise or 0.1
    rng = torch.Generator().manual_seed(setting.seed + 1)
    bounds = box(setting, truth)
    best: Fit | None = None
    for _ in range(setting.starts):
        starts = torch.stack([near_truth(setting, truth, rng) for _ in sizes])
        fit = minimise(setting.family, data, starts, sigma=unit, box=bounds)
        best = fit if best is None else _better(best, fit)
    assert best is not None
    at_truth = chi2(truth.family, data, truth.theta_P.expand(len(sizes), -1), unit)
    shape = (len(setting.sizes), setting.replicates)
    as_grid = lambda values: values.reshape(shape).numpy()  # noqa: E731
    losses = losses_of(setting.family, best.theta_BP, truth, truth_Q, design.inputs_Qd)
    return Curve(
        setting,
        {name: as_grid(loss) for name, loss in losses.items()},
        as_grid(at_truth - best.chi2_B),
        as_grid(best.converged_B),
        as_grid(best.at_box_B),
        bounds.free,
    )


def _better(one: Fit, other: Fit) -> Fit:
    second = other.chi2_B < one.chi2_B
    choose = lambda a, b: torch.where(second[:, None] if a.dim() == 2 else second, b, a)  # noqa: E731
    fields = ("theta_BP", "chi2_B", "converged_B", "iterations_B", "at_box_B")
    return Fit(*(choose(getattr(one, name), getattr(other, name)) for name in fields))


def losses_of(
    family: Mixture, theta_BP: Tensor, truth: voronoi.Truth, truth_Q: Tensor, inputs_Qd: Tensor
) -> dict[str, Tensor]:
    """Never one number: the papers' losses, their parts, and two that no split can fool."""
    square = voronoi.voronoi(family, theta_BP, truth)
    plain = voronoi.voronoi(family, theta_BP, truth, powers=dict.fromkeys(family.parts, 1.0))
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


# Slopes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slope:
    """The slope of log loss on log n, with a 95 % bootstrap interval over replicates."""

    value: float
    low: float
    high: float

    def holds(self, claim: float) -> bool:
        return self.low <= claim <= self.high


def slope(
    sizes: tuple[int, ...],
    losses_NR: np.ndarray,
    *,
    statistic: str = "median",
    draws: int = 1000,
    seed: int = 0,
) -> Slope:
    """Least squares of the log of the replicates' median (or mean) on log n.

    Replicates are drawn anew within each n; a fit that is not finite is left out.
    """
    centre = {"median": np.nanmedian, "mean": np.nanmean}[statistic]
    log_n = np.log(np.asarray(sizes, dtype=float))
    log_n = log_n - log_n.mean()

    def line(values: np.ndarray) -> np.ndarray:
        heights = np.log(np.maximum(centre(values, axis=-1), 1e-300))
        return (heights * log_n).sum(-1) / (log_n**2).sum()

    rng = np.random.default_rng(seed)
    count = losses_NR.shape[1]
    chosen = rng.integers(0, count, (draws, *losses_NR.shape))
    resampled = np.take_along_axis(losses_NR[None], chosen, axis=-1)
    low, high = np.quantile(line(resampled), (0.025, 0.975))
    return Slope(float(line(losses_NR)), float(low), float(high))
