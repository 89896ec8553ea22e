"""Scores of experts: the functions of the input that a gate turns into weights.

Shape letters: Q inputs, d their dimension, k experts, F parameters of a score.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.mixtures.parts import Parametric, named


class Score(Parametric):
    """A score s_i(x) of an expert's parameters; the last of these is the intercept."""

    @abstractmethod
    def shape(self, parameters_kF: Tensor, inputs_Qd: Tensor) -> Tensor:
        """(..., Q, k), the score without its intercept."""

    @abstractmethod
    def slopes(self, parameters_kF: Tensor, inputs_Qd: Tensor) -> Tensor:
        """Derivatives of ``shape`` by all but the intercept, broadcasting to (..., Q, k, F - 1)."""


class _OfFeatures(Score):
    """A score that is linear in its parameters: shape = features(x) . parameters."""

    @abstractmethod
    def features(self, inputs_Qd: Tensor) -> Tensor:
        """(..., Q, F - 1)."""

    def shape(self, parameters_kF: Tensor, inputs_Qd: Tensor) -> Tensor:
        return self.features(inputs_Qd) @ parameters_kF[..., :-1].mT

    def slopes(self, parameters_kF: Tensor, inputs_Qd: Tensor) -> Tensor:
        return self.features(inputs_Qd)[..., :, None, :]


@dataclass(frozen=True)
class Linear(_OfFeatures):
    """s = beta1 . x + beta0 (Nguyen et al. 2024, section 2)."""

    name = "linear"

    def parts(self, dim: int) -> dict[str, int]:
        return {"beta1": dim, "beta0": 1}

    def features(self, inputs_Qd: Tensor) -> Tensor:
        return inputs_Qd


def _products(inputs_Qd: Tensor) -> Tensor:
    """(..., Q, d (d + 1) / 2): x_u x_v, multiplied by sqrt 2 off the diagonal.

    The norm of their coefficients is then the Frobenius norm of the symmetric matrix.
    """
    row, column = torch.triu_indices(inputs_Qd.shape[-1], inputs_Qd.shape[-1])
    # In the dtype of the inputs from the start: sqrt 2 in float32 would be wrong by 2e-8.
    factor = inputs_Qd.new_ones(len(row)).masked_fill(row != column, math.sqrt(2.0))
    return inputs_Qd[..., row] * inputs_Qd[..., column] * factor


@dataclass(frozen=True)
class PartiallyQuadratic(_OfFeatures):
    """s = x' A x + c with a symmetric A: the monomial gate of Yan et al. 2025."""

    name = "partially_quadratic"

    def parts(self, dim: int) -> dict[str, int]:
        return {"A": dim * (dim + 1) // 2, "c": 1}

    def features(self, inputs_Qd: Tensor) -> Tensor:
        return _products(inputs_Qd)


@dataclass(frozen=True)
class FullyQuadratic(_OfFeatures):
    """s = x' A x + b . x + c with a symmetric A: the polynomial gate of Yan et al. 2025."""

    name = "fully_quadratic"

    def parts(self, dim: int) -> dict[str, int]:
        return {"A": dim * (dim + 1) // 2, "b": dim, "c": 1}

    def features(self, inputs_Qd: Tensor) -> Tensor:
        return torch.cat((_products(inputs_Qd), inputs_Qd), -1)


@dataclass(frozen=True)
class Euclidean(Score):
    """s = beta0 - |x - beta1|^2: an expert has a high score for inputs near its centre."""

    name = "euclidean"

    def parts(self, dim: int) -> dict[str, int]:
        return {"beta1": dim, "beta0": 1}

    def _away(self, parameters_kF: Tensor, inputs_Qd: Tensor) -> Tensor:
        return inputs_Qd[..., :, None, :] - parameters_kF[..., None, :, :-1]

    def shape(self, parameters_kF: Tensor, inputs_Qd: Tensor) -> Tensor:
        return -self._away(parameters_kF, inputs_Qd).square().sum(-1)

    def slopes(self, parameters_kF: Tensor, inputs_Qd: Tensor) -> Tensor:
        return 2 * self._away(parameters_kF, inputs_Qd)


SCORES: dict[str, Score] = {
    score.name: score for score in (Linear(), PartiallyQuadratic(), FullyQuadratic(), Euclidean())
}


def score(name: str) -> Score:
    """The score of this name; ``ValueError`` with the list of names for any other."""
    return named("score", SCORES, name)
