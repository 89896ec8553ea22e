"""A mixture of experts as a regression function of one flat vector of parameters.

Shape letters: B problems, Q inputs, d their dimension, k experts, F parameters of a score, E of an
expert, P = k (F + E) of a mixture, and one more with a temperature.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments
from sigmoid_attention.mixtures import experts, gates, scores


@dataclass(frozen=True)
class Mixture:
    r"""A family of regression functions with k experts in d dimensions.

    .. math::
        f_\theta(x) = \sum_{i=1}^k g(s_1(x), \dots, s_k(x))_i\, h(x, \eta_i), \qquad
        s_i(x) = \frac{1}{\tau} t(x, \beta_i) + \beta_{0 i}

    with gate g, score shape t, intercepts and expert h. The temperature is 1, unless
    ``temperature`` makes its logarithm a parameter. Source: Nguyen et al. 2024, section 2; for
    quadratic scores Yan et al. 2025, section 2. docs/bibliography.md lists the papers.

    The vector of parameters lists the experts in order: for each the parameters of its score, then
    those of the expert. The logarithm of the temperature is the last parameter.

    Args:
        gate, expert, score: names; see ``GATES``, ``EXPERTS``, ``SCORES``.
        k: number of experts. d: dimension of the inputs.

    Raises:
        TypeError: a name that is no string, k or d that is no whole number.
        ValueError: an unknown name, k or d below 1.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> family = Mixture("sigmoid", "gelu", k=2, d=3)
        >>> family.size
        14
        >>> family.predict(torch.zeros(14, dtype=torch.float64), torch.ones(5, 3).double()).shape
        torch.Size([5])
    """

    gate: str
    expert: str
    score: str = "linear"
    k: int = 2
    d: int = 1
    temperature: bool = False

    def __post_init__(self) -> None:
        gates.gate(self.gate)
        scores.score(self.score)
        experts.expert(self.expert)
        for name, number in (("k", self.k), ("d", self.d)):
            arguments.whole(name, number, 1, "a whole number of 1 or more")
        arguments.switch("temperature", self.temperature)

    @property
    def _gate(self) -> gates.Gate:
        return gates.gate(self.gate)

    @property
    def _score(self) -> scores.Score:
        return scores.score(self.score)

    @property
    def _expert(self) -> experts.Expert:
        return experts.expert(self.expert)

    @property
    def parts(self) -> dict[str, slice]:
        """The place of each named part in an expert's F + E parameters."""
        slices: dict[str, slice] = {}
        start = 0
        of_score = self._score.parts(self.d)
        of_expert = self._expert.parts(self.d)
        for prefix, parts in (("", of_score), ("eta_", of_expert)):
            for name, count in parts.items():
                slices[prefix + name] = slice(start, start + count)
                start += count
        return slices

    @property
    def score_size(self) -> int:
        return self._score.count(self.d)

    @property
    def atom_size(self) -> int:
        return self.score_size + self._expert.count(self.d)

    @property
    def size(self) -> int:
        """Number of parameters, P."""
        return self.k * self.atom_size + int(self.temperature)

    def atoms(self, theta_P: Tensor) -> Tensor:
        """(..., k, F + E), an expert a row."""
        atoms_P = theta_P[..., : self.k * self.atom_size]
        return atoms_P.unflatten(-1, (self.k, self.atom_size))

    def predict(self, theta_P: Tensor, inputs_Qd: Tensor) -> Tensor:
        """f, (..., Q); leading dimensions of both broadcast."""
        weights, values = self._weights_and_values(theta_P, inputs_Qd)
        return self._sum(weights, values)

    def contributions(self, theta_P: Tensor, inputs_Qd: Tensor) -> Tensor:
        """Each expert's part of f, (..., Q, k)."""
        weights, values = self._weights_and_values(theta_P, inputs_Qd)
        return weights * values

    def gate_weights(self, theta_P: Tensor, inputs_Qd: Tensor) -> Tensor:
        """(..., Q, k)."""
        return self._gate.weights(self._scores(theta_P, inputs_Qd)[0])

    def predict_with_jacobian(self, theta_P: Tensor, inputs_Qd: Tensor) -> tuple[Tensor, Tensor]:
        """f, (..., Q), and its derivatives by the parameters, (..., Q, P)."""
        score_k, expert_k = self.atoms(theta_P).tensor_split([self.score_size], -1)
        all_scores, shape, rate = self._scores(theta_P, inputs_Qd)
        weights = self._gate.weights(all_scores)
        values, slopes = self._expert.value_and_slopes(expert_k, inputs_Qd)
        by_score = self._gate.pull(all_scores, weights, values)[..., None]
        by_shape = by_score * rate[..., None, None, None]
        of_shape = self._score.slopes(score_k, inputs_Qd)
        by_atom = torch.cat((by_shape * of_shape, by_score, weights[..., None] * slopes), -1)
        jacobian = by_atom.flatten(-2)
        if self.temperature:
            by_log = -(by_score[..., 0] * shape).sum(-1, keepdim=True) * rate[..., None, None]
            jacobian = torch.cat((jacobian, by_log), -1)
        return self._sum(weights, values), jacobian

    def _scores(self, theta_P: Tensor, inputs_Qd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (..., Q, k), their part before the division by the temperature, and 1 / tau."""
        score_k = self.atoms(theta_P)[..., : self.score_size]
        rate = torch.exp(-theta_P[..., -1]) if self.temperature else theta_P.new_ones(())
        shape = self._score.shape(score_k, inputs_Qd)
        return shape * rate[..., None, None] + score_k[..., None, :, -1], shape, rate

    def _weights_and_values(self, theta_P: Tensor, inputs_Qd: Tensor) -> tuple[Tensor, Tensor]:
        # Without the slopes, which cost more than the rest of a prediction.
        expert_k = self.atoms(theta_P)[..., self.score_size :]
        weights = self._gate.weights(self._scores(theta_P, inputs_Qd)[0])
        return weights, self._expert.value(expert_k, inputs_Qd)

    def _sum(self, weights: Tensor, values: Tensor) -> Tensor:
        return (weights * values) @ weights.new_ones(self.k)


def free_parameters(family: Mixture) -> Tensor:
    """True for free parameters, (P,); under a shift-blind gate the last expert's score is fixed.

    This holds for Euclidean scores too: |x|^2 cancels, and the remainder is linear in x.
    """
    free = torch.ones(family.size, dtype=torch.bool)
    if gates.gate(family.gate).shift:
        last = (family.k - 1) * family.atom_size
        free[last : last + family.score_size] = False
    return free
