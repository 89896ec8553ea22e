"""Multinomial-logistic mixtures of experts for classification, by maximum likelihood.

Shape letters: A problems, Q inputs, d their dimension, k experts, S classes, C = S - 1 of them
without the reference, P parameters, R of them behind one class's logit.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sigmoid_attention.mixtures.labels import Labelled
from sigmoid_attention.mixtures.model import Mixture, free_parameters
from sigmoid_attention.mixtures.solver import DEFAULTS, Fit, ParameterBox, SolverSettings, descend


@dataclass(frozen=True)
class LogisticMixture:
    r"""A family of conditional laws of a class given an input.

    .. math::
        p(c \mid x) = \frac{\exp f_c(x)}{\sum_{c'=1}^S \exp f_{c'}(x)}, \qquad
        f_c(x) = \sum_{i=1}^k g(s_1(x), \dots, s_k(x))_i\, h(x, \eta_i^c), \qquad f_S = 0

    Logits are mixed, not probabilities. The last class is the reference. Every other class has its
    own `Mixture`, and all classes share the gate. The vector of parameters lists the experts in
    order: for each the parameters of its score, then one block of expert parameters for every class
    but the last. The logarithm of the temperature is the last parameter.

    Args:
        logit: the family of one class's logit.
        classes: S.

    Raises:
        ValueError: fewer than two classes.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> family = LogisticMixture(Mixture("softmax", "tanh", k=2, d=3), classes=4)
        >>> family.size
        26
        >>> theta = torch.zeros(26, dtype=torch.float64)
        >>> family.probabilities(theta, torch.ones(1, 3).double()).tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """

    logit: Mixture
    classes: int

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ValueError(f"classes must be 2 or more, got {self.classes}")

    @property
    def k(self) -> int:
        return self.logit.k

    @property
    def score_size(self) -> int:
        return self.logit.score_size

    @property
    def expert_size(self) -> int:
        """Parameters of an expert for one class."""
        return self.logit.atom_size - self.score_size

    @property
    def atom_size(self) -> int:
        return self.score_size + (self.classes - 1) * self.expert_size

    @property
    def size(self) -> int:
        """Number of parameters, P."""
        return self.k * self.atom_size + int(self.logit.temperature)

    @property
    def parts(self) -> dict[str, slice]:
        """The place of each named part in an expert's parameters; "eta_a of 0" is for class 0."""
        slices = {}
        for name, part in self.logit.parts.items():
            if part.start < self.score_size:
                slices[name] = part
                continue
            for c in range(self.classes - 1):
                ahead = c * self.expert_size
                slices[f"{name} of {c}"] = slice(part.start + ahead, part.stop + ahead)
        return slices

    @cached_property
    def indices_CR(self) -> Tensor:
        """The indices, among the P parameters, of those of each class's `Mixture`."""
        block = torch.arange(self.expert_size)
        last = torch.arange(self.k * self.atom_size, self.size)  # the temperature's, if any
        rows = []
        for c in range(self.classes - 1):
            of_class = self.score_size + c * self.expert_size + block
            atom = torch.cat((torch.arange(self.score_size), of_class))
            columns = torch.arange(self.k)[:, None] * self.atom_size + atom
            rows.append(torch.cat((columns.flatten(), last)))
        return torch.stack(rows)

    @property
    def free_P(self) -> Tensor:
        """True for free parameters; under a shift-blind gate the last expert's score is fixed."""
        free = torch.ones(self.size, dtype=torch.bool)
        free[self.indices_CR] = free_parameters(self.logit)
        return free

    def atoms(self, theta_P: Tensor) -> Tensor:
        """(..., k, parameters of an expert)."""
        return theta_P[..., : self.k * self.atom_size].unflatten(-1, (self.k, self.atom_size))

    def logits(self, theta_P: Tensor, inputs_Qd: Tensor) -> Tensor:
        """(..., Q, S), the last of them 0."""
        return _with_reference(self.logit.predict(theta_P[..., self.indices_CR], inputs_Qd).mT)

    def probabilities(self, theta_P: Tensor, inputs_Qd: Tensor) -> Tensor:
        """(..., Q, S)."""
        return self.logits(theta_P, inputs_Qd).softmax(-1)

    def contributions(self, theta_P: Tensor, inputs_Qd: Tensor) -> Tensor:
        """Each expert's part of the logits, (..., Q, k, S)."""
        parts_CQk = self.logit.contributions(theta_P[..., self.indices_CR], inputs_Qd)
        return _with_reference(parts_CQk.movedim(-3, -1))

    def gate_weights(self, theta_P: Tensor, inputs_Qd: Tensor) -> Tensor:
        """(..., Q, k)."""
        return self.logit.gate_weights(theta_P[..., self.indices_CR[0]], inputs_Qd)


def _with_reference(logits_C: Tensor) -> Tensor:
    return torch.nn.functional.pad(logits_C, (0, 1))


