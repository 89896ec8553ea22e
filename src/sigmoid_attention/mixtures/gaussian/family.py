"""Mixtures of Gaussian experts: densities of an answer given an input, and their derivatives.

Shape letters: Q observations, d dimension of an input, k routed and s shared experts, c all of them
(routed first), F parameters of a score, E of a routed and G of a shared expert, P of all.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments
from sigmoid_attention.mixtures import experts, gates, scores
from sigmoid_attention.mixtures.model import Mixture

# The gates whose weights are positive and sum to 1.
GATES = ("softmax", "normalised_sigmoid")


@dataclass(frozen=True)
class SharedExperts:
    """Shared experts: all are used for every input, with weights that do not depend on the input.

    Args:
        expert: a name; see ``EXPERTS``.
        k: the number of shared experts.

    Raises:
        ValueError: an unknown name, or k below 1.
    """

    expert: str
    k: int = 1

    def __post_init__(self) -> None:
        experts.expert(self.expert)
        if self.k < 1:
            raise ValueError(f"k: of shared experts must be 1 or more, got {self.k}")


@dataclass(frozen=True)
class ParameterIndices:
    """The indices of the parameters of each kind in the vector of all parameters."""

    scores_kF: Tensor
    routed_kE: Tensor
    shared_sG: Tensor
    log_variances_c: Tensor
    log_weights_s: Tensor


@dataclass(frozen=True)
class Posterior:
    """Posterior shares of the experts at observations, and further terms for derivatives and EM.

    ``share`` is each expert's share of the density, ``standard`` the residual from its mean in
    units of its standard deviation, ``features`` the derivatives of scores by their parameters.
    """

    log_density_Q: Tensor
    share_Qc: Tensor
    standard_Qc: Tensor
    deviation_c: Tensor
    routed_slopes_QkE: Tensor
    shared_slopes_QsG: Tensor | None
    features_QkF: Tensor
    scores_Qk: Tensor
    weights_Qk: Tensor
    shared_weights_s: Tensor | None


@dataclass(frozen=True)
class GaussianExperts:
    r"""A family of conditional densities with k routed Gaussian experts and optional shared ones.

    .. math::
        p(y \mid x) = \frac12 \sum_{j=1}^{s} \omega_j\, N(y;\, h_1(x, \kappa_j), \tau_j)
                    + \frac12 \sum_{i=1}^{k} g(s(x))_i\, N(y;\, h_2(x, \eta_i), \nu_i)

    with variances tau and nu and weights omega that sum to 1. Without shared experts the density is
    the second sum, with factor 1. Source: Nguyen et al. 2025, its density with shared and routed
    experts.

    The vector of parameters lists the routed experts in order, then the shared experts. A routed
    expert has the parameters of its score, those of the expert and the logarithm of its variance. A
    shared expert has its own parameters, the logarithm of its variance and that of its weight; the
    logarithms of the weights are determined up to a common constant.

    Args:
        routed: gate, score, expert and number of the routed experts.
        shared: the shared experts.

    Raises:
        ValueError: a gate whose weights do not sum to 1 or may be 0, or a temperature.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> from sigmoid_attention.mixtures.gaussian import GaussianExperts, SharedExperts
        >>> routed = Mixture("softmax", "linear", k=2)
        >>> family = GaussianExperts(routed, SharedExperts("linear", k=1))
        >>> family.size
        14
        >>> theta, x = torch.zeros(14).double(), torch.zeros(3, 1).double()
        >>> family.log_density(theta, x, x[:, 0]).exp().numpy().round(3).tolist()
        [0.399, 0.399, 0.399]
    """

    routed: Mixture
    shared: SharedExperts | None = None

    def __post_init__(self) -> None:
        if self.routed.gate not in GATES:
            raise ValueError(
                f"gate: of a density must be one of {', '.join(GATES)}, got "
                f"{arguments.shown_name(self.routed.gate)}"
            )
        if self.routed.temperature:
            raise ValueError("temperature must be False for Gaussian experts, got True")

    @property
    def routed_size(self) -> int:
        """Parameters of a routed expert, F + E + 1."""
        return self.routed.atom_size + 1

    @property
    def shared_size(self) -> int:
        """Parameters of a shared expert, G + 2."""
        name = self.shared.expert if self.shared else self.routed.expert
        return experts.expert(name).count(self.routed.d) + 2

    @property
    def size(self) -> int:
        """Number of parameters, P."""
        count = self.shared.k if self.shared else 0
        return self.routed.k * self.routed_size + count * self.shared_size

    def atoms(self, theta_P: Tensor) -> tuple[Tensor, Tensor]:
        """Routed experts (..., k, F + E + 1) and shared ones (..., s, G + 2), an expert a row."""
        routed, shared = theta_P.tensor_split([self.routed.k * self.routed_size], -1)
        count = self.shared.k if self.shared else 0
        return (
            routed.unflatten(-1, (self.routed.k, self.routed_size)),
            shared.unflatten(-1, (count, self.shared_size)),
        )

    @cached_property
    def indices(self) -> ParameterIndices:
        """The indices of the parameters of each kind in the vector of all parameters."""
        routed, shared = self.atoms(torch.arange(self.size))
        of_score = self.routed.score_size
        variances = torch.cat((routed[:, -1], shared[:, -2]))
        return ParameterIndices(
            routed[:, :of_score], routed[:, of_score:-1], shared[:, :-2], variances, shared[:, -1]
        )

    def log_density(self, theta_P: Tensor, inputs_Qd: Tensor, answers_Q: Tensor) -> Tensor:
        """log p(y | x), (..., Q); leading dimensions of all three broadcast."""
        return self.posterior(theta_P, inputs_Qd, answers_Q).log_density_Q

    def score(self, theta_P: Tensor, inputs_Qd: Tensor, answers_Q: Tensor) -> tuple[Tensor, Tensor]:
        """log p(y | x), (..., Q), and its derivatives by the parameters, (..., Q, P)."""
        posterior = self.posterior(theta_P, inputs_Qd, answers_Q)
        return posterior.log_density_Q, self.score_of(posterior)

    def posterior(self, theta_P: Tensor, inputs_Qd: Tensor, answers_Q: Tensor) -> Posterior:
        """The terms of the density at each observation."""
        routed, shared = self.atoms(theta_P)
        score_k, expert_k, log_variance = routed.tensor_split(
            [self.routed.score_size, self.routed.atom_size], -1
        )
        score = scores.score(self.routed.score)
        all_scores = score.shape(score_k, inputs_Qd) + score_k[..., None, :, -1]
        weights = gates.gate(self.routed.gate).weights(all_scores)
        means, slopes = experts.expert(self.routed.expert).value_and_slopes(expert_k, inputs_Qd)
        log_weights, omega, shared_slopes = weights.log(), None, None
        if self.shared is not None:
            expert_s, log_variance_s, log_weight = shared.tensor_split([-2, -1], -1)
            expert = experts.expert(self.shared.expert)
            shared_means, shared_slopes = expert.value_and_slopes(expert_s, inputs_Qd)
            omega = log_weight[..., None, :, 0].softmax(-1)
            both = (log_weights, omega.log().expand(shared_means.shape))
            log_weights = torch.cat(both, -1) - math.log(2)
            means = torch.cat((means, shared_means), -1)
            log_variance = torch.cat((log_variance, log_variance_s), -2)
        log_variance = log_variance[..., None, :, 0]
        deviation = torch.exp(0.5 * log_variance)
        standard = (answers_Q[..., None] - means) / deviation
        joint = log_weights - 0.5 * (standard.square() + (log_variance + math.log(2 * math.pi)))
        # One exponential serves the sum and the shares in it.
        largest = joint.amax(-1, keepdim=True)
        parts = torch.exp(joint - largest)
        total = parts.sum(-1, keepdim=True)
        of_shape = score.slopes(score_k, inputs_Qd)
        ones = of_shape.new_ones(()).expand(*of_shape.shape[:-1], 1)
        return Posterior(
            (largest + total.log())[..., 0],
            parts / total,
            standard,
            deviation,
            slopes,
            shared_slopes,
            torch.cat((of_shape, ones), -1),
            all_scores,
            weights,
            omega,
        )

    def score_of(self, posterior: Posterior) -> Tensor:
        """Derivatives of the log density by the parameters, (..., Q, P)."""
        share_k, share_s = posterior.share_Qc.tensor_split([self.routed.k], -1)
        # p holds sum_i g_i v_i; divided by p that is sum_i g_i (share_i / g_i).
        tiny = torch.finfo(share_k.dtype).tiny
        values = share_k / posterior.weights_Qk.clamp(min=tiny)
        by_score = gates.gate(self.routed.gate).pull(
            posterior.scores_Qk, posterior.weights_Qk, values
        )
        by_mean = posterior.share_Qc * posterior.standard_Qc / posterior.deviation_c
        by_log_variance = 0.5 * posterior.share_Qc * (posterior.standard_Qc.square() - 1)
        mean_k, mean_s = by_mean[..., None].tensor_split([self.routed.k], -2)
        variance_k, variance_s = by_log_variance[..., None].tensor_split([self.routed.k], -2)
        gradient = torch.cat(
            (
                by_score[..., None] * posterior.features_QkF,
                mean_k * posterior.routed_slopes_QkE,
                variance_k,
            ),
            -1,
        ).flatten(-2)
        if posterior.shared_slopes_QsG is None or posterior.shared_weights_s is None:
            return gradient
        by_weight = share_s - posterior.shared_weights_s * share_s.sum(-1, keepdim=True)
        shared = torch.cat(
            (mean_s * posterior.shared_slopes_QsG, variance_s, by_weight[..., None]), -1
        ).flatten(-2)
        return torch.cat((gradient, shared), -1)

    def means_and_weights(self, theta_P: Tensor, inputs_Qd: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of each expert and its weight in the density, both (..., Q, c)."""
        posterior = self.posterior(theta_P, inputs_Qd, inputs_Qd.new_zeros(inputs_Qd.shape[:-1]))
        means = -posterior.standard_Qc * posterior.deviation_c
        if posterior.shared_weights_s is None:
            return means, posterior.weights_Qk
        omega = posterior.shared_weights_s.expand(*means.shape[:-1], -1)
        return means, torch.cat((posterior.weights_Qk, omega), -1) / 2

    def sample(self, theta_P: Tensor, inputs_Qd: Tensor, rng: torch.Generator) -> Tensor:
        """A random y for each input, (..., Q)."""
        means, weights = self.means_and_weights(theta_P, inputs_Qd)
        chosen = torch.multinomial(weights.flatten(0, -2), 1, generator=rng)
        chosen = chosen.reshape(*weights.shape[:-1], 1)
        deviation = torch.exp(0.5 * theta_P[..., None, self.indices.log_variances_c])
        noise = torch.randn(means.shape[:-1], generator=rng, dtype=means.dtype)
        mean = means.gather(-1, chosen)[..., 0]
        return mean + noise * deviation.expand(means.shape).gather(-1, chosen)[..., 0]


@dataclass(frozen=True)
class TrueGaussianExperts:
    """True Gaussian experts: their family and parameters."""

    family: GaussianExperts
    theta_P: Tensor
