"""The losses of Nguyen et al. 2025 between fitted and true Gaussian experts.

Shape letters: B fits, k fitted and t true experts of a group (routed or shared), A parameters of an
expert in natural units (variances and weights, not their logarithms), M minimisers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from sigmoid_attention.extras import lab_imports
from sigmoid_attention.mixtures import experts
from sigmoid_attention.mixtures.gaussian.family import GaussianExperts, TrueGaussianExperts

with lab_imports("sigmoid_attention.mixtures"):
    import numpy as np
    from scipy.optimize import linear_sum_assignment

# Exponents in a cell of 2, of 3 and of more fitted experts. ``SYSTEM`` is rbar(m) of Gaussian
# mixtures, from polynomial systems; 7 is only a lower bound for more than 3.
SQUARE = (2.0, 2.0, 2.0)
SYSTEM = (4.0, 6.0, 7.0)
HALF_SYSTEM = (2.0, 3.0, 3.5)
Powers = Mapping[str, tuple[float, float, float]]
SQUARES: Powers = MappingProxyType({})


@dataclass(frozen=True)
class GaussianLossParts:
    """The terms of a group's loss for each true expert; a term that does not apply is 0."""

    mass_Bt: Tensor
    exact_Bt: Tensor
    over_Bt: Tensor

    @property
    def total_B(self) -> Tensor:
        return (self.mass_Bt + self.exact_Bt + self.over_Bt).sum(-1)


@dataclass(frozen=True)
class _Group:
    """The experts of a group: their compared ``parts`` and their ``mass``."""

    fitted_BkA: Tensor
    true_tA: Tensor
    mass_Bk: Tensor
    true_mass_t: Tensor
    parts: dict[str, slice]
    weighs: bool
    intercept: slice


def routed_loss(
    family: GaussianExperts, theta_BP: Tensor, truth: TrueGaussianExperts, powers: Powers = SQUARES
) -> GaussianLossParts:
    r"""The routed experts' part of the Voronoi losses.

    .. math::
        \sum_j \Big|\sum_{i \in V_j} m_i - m_j^*\Big|
        + \sum_{|V_j| = 1} m_i \sum_{parts} \|\Delta_{ij}\|
        + \sum_{|V_j| > 1} \sum_{i \in V_j} m_i \sum_{parts} \|\Delta_{ij}\|^{r_{part}(|V_j|)}

    with parts beta1, eta and nu, which also define the cells, and m = exp(beta0) under softmax. A
    common shift of all scores is removed first: fitted and true masses then have the same sum, and
    the means of beta1, weighted by mass, agree. Under the normalised sigmoid gate
    m = sigmoid(beta0), which does not weigh the terms, and a cell with one expert has
    |Delta beta0| in place of its mass [derived, after the loss of Nguyen et al. 2024 for its sparse
    regime]. Source: Nguyen et al. 2025, the losses of theorems 1 to 3: r = 2 for strongly
    identifiable experts; for linear experts rbar for beta1 and the intercept, rbar / 2 for the
    rest.

    Args:
        powers: exponents of parts by name, ``SQUARE`` for the others. The names are the parts of
            ``family.routed`` and "variance".

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> from sigmoid_attention.mixtures.gaussian import GaussianExperts, TrueGaussianExperts
        >>> from sigmoid_attention.mixtures.gaussian.losses import routed_loss
        >>> family = GaussianExperts(Mixture("softmax", "constant", k=2))
        >>> theta = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 5.0, 0.0])
        >>> shifted = theta + torch.tensor([3.0, 2.0, 0.0, 0.0]).repeat(2)
        >>> float(routed_loss(family, shifted[None], TrueGaussianExperts(family, theta)).total_B)
        0.0
    """
    fitted = _natural(family.atoms(theta_BP)[0], -1)
    true = _natural(truth.family.atoms(truth.theta_P)[0], -1)
    place = family.routed.score_size - 1
    parts = {**family.routed.parts, "variance": slice(family.routed_size - 1, family.routed_size)}
    weighs = family.routed.gate == "softmax"
    if weighs:
        fitted = _shifted(fitted, true, place)
        mass, true_mass = fitted[..., place].exp(), true[..., place].exp()
    else:
        mass, true_mass = fitted[..., place].sigmoid(), true[..., place].sigmoid()
    intercept = parts.pop("beta0" if "beta0" in parts else "c")
    return _loss(_Group(fitted, true, mass, true_mass, parts, weighs, intercept), powers)