@dataclass(frozen=True)
class LogisticDeviance:
    """-2 log likelihood of labels, minus that of the observed shares of classes at every input.

    Its quadratic model has the expected curvature (Fisher scoring). Differences are accurate up to
    n = 1e13: each term is the divergence of one share, which is small where the fit is good.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures.labels import LabelCounts
        >>> ends = torch.tensor([[-1.0], [1.0]]).double()
        >>> share = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]]).double()
        >>> data = LabelCounts(ends, share, torch.full((1, 2), 10.0).double())
        >>> family = LogisticMixture(Mixture("sigmoid", "constant", k=1), classes=2)
        >>> theta = torch.zeros(1, 3).double()
        >>> deviance = LogisticDeviance(family, data).cost(theta, torch.arange(1))
        >>> round(deviance.item() / 20, 4)  # log 2 for each of ten observations, and nothing
        0.6931
    """

    family: LogisticMixture
    data: Labelled

    @property
    def constant_B(self) -> Tensor:
        return torch.zeros_like(self.data.n_B)

    def cost(self, theta_AP: Tensor, which_A: Tensor) -> Tensor:
        total = theta_AP.new_zeros(len(theta_AP))
        for chunk in self.data.chunks(which_A):
            log_p = self.family.logits(theta_AP, chunk.inputs_Qd).log_softmax(-1)
            share = chunk.share_AQS
            # p - share sums to 0 over classes. With it every term of share log(share / p) is
            # positive by itself, and small where the fit is good.
            ratio = log_p - share.clamp(min=torch.finfo(share.dtype).tiny).log()
            apart = torch.where(share > 0, share * (ratio.expm1() - ratio), log_p.exp())
            total += (chunk.count_AQ * apart.sum(-1)).sum(-1)
        return 2 * total

    def quadratic(self, theta_AP: Tensor, which_A: Tensor) -> tuple[Tensor, Tensor]:
        """sum n (J' diag(p) J - J'p p'J) and sum n J' (share - p) over inputs."""
        family, (count, size) = self.family, theta_AP.shape
        curvature, gradient = theta_AP.new_zeros(count, size, size), torch.zeros_like(theta_AP)
        for chunk in self.data.chunks(which_A):
            logits_ACQ, jacobian_ACQR = family.logit.predict_with_jacobian(
                theta_AP[:, family.indices_CR], chunk.inputs_Qd
            )
            p_AQS = _with_reference(logits_ACQ.mT).softmax(-1)
            excess_AQS = chunk.count_AQ[..., None] * (chunk.share_AQS - p_AQS)
            mean_AQP = theta_AP.new_zeros(count, p_AQS.shape[1], size)
            for c, columns in enumerate(family.indices_CR):
                own_AQR = jacobian_ACQR[:, c]
                weighted = own_AQR * p_AQS[..., c, None]
                curvature[:, columns[:, None], columns] += (
                    weighted * chunk.count_AQ[..., None]
                ).mT @ own_AQR
                gradient[:, columns] += (own_AQR.mT @ excess_AQS[..., c, None])[..., 0]
                mean_AQP[..., columns] += weighted
            curvature -= (mean_AQP * chunk.count_AQ[..., None]).mT @ mean_AQP
        return curvature, gradient


def maximise_likelihood(
    family: LogisticMixture,
    data: Labelled,
    start_BP: Tensor,
    *,
    box: ParameterBox,
    settings: SolverSettings = DEFAULTS,
) -> Fit:
    """A local maximum-likelihood estimate for each problem, by damped Fisher scoring in a box.

    The ``chi2`` of the fit is the deviance. The solver and its stopping rule are those of
    `minimise`. For an exactly specified, regular family the deviance at the truth is higher, on
    average by the number of free parameters.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import FiniteDesign
        >>> from sigmoid_attention.mixtures.labels import draw_labels
        >>> from sigmoid_attention.mixtures.solver import ParameterBox
        >>> family = LogisticMixture(Mixture("normalised_sigmoid", "tanh", k=2, d=2), classes=3)
        >>> design, truth = FiniteDesign.sobol(64, d=2), torch.arange(14).double().sin() * 2
        >>> law = family.probabilities(truth, design.inputs_Qd)
        >>> data = draw_labels(design, law, [10**6] * 5, seed=0)
        >>> fit = maximise_likelihood(
        ...     family, data, truth.expand(5, -1), box=ParameterBox.around_zero(14, 10.0)
        ... )
        >>> bool(fit.converged_B.all())
        True
    """
    return descend(LogisticDeviance(family, data), start_BP, box=box, settings=settings)


def hellinger(
    family: LogisticMixture, theta_BP: Tensor, probability_QS: Tensor, inputs_Qd: Tensor
) -> Tensor:
    r"""Hellinger distance of the fitted conditional laws from the true one, (B,).

    .. math:: H^2 = \frac{1}{Q} \sum_q \frac{1}{2} \sum_c (\sqrt{p_c(x_q)} - \sqrt{p^*_c(x_q)})^2
    """
    fitted_BQS = family.probabilities(theta_BP, inputs_Qd)
    gap = fitted_BQS.sqrt() - probability_QS.sqrt()
    return (gap.square().sum(-1) / 2).mean(-1).sqrt()
