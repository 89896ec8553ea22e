"""Gates: the weights of k experts from their scores, and the derivatives by the scores.

Routers in `sigmoid_attention.nn` use the same gates. Shape letters: ... any leading, k experts.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.mixtures.parts import named


class Gate(ABC):
    """A gate g; the output of a mixture is f = sum_i g(s)_i v_i for the experts' values v.

    ``shift`` is True if adding a number to all scores does not change the weights. The score of one
    expert is then a reference and not a parameter.
    """

    name: str
    shift: bool = False

    @abstractmethod
    def weights(self, scores: Tensor) -> Tensor:
        """(..., k) weights of (..., k) scores."""

    @abstractmethod
    def pull(self, scores: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        """(..., k), the derivatives of f = sum_i weights_i values_i by the scores."""


# Torch's own reductions take ten times as long over a last axis of a few experts.
def _softmax(scores: Tensor) -> Tensor:
    if scores.dim() < 2:
        return scores.softmax(-1)
    return scores.mT.contiguous().softmax(-2).mT.contiguous()


def _total(terms: Tensor) -> Tensor:
    return terms @ terms.new_ones(terms.shape[-1], 1)


@dataclass(frozen=True)
class Sigmoid(Gate):
    """g_i = 1 / (1 + exp(-s_i)), each expert for itself (Nguyen et al. 2024, section 2)."""

    name = "sigmoid"

    def weights(self, scores: Tensor) -> Tensor:
        return scores.sigmoid()

    def pull(self, scores: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        return weights * (1 - weights) * values


@dataclass(frozen=True)
class Tanh(Gate):
    """g_i = tanh(s_i); weights may be negative."""

    name = "tanh"

    def weights(self, scores: Tensor) -> Tensor:
        return scores.tanh()

    def pull(self, scores: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        return (1 - weights * weights) * values


@dataclass(frozen=True)
class Relu(Gate):
    """g_i = max(s_i, 0)."""

    name = "relu"

    def weights(self, scores: Tensor) -> Tensor:
        return scores.relu()

    def pull(self, scores: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        return (scores > 0) * values


@dataclass(frozen=True)
class HardSigmoid(Gate):
    """g_i = s_i / 4 + 1 / 2, cut off at 0 and 1: the sigmoid's tangent at 0."""

    name = "hard_sigmoid"

    def weights(self, scores: Tensor) -> Tensor:
        return (scores / 4 + 0.5).clamp(0, 1)

    def pull(self, scores: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        return (scores.abs() < 2) * values / 4


@dataclass(frozen=True)
class SqrtSoftplus(Gate):
    """g_i = sqrt(log(1 + exp(s_i))): near exp(s_i / 2) below zero, near sqrt(s_i) above."""

    name = "sqrt_softplus"

    def weights(self, scores: Tensor) -> Tensor:
        # Below -40 both forms agree in all digits, and sqrt has no derivative at 0. Torch's
        # softplus is not used, since it drops the last digits above 20.
        low, high = scores.clamp(max=-40.0), scores.clamp(min=-40.0)
        root = (-torch.nn.functional.logsigmoid(-high)).sqrt()
        return torch.where(scores < -40.0, (low / 2).exp(), root)

    def pull(self, scores: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        return scores.sigmoid() / (2 * weights) * values


@dataclass(frozen=True)
class Softmax(Gate):
    """g_i = exp(s_i) / sum_j exp(s_j)."""

    name = "softmax"
    shift = True

    def weights(self, scores: Tensor) -> Tensor:
        return _softmax(scores)

    def pull(self, scores: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        return weights * (values - _total(weights * values))


@dataclass(frozen=True)
class NormalisedSigmoid(Gate):
    """g_i = sigmoid(s_i) / sum_j sigmoid(s_j)."""

    name = "normalised_sigmoid"

    def weights(self, scores: Tensor) -> Tensor:
        # Computed from logarithms, so that the quotient exists also for very negative scores.
        return _softmax(torch.nn.functional.logsigmoid(scores))

    def pull(self, scores: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        answer = _total(weights * values)
        return weights * (-scores).sigmoid() * (values - answer)


@dataclass(frozen=True)
class Sparsemax(Gate):
    """Sparsemax: the point of the simplex nearest to the scores (arXiv 1602.02068)."""

    name = "sparsemax"
    shift = True

    def weights(self, scores: Tensor) -> Tensor:
        ordered = scores.sort(-1, descending=True).values
        rank = torch.arange(1, scores.shape[-1] + 1, dtype=scores.dtype, device=scores.device)
        threshold = (ordered.cumsum(-1) - 1) / rank
        last = (ordered > threshold).sum(-1, keepdim=True) - 1
        return (scores - threshold.gather(-1, last)).clamp(min=0)

    def pull(self, scores: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        inside = (weights > 0).to(values.dtype)
        mean = _total(inside * values) / _total(inside)
        return inside * (values - mean)


@dataclass(frozen=True)
class Entmax15(Gate):
    """g_i = max(s_i / 2 - t, 0)^2 with t such that they sum to 1 (arXiv 1905.05702)."""

    name = "entmax15"
    shift = True

    def weights(self, scores: Tensor) -> Tensor:
        halves = (scores - scores.amax(-1, keepdim=True)) / 2
        ordered = halves.sort(-1, descending=True).values
        rank = torch.arange(1, scores.shape[-1] + 1, dtype=scores.dtype, device=scores.device)
        mean = ordered.cumsum(-1) / rank
        spread = (ordered * ordered).cumsum(-1) - rank * mean * mean
        threshold = mean - ((1 - spread) / rank).clamp(min=0).sqrt()
        last = (threshold <= ordered).sum(-1, keepdim=True) - 1
        return (halves - threshold.gather(-1, last)).clamp(min=0).square()

    def pull(self, scores: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        root = weights.sqrt()
        mean = _total(root * values) / _total(root)
        return root * (values - mean)


GATES: dict[str, Gate] = {
    gate.name: gate
    for gate in (
        Sigmoid(), Softmax(), NormalisedSigmoid(), Tanh(), Relu(), HardSigmoid(), SqrtSoftplus(),
        Sparsemax(), Entmax15(),
    )
}  # fmt: skip


def gate(name: str) -> Gate:
    """The gate of this name; ``ValueError`` with the list of names for any other."""
    return named("gate", GATES, name)
