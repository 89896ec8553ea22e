"""The objective functions of the solver for a batch of problems, in units of chi2.

Shape letters: B problems, A of them active, Q inputs, P parameters.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sigmoid_attention.mixtures.data import LeastSquares
from sigmoid_attention.mixtures.model import Mixture


class Objective(Protocol):
    """B functions of P parameters in which a difference of 1 is one unit of chi2."""

    @property
    def constant_B(self) -> Tensor:
        """The term that no parameter changes; kept apart, so that differences are accurate."""
        ...

    def cost(self, theta_AP: Tensor, which_A: Tensor) -> Tensor:
        """The problems of these indices at these parameters, (A,), without the constant."""
        ...

    def quadratic(self, theta_AP: Tensor, which_A: Tensor) -> tuple[Tensor, Tensor]:
        """C (A, P, P) and g (A, P) with cost(theta + s) about cost(theta) - 2 g's + s'C s."""
        ...


@dataclass(frozen=True)
class SumOfSquares:
    """RSS / sigma^2 of a family: least squares, or the deviance under Gaussian noise.

    Args:
        sigma: standard deviation of the noise.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import FiniteDesign, Mixture
        >>> design = FiniteDesign.sobol(16, d=2)
        >>> data = design.draw(torch.zeros(16), [1000, 1000], sigma=0.1, seed=0)
        >>> objective = SumOfSquares(Mixture("sigmoid", "tanh", d=2), data, sigma=0.1)
        >>> curvature, gradient = objective.quadratic(
        ...     torch.ones(2, 10).double(), torch.arange(2)
        ... )
        >>> curvature.shape, gradient.shape
        (torch.Size([2, 10, 10]), torch.Size([2, 10]))
    """

    family: Mixture
    data: LeastSquares
    sigma: float

    @property
    def constant_B(self) -> Tensor:
        return self.data.within_B / self.sigma**2

    def cost(self, theta_AP: Tensor, which_A: Tensor) -> Tensor:
        total = theta_AP.new_zeros(len(theta_AP))
        for chunk in self.data.chunks(which_A):
            residual = chunk.mean_BQ - self.family.predict(theta_AP, chunk.inputs)
            total += (chunk.weight_BQ * residual * residual).sum(-1)
        return total / self.sigma**2

    def quadratic(self, theta_AP: Tensor, which_A: Tensor) -> tuple[Tensor, Tensor]:
        """J'WJ and J'W residual, over sigma^2."""
        count, size = theta_AP.shape
        curvature, gradient = theta_AP.new_zeros(count, size, size), torch.zeros_like(theta_AP)
        for chunk in self.data.chunks(which_A):
            answer, jacobian = self.family.predict_with_jacobian(theta_AP, chunk.inputs)
            weighted = jacobian * chunk.weight_BQ[..., None]
            curvature += weighted.mT @ jacobian
            residual = chunk.mean_BQ - answer
            gradient += (weighted.mT @ residual[..., None])[..., 0]
        return curvature / self.sigma**2, gradient / self.sigma**2


@dataclass(frozen=True)
class Penalised:
    """An objective plus the ridge penalty weight |theta|^2."""

    objective: Objective
    weight: float

    @property
    def constant_B(self) -> Tensor:
        return self.objective.constant_B

    def cost(self, theta_AP: Tensor, which_A: Tensor) -> Tensor:
        return self.objective.cost(theta_AP, which_A) + self.weight * theta_AP.square().sum(-1)

    def quadratic(self, theta_AP: Tensor, which_A: Tensor) -> tuple[Tensor, Tensor]:
        curvature, gradient = self.objective.quadratic(theta_AP, which_A)
        curvature.diagonal(dim1=-2, dim2=-1).add_(self.weight)
        return curvature, gradient - self.weight * theta_AP


@dataclass(frozen=True)
class Repeated:
    """The problems of an objective at given indices, in any order and with repetitions.

    Many starts of one problem then form a batch of problems.
    """

    objective: Objective
    problem_B: Tensor

    @property
    def constant_B(self) -> Tensor:
        return self.objective.constant_B[self.problem_B]

    def cost(self, theta_AP: Tensor, which_A: Tensor) -> Tensor:
        return self.objective.cost(theta_AP, self.problem_B[which_A])

    def quadratic(self, theta_AP: Tensor, which_A: Tensor) -> tuple[Tensor, Tensor]:
        return self.objective.quadratic(theta_AP, self.problem_B[which_A])