def shared_loss(
    family: GaussianExperts, theta_BP: Tensor, truth: TrueGaussianExperts, powers: Powers = SQUARES
) -> GaussianLossParts:
    r"""The part of the shared experts: ``routed_loss`` with m = omega and parts kappa and tau.

    Args:
        powers: exponents by name: those of the expert's parts, and "variance".

    Raises:
        ValueError: a family or a truth without shared experts.
    """
    if family.shared is None or truth.family.shared is None:
        raise ValueError("shared: neither the family nor the truth may be without, got None")
    fitted = _natural(family.atoms(theta_BP)[1], -2)
    true = _natural(truth.family.atoms(truth.theta_P)[1], -2)
    mass, true_mass = fitted[..., -1].softmax(-1), true[..., -1].softmax(-1)
    parts, start = {}, 0
    of_expert = experts.expert(family.shared.expert).parts(family.routed.d)
    for name, count in {**of_expert, "variance": 1}.items():
        parts[name] = slice(start, start + count)
        start += count
    return _loss(_Group(fitted, true, mass, true_mass, parts, True, slice(0)), powers)


def expert_loss(
    family: GaussianExperts, theta_BP: Tensor, truth: TrueGaussianExperts, inputs_Qd: Tensor
) -> Tensor:
    r"""The distance of routed experts to the true ones, weighted by mean gate weight, (B,).

    .. math::
        \sum_i \operatorname{mean}_x g_i(x) \min_j (\|\Delta\eta_{ij}\| + |\Delta\nu_{ij}|)

    The loss does not depend on the gate's parameters themselves, and an expert with weight 0 adds
    nothing. It serves where several gates give the same density.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> from sigmoid_attention.mixtures.gaussian import GaussianExperts, TrueGaussianExperts
        >>> from sigmoid_attention.mixtures.gaussian.losses import expert_loss
        >>> family = GaussianExperts(Mixture("softmax", "constant", k=2))
        >>> theta = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 5.0, 0.0])
        >>> moved = theta + torch.tensor([0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
        >>> truth = TrueGaussianExperts(family, theta)
        >>> expert_loss(family, moved[None], truth, torch.zeros(3, 1)).tolist()
        [0.25]
    """
    first = family.routed.score_size
    fitted = _natural(family.atoms(theta_BP)[0], -1)[..., :, None, first:]
    gap = fitted - _natural(truth.family.atoms(truth.theta_P)[0], -1)[:, first:]
    error = torch.linalg.vector_norm(gap[..., :-1], dim=-1) + gap[..., -1].abs()
    _, weights = family.means_and_weights(theta_BP, inputs_Qd)
    routed = weights[..., : family.routed.k].mean(-2)
    return (routed * error.amin(-1)).sum(-1) / routed.sum(-1)


