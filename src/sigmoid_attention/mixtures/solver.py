"""A batched Levenberg-Marquardt solver for many problems of one family.

Shape letters: B problems, A of them active, Q inputs, P parameters.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sigmoid_attention.mixtures.data import LeastSquares
from sigmoid_attention.mixtures.model import Mixture
from sigmoid_attention.mixtures.objective import Objective, SumOfSquares


@dataclass(frozen=True)
class SolverSettings:
    """The stopping rule.

    ``tol`` is in units of chi2. A fit stops when the predicted decrease of chi2 is at most ``tol``
    for ``patience`` steps in a row. The distance to the optimum is then small compared with the
    statistical uncertainty of the fit, at every n.
    """

    tol: float = 1e-4
    patience: int = 3
    max_iter: int = 4000


DEFAULTS = SolverSettings()


@dataclass(frozen=True)
class Fit:
    """The fits of B problems.

    ``chi2`` is RSS / sigma^2, with the squares about the means included, or a deviance.
    ``converged`` is True if the stopping rule was met. A fit that did not converge is the last
    iterate and not an estimate.
    """

    theta_BP: Tensor
    chi2_B: Tensor
    converged_B: Tensor
    iterations_B: Tensor
    at_box_B: Tensor


@dataclass(frozen=True)
class ParameterBox:
    """Closed intervals of the parameters; equal ends fix a parameter."""

    low_P: Tensor
    high_P: Tensor

    def __post_init__(self) -> None:
        if not (self.low_P <= self.high_P).all():
            raise ValueError("box: a lower end lies above its upper end")

    @classmethod
    def around_zero(cls, size: int, half_width: float) -> "ParameterBox":
        high = torch.full((size,), float(half_width), dtype=torch.float64)
        return cls(-high, high)

    def pinned(self, indices: Tensor, values: Tensor) -> "ParameterBox":
        """The same box with some parameters fixed."""
        low, high = self.low_P.clone(), self.high_P.clone()
        low[indices] = high[indices] = values
        return ParameterBox(low, high)

    @property
    def free(self) -> int:
        return int((self.low_P < self.high_P).sum())


def chi2(family: Mixture, data: LeastSquares, theta_BP: Tensor, sigma: float) -> Tensor:
    """RSS / sigma^2 of every problem, (B,)."""
    objective = SumOfSquares(family, data, sigma)
    return objective.cost(theta_BP, torch.arange(len(theta_BP))) + objective.constant_B


def minimise(
    family: Mixture,
    data: LeastSquares,
    start_BP: Tensor,
    *,
    sigma: float,
    box: ParameterBox,
    settings: SolverSettings = DEFAULTS,
) -> Fit:
    """A local least-squares estimate for each problem, from its own start, inside the box."""
    objective = SumOfSquares(family, data, sigma)
    fit = descend(objective, start_BP, box=box, settings=settings)
    return replace(fit, chi2_B=fit.chi2_B + objective.constant_B)


def descend(
    objective: Objective,
    start_BP: Tensor,
    *,
    box: ParameterBox,
    settings: SolverSettings = DEFAULTS,
) -> Fit:
    """A local minimum of each problem, from its own start; ``chi2`` without the constant.

    Steps solve (C + damping diag) step = g, with the objective's quadratic model. Damping follows
    Nielsen's rule. The diagonal is the elementwise maximum over iterations. A parameter at an end
    of its interval is fixed while the step would leave the interval.

    Raises:
        ValueError: a start that is not finite, or of another number of parameters than the box.
    """
    check_start(start_BP, box)
    theta = torch.clamp(start_BP, box.low_P, box.high_P)
    active = torch.arange(len(theta))
    state = _State(theta, objective.cost(theta, active))
    for iteration in range(settings.max_iter):
        if len(active) == 0:
            break
        state.iterations[active] = iteration + 1
        active = active[~_step(objective, state, active, box, settings)]
    at_box = ((state.theta <= box.low_P) | (state.theta >= box.high_P)) & (box.low_P < box.high_P)
    return Fit(state.theta, state.cost, state.converged, state.iterations, at_box.any(-1))


def check_start(start_P: Tensor, box: ParameterBox) -> None:
    """``ValueError`` unless starts (..., P) are finite and have the parameters of the box."""
    if start_P.shape[-1] != len(box.low_P) or not start_P.isfinite().all():
        raise ValueError(
            f"start must be finite, with the box's {len(box.low_P)} parameters a problem, "
            f"got {tuple(start_P.shape)}"
        )


class _State:
    def __init__(self, theta: Tensor, cost: Tensor) -> None:
        count = len(theta)
        self.theta, self.cost = theta, cost
        self.damping, self.growth = cost.new_full((count,), 1e-3), cost.new_full((count,), 2.0)
        self.scale = torch.zeros_like(theta)
        self.quiet = torch.zeros(count, dtype=torch.int64)
        self.iterations = torch.zeros(count, dtype=torch.int64)
        self.converged = torch.zeros(count, dtype=torch.bool)


def _step(
    objective: Objective, state: _State, active: Tensor, box: ParameterBox, settings: SolverSettings
) -> Tensor:
    """Take one step of the active problems; return True for the finished ones."""
    theta, cost, damping = state.theta[active], state.cost[active], state.damping[active]
    curvature, gradient = objective.quadratic(theta, active)
    diagonal = curvature.diagonal(dim1=-2, dim2=-1)
    scale = torch.maximum(state.scale[active], diagonal)
    state.scale[active] = scale
    rests = (box.low_P == box.high_P) | ((theta <= box.low_P) & (gradient <= 0))
    rests = rests | ((theta >= box.high_P) & (gradient >= 0))
    gradient = gradient.masked_fill(rests, 0.0)
    system = curvature.masked_fill(rests[..., None] | rests[..., None, :], 0.0)
    # A column of zeros (a dead expert) must not make the system singular.
    floor = torch.finfo(theta.dtype).tiny + 1e-12 * scale.amax(-1, keepdim=True)
    damped = system.diagonal(dim1=-2, dim2=-1) + damping[:, None] * scale.maximum(floor)
    system = system.diagonal_scatter(torch.where(rests, 1.0, damped), dim1=-2, dim2=-1)
    factor, trouble = torch.linalg.cholesky_ex(system)
    step = torch.cholesky_solve(gradient[..., None], factor)[..., 0]
    moved = torch.clamp(theta + step, box.low_P, box.high_P)
    step = moved - theta
    bent = (curvature @ step[..., None])[..., 0]
    promised = 2 * (gradient * step).sum(-1) - (step * bent).sum(-1)
    new_cost = objective.cost(moved, active)
    usable = (trouble == 0) & promised.isfinite() & new_cost.isfinite()
    better = usable & (promised > 0) & (new_cost <= cost)
    quality = ((cost - new_cost) / promised).clamp(0, 2)
    shrink = (1 - (2 * quality - 1) ** 3).clamp(min=1 / 3)
    state.damping[active] = torch.where(
        better, (damping * shrink).clamp(min=1e-15), damping * state.growth[active]
    )
    state.growth[active] = torch.where(better, 2.0, 2 * state.growth[active])
    state.theta[active] = torch.where(better[:, None], moved, theta)
    state.cost[active] = torch.where(better, new_cost, cost)
    # A rejected step has a small predicted decrease because it is short, which does not indicate an
    # optimum, unless the two costs differ by rounding only.
    same = (new_cost - cost).abs() <= 1e-10 * cost.clamp(min=1.0)
    quiet = usable & (better | same) & (promised <= settings.tol)
    state.quiet[active] = torch.where(quiet, state.quiet[active] + 1, 0)
    done = state.quiet[active] >= settings.patience
    state.converged[active] |= done
    lost = state.damping[active] > 1e20
    return done | lost
