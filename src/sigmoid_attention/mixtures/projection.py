"""Pseudo-true parameters: the limit of fits when the truth is not a member of the family.

Shape letters: S starts, M distinct minimisers, P parameters, Q inputs.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from sigmoid_attention.mixtures.data import Summaries
from sigmoid_attention.mixtures.distance import d3, matched
from sigmoid_attention.mixtures.model import Mixture
from sigmoid_attention.mixtures.rates.setting import RateSetting, box, draw_truth, start
from sigmoid_attention.mixtures.solver import Fit, ParameterBox, SolverSettings, minimise

# The unit of a descent's stopping rule: a descent stops when it gains less than a ten-thousandth.
PRECISION = 1e-6
# Root mean square distances that differ by less count as equal. Descents to the same minimiser
# agree to 1e-16; the kinks of ReLU experts cause separate minima that differ by 1e-8 to 1e-6.
TIE = 1e-9
# There is no noise here that would limit the useful accuracy, so descents may be long.
PATIENT = SolverSettings(max_iter=2000)


@dataclass(frozen=True)
class ApproximationProblem:
    r"""The problem of approximating a function by a family, within a box of parameters.

    .. math:: \bar G = \arg\min_{G \in \mathcal G_k} \operatorname{mean}_x (f_G(x) - f^*(x))^2

    Args:
        target_Q: the function at the inputs.

    Raises:
        ValueError: a target of the wrong shape, or not finite.
    """

    family: Mixture
    target_Q: Tensor
    inputs_Qd: Tensor
    box: ParameterBox

    def __post_init__(self) -> None:
        nodes = self.inputs_Qd.shape[:1]
        if self.target_Q.shape != nodes or not self.target_Q.isfinite().all():
            raise ValueError(
                f"target must be finite, {tuple(nodes)}, got {tuple(self.target_Q.shape)}"
            )

    def descend(self, starts_SP: Tensor) -> tuple[Fit, Tensor]:
        """The ends of descents, and their root mean square distances to the function, (S,)."""
        means_SQ = self.target_Q.expand(len(starts_SP), -1)
        none_S = self.target_Q.new_zeros(len(starts_SP))
        exact = Summaries(self.inputs_Qd, means_SQ, torch.ones_like(means_SQ), none_S)
        fit = minimise(
            self.family, exact, starts_SP, sigma=PRECISION, box=self.box, settings=PATIENT
        )
        return fit, (fit.chi2_B / len(self.target_Q)).sqrt() * PRECISION


@dataclass(frozen=True)
class Projection:
    """The members of a family nearest to a function, found by descents from many starts.

    ``theta_MP`` are the distinct minimisers, the best first. ``floor`` is their root mean square
    distance to the function. ``found_M`` counts the starts that ended at each. ``at_box_M`` is True
    if a minimiser lies on the boundary of the box; it is then not a stationary point and depends on
    the box. A minimiser found by a single start of many may not be the global one. As many
    minimisers as starts are samples of a continuum. ``converged`` is the share of starts that
    converged.
    """

    theta_MP: Tensor
    floor: float
    found_M: Tensor
    at_box_M: Tensor
    starts: int
    converged: float


def project(problem: ApproximationProblem, starts_SP: Tensor, *, apart: float = 1e-3) -> Projection:
    """The set of best approximations, by descents from many starts.

    Source: Nguyen et al. 2024, regime 2: misspecified fits converge to this set and not to the
    truth.

    Args:
        apart: minimisers nearer to each other than this (``distance.matched``) count as one.

    Raises:
        ValueError: no starts, or starts that are not finite or of another size.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import FiniteDesign, Mixture
        >>> from sigmoid_attention.mixtures.solver import ParameterBox
        >>> family, inputs = Mixture("sigmoid", "constant", k=1), FiniteDesign.sobol(32, d=1)
        >>> target = inputs.inputs_Qd[:, 0].sigmoid()
        >>> box = ParameterBox.around_zero(3, 10.0)
        >>> problem = ApproximationProblem(family, target, inputs.inputs_Qd, box)
        >>> found = project(problem, starts_in(problem.box, 4, seed=0))
        >>> expected = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
        >>> found.floor < 1e-6, torch.allclose(found.theta_MP, expected, atol=1e-6)
        (True, True)
    """
    if len(starts_SP) == 0:
        raise ValueError("starts must be 1 or more, got none")
    fit, distance_S = problem.descend(starts_SP)
    floor = float(distance_S.min())
    ties = torch.nonzero(distance_S <= floor + TIE).squeeze(-1)
    ends = ties[distance_S[ties].argsort()]
    chosen, counts = [int(ends[0])], [1]
    for end in ends[1:].tolist():
        gap, nearest = matched(problem.family, fit.theta_BP[chosen], fit.theta_BP[end]).min(0)
        if gap > apart:
            chosen.append(end)
            counts.append(1)
        else:
            counts[int(nearest)] += 1
    return Projection(
        fit.theta_BP[chosen],
        floor,
        torch.tensor(counts),
        fit.at_box_B[chosen],
        len(starts_SP),
        float(fit.converged_B.double().mean()),
    )


def distance_to(problem: ApproximationProblem, projection: Projection, theta_BP: Tensor) -> Tensor:
    """D3 of fits to the set of minimisers, which may be points or a continuum, (B,).

    ``projection`` holds only samples of a continuum, and no fit converges to a sample. A descent
    without noise therefore starts from each fit as well. If it reaches the floor, its end is a
    minimiser; for a fit close to the set it is about the nearest one. The distance is to the
    nearest of all these minimisers.
    """
    fit, distance_B = problem.descend(theta_BP)
    own_B = matched(problem.family, theta_BP, fit.theta_BP)
    own_B = torch.where(distance_B <= projection.floor + TIE, own_B, torch.inf)
    return torch.minimum(own_B, d3(problem.family, theta_BP, projection.theta_MP))


def starts_in(box: ParameterBox, count: int, *, seed: int) -> Tensor:
    """Starts around the middle of a box, (count, P), at distances on a logarithmic scale.

    The distance of a start is scaled by a factor from a hundredth to all of the half width, evenly
    on a logarithmic scale. A wide box is therefore also searched near its middle.
    """
    rng = torch.Generator().manual_seed(seed)
    middle, half = (box.low_P + box.high_P) / 2, (box.high_P - box.low_P) / 2
    reach = torch.exp(math.log(0.01) * torch.rand(count, 1, generator=rng, dtype=torch.float64))
    away = torch.randn(count, len(middle), generator=rng, dtype=torch.float64)
    return torch.clamp(middle + half * reach * away, box.low_P, box.high_P)


def approximation(setting: RateSetting) -> ApproximationProblem:
    """The truth of a setting, approximated by its family in its box."""
    truth, inputs = draw_truth(setting), setting.inputs_Qd
    target_Q = truth.family.predict(truth.theta_P, inputs)
    return ApproximationProblem(setting.family, target_Q, inputs, box(setting, truth))


def pseudo_true(setting: RateSetting, *, starts: int = 64) -> Projection:
    """The minimisers that fits of this setting converge to; noise and sizes have no effect.

    Half of the starts are those of fits near the truth. The other half lie anywhere in the box of
    the setting (``radius`` around the truth with its first expert repeated, or ``half_width``).
    Without over-specification, or where the truth is a member of the family with some experts dead
    or split, the floor is 0 and the minimisers are the parameters that represent the truth.

    Example:
        >>> from sigmoid_attention.mixtures.rates.setting import RateSetting
        >>> found = pseudo_true(RateSetting("sigmoid", "gelu", extra=0), starts=8)
        >>> found.floor < 1e-6, len(found.theta_MP)
        (True, 1)
    """
    # Noise, sizes and replicates differ among the parts of a study, but change no minimiser.
    same = replace(
        setting, start="near_truth", sigma=0.0, sizes=(1,), replicates=1, starts=1, seed=0
    )
    return _pseudo_true(same, starts)


@lru_cache(maxsize=64)
def _pseudo_true(setting: RateSetting, starts: int) -> Projection:
    problem, truth = approximation(setting), draw_truth(setting)
    rng = torch.Generator().manual_seed(setting.seed)
    near = [start(setting, truth, rng)[None] for _ in range(starts // 2)]
    anywhere = starts_in(problem.box, starts - len(near), seed=setting.seed)
    return project(problem, torch.cat((*near, anywhere)))


def distance_to_pseudo_true(setting: RateSetting, theta_BP: Tensor) -> Tensor:
    """D3 of the fits of a setting: their distance to the minimisers they converge to, (B,).

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures.rates.measure import measure
        >>> from sigmoid_attention.mixtures.rates.setting import RateSetting
        >>> setting = RateSetting("sigmoid", "gelu", extra=0, sizes=(10**6, 10**12), replicates=1)
        >>> theta_BP = torch.from_numpy(measure(setting).theta)[:, 0]
        >>> less, more = distance_to_pseudo_true(setting, theta_BP)
        >>> bool(more < less / 100)
        True
    """
    return distance_to(approximation(setting), pseudo_true(setting), theta_BP)