def matched(family: GaussianExperts, theta_BP: Tensor, members_MP: Tensor) -> Tensor:
    r"""The distance of the routed experts to those of the nearest minimiser, (B,).

    .. math::
        \min_{\bar G} \min_\pi \sum_i \|\Delta\beta_{1 i\pi(i)}\| + |\Delta\beta_{0 i\pi(i)}|
            + \|\Delta\eta_{i\pi(i)}\| + |\Delta\nu_{i\pi(i)}|

    over the orders pi of the experts. Source: Nguyen et al. 2025, theorem 4 (dense regime)
    [derived: after D3 of Nguyen et al. 2024], with experts matched in place of cells.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> from sigmoid_attention.mixtures.gaussian import GaussianExperts
        >>> from sigmoid_attention.mixtures.gaussian.losses import matched
        >>> family = GaussianExperts(Mixture("normalised_sigmoid", "constant", k=2))
        >>> theta = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 5.0, 0.0]])
        >>> other = torch.tensor([[0.0, 0.0, 5.5, 0.0, 0.0, 0.0, 1.0, 0.0]])
        >>> matched(family, theta, other).tolist()
        [0.5]
    """
    fitted = _natural(family.atoms(theta_BP)[0], -1)[:, None, :, None]
    members = _natural(family.atoms(members_MP)[0], -1)[:, None]
    parts = [*family.routed.parts.values(), slice(family.routed_size - 1, None)]
    gap = fitted - members
    cost = np.asarray(sum(torch.linalg.vector_norm(gap[..., part], dim=-1) for part in parts))
    least = [
        cost_kk[linear_sum_assignment(cost_kk)].sum()
        for cost_kk in cost.reshape(-1, *cost.shape[-2:])
    ]
    return torch.tensor(np.array(least)).reshape(cost.shape[:2]).amin(-1)


def _natural(atoms_kA: Tensor, log_variance: int) -> Tensor:
    natural = atoms_kA.clone()
    natural[..., log_variance] = natural[..., log_variance].exp()
    return natural


def _shifted(fitted_BkA: Tensor, true_tA: Tensor, intercept: int) -> Tensor:
    """Fitted scores after a common shift of all experts towards the truth."""
    shifted = fitted_BkA.clone()
    of_fit, of_truth = fitted_BkA[..., intercept], true_tA[..., intercept]
    slope_k = (of_fit.softmax(-1)[..., None] * fitted_BkA[..., :intercept]).sum(-2)
    slope_t = (of_truth.softmax(-1)[..., None] * true_tA[..., :intercept]).sum(-2)
    shifted[..., :intercept] += (slope_t - slope_k)[..., None, :]
    shifted[..., intercept] += (of_truth.logsumexp(-1) - of_fit.logsumexp(-1))[..., None]
    return shifted


def _loss(group: _Group, powers: Powers) -> GaussianLossParts:
    columns = torch.cat([torch.arange(part.start, part.stop) for part in group.parts.values()])
    apart = group.fitted_BkA[..., :, None, columns] - group.true_tA[..., columns]
    cell_Bk = torch.linalg.vector_norm(apart, dim=-1).argmin(-1)
    member = torch.nn.functional.one_hot(cell_Bk, len(group.true_tA)).to(apart.dtype)
    crowd_Bk = member.sum(-2).gather(-1, cell_Bk)
    difference = group.fitted_BkA - group.true_tA[cell_Bk]
    plain, powered = torch.zeros_like(group.mass_Bk), torch.zeros_like(group.mass_Bk)
    for name, part in group.parts.items():
        norm = torch.linalg.vector_norm(difference[..., part], dim=-1)
        plain = plain + norm
        exponents = norm.new_tensor(powers.get(name, SQUARE))
        powered = powered + norm ** exponents[(crowd_Bk.long() - 2).clamp(0, 2)]
    alone = crowd_Bk == 1
    factor = group.mass_Bk if group.weighs else torch.ones_like(plain)
    per_cell = lambda values: (member * values[..., None]).sum(-2)  # noqa: E731
    mass = (per_cell(group.mass_Bk) - group.true_mass_t).abs()
    if not group.weighs:
        plain = plain + difference[..., group.intercept].abs().sum(-1)
        mass = torch.where(member.sum(-2) == 1, 0.0, mass)
    return GaussianLossParts(
        mass,
        per_cell(torch.where(alone, factor * plain, 0.0)),
        per_cell(torch.where(alone, 0.0, factor * powered)),
    )
