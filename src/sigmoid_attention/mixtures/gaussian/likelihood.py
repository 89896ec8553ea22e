"""The deviance of Gaussian experts as an objective, on samples or on their expectation.

Shape letters: B problems, A of them active, Q observations, d dimension of an input, c experts,
H nodes of a quadrature, P parameters.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.extras import lab_imports
from sigmoid_attention.mixtures.data import LeastSquares, Summaries
from sigmoid_attention.mixtures.gaussian.family import GaussianExperts

with lab_imports("sigmoid_attention.mixtures"):
    import numpy as np


@dataclass(frozen=True)
class GaussianDeviance:
    r"""Minus twice the log likelihood, an ``Objective`` for ``solver.descend``.

    .. math:: D(\theta) = -2 \sum_q w_q \log p_\theta(y_q \mid x_q)

    The curvature of the quadratic model is the sum of outer products of the observations' scores
    (Fisher scoring with the empirical information). It is positive semidefinite everywhere.

    Args:
        family: the densities.
        data: single observations, as in ``Samples`` and ``RawData``, or those of ``expected``;
            means of several observations at an input do not determine a mixture.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> from sigmoid_attention.mixtures.data import Samples
        >>> from sigmoid_attention.mixtures.gaussian import GaussianDeviance, GaussianExperts
        >>> family = GaussianExperts(Mixture("softmax", "linear", k=1))
        >>> data = Samples(torch.zeros(1, 2, 1).double(), torch.zeros(1, 2).double())
        >>> theta = torch.zeros(1, 5).double()
        >>> cost = GaussianDeviance(family, data).cost(theta, torch.tensor([0]))
        >>> round(float(cost), 3)
        3.676
    """

    family: GaussianExperts
    data: LeastSquares

    @property
    def constant_B(self) -> Tensor:
        return torch.zeros_like(self.data.n_B)

    def cost(self, theta_AP: Tensor, which_A: Tensor) -> Tensor:
        total = theta_AP.new_zeros(len(theta_AP))
        for chunk in self.data.chunks(which_A):
            log_density = self.family.log_density(theta_AP, chunk.inputs, chunk.mean_BQ)
            total -= 2 * (chunk.weight_BQ * log_density).sum(-1)
        return total

    def quadratic(self, theta_AP: Tensor, which_A: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of score score' (A, P, P) and of scores (A, P)."""
        count, size = theta_AP.shape
        curvature, gradient = theta_AP.new_zeros(count, size, size), torch.zeros_like(theta_AP)
        for chunk in self.data.chunks(which_A):
            _, score_AQP = self.family.score(theta_AP, chunk.inputs, chunk.mean_BQ)
            weighted = score_AQP * chunk.weight_BQ[..., None]
            curvature += weighted.mT @ score_AQP
            gradient += weighted.sum(-2)
        return curvature, gradient


def expected(
    family: GaussianExperts, theta_P: Tensor, inputs_Qd: Tensor, *, n: float, order: int = 24
) -> Summaries:
    r"""A data set whose log likelihood is n times the expected one under these parameters.

    .. math:: \frac{n}{Q} \sum_q \int p_\theta(y \mid x_q) \log p(y \mid x_q)\, dy

    with Gauss-Hermite quadrature for every expert. Its maximum over a family that does not contain
    the truth is the pseudo-true parameter, the limit of the estimates.

    Args:
        inputs_Qd: equally weighted inputs that represent their law.
        n: number of observations that the sums represent.
        order: nodes for each expert and input.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> from sigmoid_attention.mixtures.gaussian import GaussianExperts, expected
        >>> family = GaussianExperts(Mixture("softmax", "linear", k=1))
        >>> data = expected(family, torch.zeros(5).double(), torch.zeros(3, 1).double(), n=12)
        >>> round(float((data.count_BQ * data.mean_BQ**2).sum()), 6)
        12.0
    """
    nodes_H, weights_H = (torch.from_numpy(part) for part in np.polynomial.hermite.hermgauss(order))
    means_Qc, weights_Qc = family.means_and_weights(theta_P, inputs_Qd)
    deviation_c = torch.exp(0.5 * theta_P[family.indices.log_variances_c])
    answers_QcH = means_Qc[..., None] + math.sqrt(2) * deviation_c[:, None] * nodes_H
    parts_QcH = weights_Qc[..., None] * weights_H / math.sqrt(math.pi) * (n / len(inputs_Qd))
    inputs = inputs_Qd[:, None, None].expand(*answers_QcH.shape, -1)
    return Summaries(
        inputs.reshape(-1, inputs_Qd.shape[-1]),
        answers_QcH.reshape(1, -1),
        parts_QcH.reshape(1, -1),
        torch.zeros(1, dtype=torch.float64),
    )
