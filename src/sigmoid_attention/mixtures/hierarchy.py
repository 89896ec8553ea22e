"""Hierarchical mixtures: groups of experts, each group with its own gate.

Shape letters: B problems, Q inputs, d their dimension, g groups, k experts of a group, F parameters
of a group's score, I of a group's mixture, P = g (F + I) of the whole.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.mixtures import gates, scores
from sigmoid_attention.mixtures.model import Mixture


@dataclass(frozen=True)
class Hierarchy:
    r"""A family of regression functions with groups of experts on two levels of gates.

    .. math::
        f_\theta(x) = \sum_{a=1}^g G(t_1(x), \dots, t_g(x))_a
                      \sum_{i=1}^k W(s_{a1}(x), \dots, s_{ak}(x))_i\, h(x, \eta_{ai})

    with an outer gate G over scores t, and in every group a mixture of the family ``inner``.
    Multi-head attention has this form: heads are groups of constant weight, keys are experts
    (``attention_row``). The vector of parameters holds the outer scores of all groups, then the
    mixtures of all groups. ``minimise`` fits it like a ``Mixture``.
    Source: Yan et al. 2025 names it for multi-head attention; the form is ours.

    Args:
        gate, score: the gate and score of the groups; names as for a ``Mixture``.
        inner: the family of each group's mixture. groups: the number of groups, g.

    Raises:
        ValueError: an unknown name, groups below 1.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> family = Hierarchy("softmax", Mixture("sigmoid", "gelu", k=2, d=3), groups=4)
        >>> family.size
        72
        >>> family.predict(torch.zeros(72, dtype=torch.float64), torch.ones(5, 3).double()).shape
        torch.Size([5])
    """

    gate: str
    inner: Mixture
    score: str = "linear"
    groups: int = 2

    def __post_init__(self) -> None:
        gates.gate(self.gate)
        scores.score(self.score)
        if self.groups < 1:
            raise ValueError(f"groups must be 1 or more, got {self.groups}")

    @property
    def score_size(self) -> int:
        return scores.score(self.score).count(self.inner.d)

    @property
    def size(self) -> int:
        """Number of parameters, P."""
        return self.groups * (self.score_size + self.inner.size)

    def split(self, theta_P: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters of the outer scores, (..., g, F), and of the groups, (..., g, I)."""
        count = self.groups * self.score_size
        outer, inner = theta_P.tensor_split([count], -1)
        return (
            outer.unflatten(-1, (self.groups, self.score_size)),
            inner.unflatten(-1, (self.groups, self.inner.size)),
        )

    def join(self, outer_gF: Tensor, inner_gI: Tensor) -> Tensor:
        """The vector of parameters, (..., P); the inverse of ``split``."""
        return torch.cat((outer_gF.flatten(-2), inner_gI.flatten(-2)), -1)

    def predict(self, theta_P: Tensor, inputs_Qd: Tensor) -> Tensor:
        """f, (..., Q); leading dimensions of both broadcast."""
        return self.contributions(theta_P, inputs_Qd).sum(-1)

    def contributions(self, theta_P: Tensor, inputs_Qd: Tensor) -> Tensor:
        """Each group's part of f, (..., Q, g)."""
        outer, inner = self.split(theta_P)
        values_Qg = self.inner.predict(inner, inputs_Qd[..., None, :, :]).mT
        return self._weights(self._scores(outer, inputs_Qd)) * values_Qg

    def group_weights(self, theta_P: Tensor, inputs_Qd: Tensor) -> Tensor:
        """The weights of the groups by the outer gate, (..., Q, g)."""
        return self._weights(self._scores(self.split(theta_P)[0], inputs_Qd))

    def predict_with_jacobian(self, theta_P: Tensor, inputs_Qd: Tensor) -> tuple[Tensor, Tensor]:
        """f, (..., Q), and its derivatives by the parameters, (..., Q, P)."""
        outer, inner = self.split(theta_P)
        values_gQ, of_inner_gQI = self.inner.predict_with_jacobian(
            inner, inputs_Qd[..., None, :, :]
        )
        values_Qg, of_inner_QgI = values_gQ.mT, of_inner_gQI.transpose(-3, -2)
        scores_Qg = self._scores(outer, inputs_Qd)
        weights_Qg = self._weights(scores_Qg)
        pull_Qg1 = gates.gate(self.gate).pull(scores_Qg, weights_Qg, values_Qg)[..., None]
        of_shape = scores.score(self.score).slopes(outer, inputs_Qd)
        by_outer = torch.cat((pull_Qg1 * of_shape, pull_Qg1), -1).flatten(-2)
        by_inner = (weights_Qg[..., None] * of_inner_QgI).flatten(-2)
        return (weights_Qg * values_Qg).sum(-1), torch.cat((by_outer, by_inner), -1)

    def _scores(self, outer_gF: Tensor, inputs_Qd: Tensor) -> Tensor:
        shape_Qg = scores.score(self.score).shape(outer_gF, inputs_Qd)
        return shape_Qg + outer_gF[..., None, :, -1]

    def _weights(self, scores_Qg: Tensor) -> Tensor:
        return gates.gate(self.gate).weights(scores_Qg)
