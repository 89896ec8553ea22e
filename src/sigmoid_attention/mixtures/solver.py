"""Batched Levenberg-Marquardt: many least-squares problems of one family at once.

Shape letters: B problems, A of them active, Q inputs, P parameters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.mixtures.data import LeastSquares
from sigmoid_attention.mixtures.model import Mixture


@dataclass(frozen=True)
class Settings:
    """When to stop.

    ``drop`` is in statistical units: the fall of RSS / sigma^2 that a step may still promise, so
    that a fit is as near to its optimum as its own uncertainty asks for, whatever n is. It has to
    stay below that for ``patience`` steps running.
    """

    drop: float = 1e-4
    patience: int = 3
    most_iterations: int = 400


@dataclass(frozen=True)
class Fit:
    """What was found for B problems.

    ``chi2`` is RSS / sigma^2 with what the means leave out. ``converged`` says whether the stopping
    rule was met; a fit without it is where the iterations ended, and no estimate.
    """

    theta_BP: Tensor
    chi2_B: Tensor
    converged_B: Tensor
    iterations_B: Tensor
    at_box_B: Tensor


@dataclass(frozen=True)
class Box:
    """Closed intervals that the parameters keep to; equal ends pin one."""

    low_P: Tensor
    high_P: Tensor

    def __post_init__(self) -> None:
        if not (self.low_P <= self.high_P).all():
            raise ValueError("box: a lower end lies above its upper end")

    @classmethod
    def around_zero(cls, size: int, half_width: float) -> "Box":
        high = torch.full((size,), float(half_width), dtype=torch.float64)
        return cls(-high, high)

    def pinned(self, places: Tensor, values: Tensor) -> "Box":
        """The same box with some parameters held."""
        low, high = self.low_P.clone(), self.high_P.clone()
        low[places] = high[places] = values
        return Box(low, high)

    @property
    def free(self) -> int:
        return int((self.low_P < self.high_P).sum())


def chi2(family: Mixture, data: LeastSquares, theta_BP: Tensor, sigma: float) -> Tensor:
    """RSS / sigma^2 of every problem, (B,)."""
    which = torch.arange(theta_BP.shape[0])
    return _cost(family, data, theta_BP, which) / sigma**2 + data.within_B / sigma**2


def _cost(family: Mixture, data: LeastSquares, theta: Tensor, which: Tensor) -> Tensor:
    total = theta.new_zeros(len(theta))
    for chunk in data.chunks(which):
        residual = chunk.mean_BQ - family.predict(theta, chunk.inputs)
        total += (chunk.weight_BQ * residual * residual).sum(-1)
    return total


def _normal_equations(
    family: Mixture, data: LeastSquares, theta: Tensor, which: Tensor
) -> tuple[Tensor, Tensor]:
    """J'WJ (A, P, P) and J'W residual (A, P)."""
    size = theta.shape[-1]
    curvature, gradient = theta.new_zeros(len(theta), size, size), torch.zeros_like(theta)
    for chunk in data.chunks(which):
        answer, jacobian = family.predict_with_jacobian(theta, chunk.inputs)
        weighted = jacobian * chunk.weight_BQ[..., None]
        curvature += weighted.mT @ jacobian
        residual = chunk.mean_BQ - answer
        gradient += (weighted.mT @ residual[..., None])[..., 0]
    return curvature, gradient


def minimise(
    family: Mixture,
    data: LeastSquares,
    start_BP: Tensor,
    *,
    sigma: float,
    box: Box,
    settings: Settings = Settings(),
) -> Fit:
    """A local least-squares estimate for each problem, from its own start, inside the box.

    Steps solve (J'WJ + damping diag) step = J'W residual; damping follows Nielsen's rule, the
    diagonal is the largest seen, and a parameter that leans against an end of its interval rests.
    """
    theta = torch.clamp(start_BP, box.low_P, box.high_P)
    count = len(theta)
    cost = _cost(family, data, theta, torch.arange(count)) / sigma**2
    state = _State(theta, cost)
    active = torch.arange(count)
    for iteration in range(settings.most_iterations):
        if len(active) == 0:
            break
        state.iterations[active] = iteration + 1
        active = active[~_step(family, data, state, active, sigma, box, settings)]
    at_box = ((state.theta <= box.low_P) | (state.theta >= box.high_P)) & (box.low_P < box.high_P)
    return Fit(
        state.theta,
        state.cost + data.within_B / sigma**2,
        state.converged,
        state.iterations,
        at_box.any(-1),
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
    family: Mixture,
    data: LeastSquares,
    state: _State,
    active: Tensor,
    sigma: float,
    box: Box,
    settings: Settings,
) -> Tensor:
    """One step of the active problems; which of them are finished."""
    theta, cost, damping = state.theta[active], state.cost[active], state.damping[active]
    curvature, gradient = _normal_equations(family, data, theta, active)
    curvature, gradient = curvature / sigma**2, gradient / sigma**2
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
    new_cost = _cost(family, data, moved, active) / sigma**2
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
    # A step that was refused promises little because it was short, which is no sign of an optimum;
    # unless the two costs cannot be told apart any more.
    same = (new_cost - cost).abs() <= 1e-10 * cost.clamp(min=1.0)
    quiet = usable & (better | same) & (promised <= settings.drop)
    state.quiet[active] = torch.where(quiet, state.quiet[active] + 1, 0)
    done = state.quiet[active] >= settings.patience
    state.converged[active] |= done
    lost = state.damping[active] > 1e20
    return done | lost
