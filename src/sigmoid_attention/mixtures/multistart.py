"""Multi-start fits: the best of many local fits approximates the global estimate.

Shape letters: B problems, S starts of each, P parameters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.mixtures.classification import LogisticMixture
from sigmoid_attention.mixtures.data import LeastSquares
from sigmoid_attention.mixtures.model import Mixture
from sigmoid_attention.mixtures.objective import Objective, Repeated, SumOfSquares
from sigmoid_attention.mixtures.solver import (
    DEFAULTS,
    Fit,
    ParameterBox,
    SolverSettings,
    check_start,
    descend,
)

# Ends within this chi2 count as equal; a converged one is preferred.
SAME = 1e-2
# One unit of chi2: a smaller difference is not significant.
NEAR = 1.0


@dataclass(frozen=True)
class Attempts:
    """The end of every start of every problem; ``cost`` is chi2 without its constant."""

    theta_BSP: Tensor
    cost_BS: Tensor
    converged_BS: Tensor
    iterations_BS: Tensor
    at_box_BS: Tensor
    constant_B: Tensor

    @property
    def chosen_B(self) -> Tensor:
        """The chosen start: that of the lowest end, or of an equal end that converged."""
        cost = self.cost_BS.nan_to_num(nan=torch.inf)
        same = cost <= cost.amin(-1, keepdim=True) + SAME
        preferred = same & self.converged_BS
        eligible = torch.where(preferred.any(-1, keepdim=True), preferred, same)
        return torch.where(eligible, cost, torch.inf).argmin(-1)

    @property
    def best(self) -> Fit:
        """The chosen end, as one fit per problem.

        It counts as not converged if an unconverged end lies below all converged ones: the minimum
        is then lower than every end that was reached.
        """
        start, row = self.chosen_B, torch.arange(len(self.cost_BS))
        return Fit(
            self.theta_BSP[row, start],
            self.cost_BS[row, start] + self.constant_B,
            self.converged_BS[row, start],
            self.iterations_BS[row, start],
            self.at_box_BS[row, start],
        )

    @property
    def excess_BS(self) -> Tensor:
        """chi2 of every end above that of the chosen one."""
        return self.cost_BS - self.cost_BS.gather(-1, self.chosen_B[:, None])

    @property
    def near_B(self) -> Tensor:
        """The number of starts that ended within one unit of chi2 of the best, itself included."""
        return (self.excess_BS <= NEAR).sum(-1)

    @property
    def failed_B(self) -> Tensor:
        """True where no start converged."""
        return ~self.converged_BS.any(-1)


def multistart(
    family: Mixture,
    data: LeastSquares,
    start_BSP: Tensor,
    *,
    sigma: float,
    box: ParameterBox,
    settings: SolverSettings = DEFAULTS,
) -> Attempts:
    """Least squares from S starts for each problem; the best approximates the global minimum.

    The theorems of Nguyen et al. 2024 and Yan et al. 2025 are about the global estimate. Their
    experiments start near the truth.

    Raises:
        ValueError: starts that are not finite or do not fit the box; or a problem with singular
            starts only: two experts are equal, so every step keeps them equal, or no observation
            depends on any parameter.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import FiniteDesign, Mixture
        >>> from sigmoid_attention.mixtures.solver import ParameterBox
        >>> family, design = Mixture("sigmoid", "tanh", d=2), FiniteDesign.sobol(64, d=2)
        >>> truth = family.predict(torch.arange(10).double().sin() * 2, design.inputs_Qd)
        >>> data = design.draw(truth, [10**4, 10**6], sigma=0.1, seed=0)
        >>> starts = uniform_starts(spread(family, 3.0), problems=2, starts=8, seed=0)
        >>> box = ParameterBox.around_zero(10, 10.0)
        >>> attempts = multistart(family, data, starts, sigma=0.1, box=box)
        >>> attempts.best.theta_BP.shape, attempts.excess_BS.shape
        (torch.Size([2, 10]), torch.Size([2, 8]))
    """
    check_start(start_BSP, box)
    atoms = family.atoms(start_BSP)
    twins = torch.ones(family.k, family.k, dtype=torch.bool).triu(1)
    equal = (atoms[..., :, None, :] == atoms[..., None, :, :]).all(-1)
    _refuse((equal & twins).flatten(-2).any(-1), "two experts are equal")
    return best_of(SumOfSquares(family, data, sigma), start_BSP, box=box, settings=settings)


def best_of(
    objective: Objective,
    start_BSP: Tensor,
    *,
    box: ParameterBox,
    settings: SolverSettings = DEFAULTS,
    at_once: int = 512,
) -> Attempts:
    """The ends of S starts for each problem of any objective, ``at_once`` of them in a batch.

    Raises:
        ValueError: as `multistart`, except for equal experts.
    """
    problems, starts, _ = start_BSP.shape
    flat = start_BSP.flatten(0, 1)
    problem = torch.arange(problems).repeat_interleave(starts)
    blind, fits = [], []
    for some, begin in zip(problem.split(at_once), flat.split(at_once), strict=True):
        here = Repeated(objective, some)
        fits.append(descend(here, begin, box=box, settings=settings))
        blind.append(_blind(here, begin.clamp(box.low_P, box.high_P)))
    _refuse(torch.cat(blind).unflatten(0, (problems, starts)), "no observation sees a parameter")

    def ends(name: str) -> Tensor:
        return torch.cat([getattr(fit, name) for fit in fits]).unflatten(0, (problems, starts))

    return Attempts(
        ends("theta_BP"),
        ends("chi2_B"),
        ends("converged_B"),
        ends("iterations_B"),
        ends("at_box_B"),
        objective.constant_B,
    )


def _blind(objective: Objective, theta: Tensor) -> Tensor:
    curvature, _ = objective.quadratic(theta, torch.arange(len(theta)))
    return (curvature.diagonal(dim1=-2, dim2=-1) == 0).all(-1)


def _refuse(singular_BS: Tensor, why: str) -> None:
    hopeless = singular_BS.all(-1)
    if hopeless.any():
        problem = int(hopeless.nonzero()[0, 0])
        raise ValueError(f"start: every start of problem {problem} is singular, since {why}")


# Starts ---------------------------------------------------------------------------------------


def spread(family: Mixture | LogisticMixture, width: float) -> ParameterBox:
    """A range of starts in which scores and experts' arguments have about the size ``width``.

    A part of u numbers (a slope in d dimensions) gets width / sqrt(u). For inputs of unit variance
    the gates are then not saturated, in any dimension.
    """
    wide = torch.empty(family.atom_size, dtype=torch.float64)
    for part in family.parts.values():
        wide[part] = width / (part.stop - part.start) ** 0.5
    scale_P = torch.zeros(family.size, dtype=torch.float64)
    scale_P[: family.k * family.atom_size] = wide.repeat(family.k)
    return ParameterBox(-scale_P, scale_P)


def uniform_starts(within: ParameterBox, *, problems: int, starts: int, seed: int) -> Tensor:
    """Starts (B, S, P), uniform in a box, which may be smaller than the box of the fit."""
    rng = torch.Generator().manual_seed(seed)
    shape = (problems, starts, len(within.low_P))
    return torch.lerp(
        within.low_P, within.high_P, torch.rand(shape, generator=rng, dtype=torch.float64)
    )
