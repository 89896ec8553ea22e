"""The losses between fitted and true experts: Voronoi losses, and losses without cells.

Shape letters: B fits, k fitted experts, t true experts, F parameters of a score, E of an expert,
Q inputs, C candidates.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.mixtures.equivalence import shift_scores
from sigmoid_attention.mixtures.gates import gate
from sigmoid_attention.mixtures.model import Mixture

# An exponent, or a function from the number of fitted experts in a cell to the exponent.
Power = float | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TrueMixture:
    """A true mixture: its family, with k* experts, and its parameters."""

    family: Mixture
    theta_P: Tensor

    @property
    def atoms(self) -> Tensor:
        return self.family.atoms(self.theta_P)


@dataclass(frozen=True)
class VoronoiParts:
    """The terms of a loss for each true expert j; a term that does not apply is 0.

    ``mass`` is |sum of gate masses in the cell - the true mass|. ``exact`` is the error in a cell
    with one expert, ``over`` the error in a cell with several. ``weighted`` is like ``over``, with
    each fitted expert weighted by its share of the cell's mass. ``largest`` is the largest error of
    an expert's parameters in a cell with several.
    """

    cell_Bk: Tensor
    crowd_Bt: Tensor
    mass_Bt: Tensor
    exact_Bt: Tensor
    over_Bt: Tensor
    weighted_Bt: Tensor
    largest_Bt: Tensor

    @property
    def total_B(self) -> Tensor:
        """The loss of the papers: masses, exact cells and crowded cells."""
        return (self.mass_Bt + self.exact_Bt + self.over_Bt).sum(-1)


# Exponents ------------------------------------------------------------------------------------


def rbar(crowd: Tensor) -> Tensor:
    """The exponent of a cell by its number of fitted experts: 4 for two, 6 for three, 7 for more.

    It is the order at which a system of polynomials is no longer solvable. For four or more experts
    it is known to be at least 7. With 7 the loss is, for small errors, at least the true one.
    Source: arXiv 2305.03288.

    Example:
        >>> import torch
        >>> rbar(torch.tensor([2.0, 3.0, 8.0])).tolist()
        [4.0, 6.0, 7.0]
    """
    return (2 * crowd).clamp(4, 7)


def quadratic_powers(family: Mixture) -> dict[str, Power]:
    """The exponents of Yan et al. 2025 for a crowded cell, where they are not 2.

    Under a fully quadratic score a second derivative by b equals a first derivative by A, so the
    errors of both interact: b has rbar, A half of it. A partially quadratic score has no b and
    keeps 2.
    Source: Yan et al. 2025, L1. [derived]

    Example:
        >>> sorted(quadratic_powers(Mixture("sigmoid", "gelu", "fully_quadratic")))
        ['A', 'b']
    """
    if family.score != "fully_quadratic":
        return {}
    return {"A": lambda crowd: rbar(crowd) / 2, "b": rbar}


# Cells ----------------------------------------------------------------------------------------


def aligned(family: Mixture, theta_BP: Tensor, truth: TrueMixture) -> Tensor:
    """The fits, (B, P), with their scores shifted towards the true scores.

    Under a gate that ignores a common shift of all scores, the papers' losses are minima over all
    shifts. Here a shift makes the score of one fitted expert equal to that of one true expert, up
    to the intercept. The pair with the least loss is used. By the triangle inequality this is
    within a constant factor of the minimum over all shifts, and it does not depend on a common
    shift. Under any other gate the fits do not change.
    """
    if not gate(family.gate).shift:
        return theta_BP
    intercept = family.score_size - 1
    fitted_BktF = family.atoms(theta_BP)[..., None, :intercept]
    apart_BCF = (truth.atoms[..., :intercept] - fitted_BktF).flatten(1, 2)
    # Intercepts need no shift: masses are relative.
    shift_BCF = torch.nn.functional.pad(apart_BCF, (0, 1))
    shifted_BCP = shift_scores(family, theta_BP[:, None], shift_BCF)
    best_B = _parts(family, shifted_BCP, truth, {}, everywhere=False).total_B.argmin(-1)
    return shifted_BCP[torch.arange(len(best_B)), best_B]


def cells(family: Mixture, theta_BP: Tensor, truth: TrueMixture) -> Tensor:
    """The true expert nearest to each fitted one, (B, k), in all parameters but the intercept.

    Source: Nguyen et al. 2024, section 3:
    A_j = {i : |theta_i - theta*_j| <= |theta_i - theta*_l| for all l}.
    """
    return _nearest(family, aligned(family, theta_BP, truth), truth)


def _nearest(family: Mixture, theta_BP: Tensor, truth: TrueMixture) -> Tensor:
    fitted = _shape_and_expert(family, family.atoms(theta_BP))
    true = _shape_and_expert(truth.family, truth.atoms)
    return torch.linalg.vector_norm(fitted[..., :, None, :] - true, dim=-1).argmin(-1)


def _shape_and_expert(family: Mixture, atoms: Tensor) -> Tensor:
    intercept = family.score_size - 1
    return torch.cat((atoms[..., :intercept], atoms[..., intercept + 1 :]), -1)


def _masses(family: Mixture, atoms: Tensor) -> Tensor:
    """The weights of the mixing measure G; under a shift-blind gate normalised to sum to 1.

    For a softmax these are the papers' exp(beta0), divided by their sum. For the sparse gates,
    which the papers do not treat, they are the gate of the intercepts.
    """
    intercepts = atoms[..., family.score_size - 1]
    blind = gate(family.gate)
    return blind.weights(intercepts) if blind.shift else intercepts.sigmoid()


# Losses ---------------------------------------------------------------------------------------


def voronoi(
    family: Mixture,
    theta_BP: Tensor,
    truth: TrueMixture,
    *,
    powers: Mapping[str, Power] | None = None,
    everywhere: bool = False,
) -> VoronoiParts:
    r"""The parts of the papers' Voronoi losses.

    .. math::
        D = \sum_j \Big|\sum_{i \in A_j} m_i - m_j^*\Big|
          + \sum_{|A_j| = 1} \|\Delta_{ij}\|_1^{(parts)}
          + \sum_{|A_j| > 1} \sum_{i \in A_j} \sum_{parts} \|\Delta_{ij}\|^{r}

    with masses m = sigmoid(beta0). Under softmax m = exp(beta0), divided by the sum, and m also
    weighs the terms. If the gate depends on a common shift, the mass of a cell with one expert is
    part of its exact term instead, as |Delta beta0|, or |Delta beta0|^r in D2,r. The loss does not
    depend on the order of experts, nor on a common shift of the scores that the gate ignores
    (``aligned``).
    Source: Nguyen et al. 2024, D1, D2,r (equation 9) and the softmax D; Yan et al. 2025, L1 and
    L2,r with A, b, c.

    Args:
        powers: the exponent r of each part in a crowded cell, 2 for parts that are not named; see
            ``quadratic_powers``.
        everywhere: use the powers in cells of one as well (D2,r). The power of beta0, a part that
            only such cells have, is 2 unless it is named.

    Raises:
        ValueError: a power for a part that the family does not have.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> family = Mixture("sigmoid", "constant", k=2)
        >>> truth = TrueMixture(family, torch.tensor([1.0, 0.0, 5.0, 2.0, 0.0, 6.0]))
        >>> fitted = torch.tensor([[2.0, 0.25, 6.0, 1.0, 0.0, 5.5]])
        >>> voronoi(family, fitted, truth).total_B.tolist()
        [0.75]
    """
    unknown = sorted(set(powers or {}) - set(family.parts))
    if unknown:
        raise ValueError(f"powers must name parts of {', '.join(family.parts)}, got {unknown[0]}")
    return _parts(family, aligned(family, theta_BP, truth), truth, powers or {}, everywhere)


def _parts(
    family: Mixture,
    theta_BP: Tensor,
    truth: TrueMixture,
    powers: Mapping[str, Power],
    everywhere: bool,
) -> VoronoiParts:
    fitted, true = family.atoms(theta_BP), truth.atoms
    cell_Bk = _nearest(family, theta_BP, truth)
    member = torch.nn.functional.one_hot(cell_Bk, true.shape[-2]).to(fitted.dtype)
    crowd = member.sum(-2)
    crowd_Bk = crowd.gather(-1, cell_Bk)
    mass_k, mass_t = _masses(family, fitted), _masses(truth.family, true)
    competing = gate(family.gate).shift
    factor = mass_k if competing else torch.ones_like(mass_k)
    difference = fitted - true[cell_Bk]
    intercept = family.score_size - 1
    plain, powered = torch.zeros_like(mass_k), torch.zeros_like(mass_k)
    intercepts = torch.zeros_like(mass_k)
    for name, part in family.parts.items():
        norm = torch.linalg.vector_norm(difference[..., part], dim=-1)
        power = powers.get(name, 2.0)
        raised = norm ** (power(crowd_Bk) if callable(power) else power)
        if part.start == intercept:
            if not competing:
                plain, intercepts = plain + norm, raised
            continue
        plain, powered = plain + norm, powered + raised
    alone = crowd_Bk == 1
    exact = torch.where(alone, powered + intercepts if everywhere else plain, 0.0) * factor
    over = torch.where(alone, 0.0, powered) * factor
    per_cell = lambda values: (member * values[..., None]).sum(-2)  # noqa: E731
    mass = (per_cell(mass_k) - mass_t).abs()
    if not competing:
        mass = torch.where(crowd == 1, 0.0, mass)
    expert_error = torch.linalg.vector_norm(difference[..., family.score_size :], dim=-1)
    crowded_error = torch.where(alone, 0.0, expert_error)
    # A sparse gate may leave a whole cell without mass.
    cell_mass = per_cell(mass_k).gather(-1, cell_Bk).clamp(min=torch.finfo(mass_k.dtype).tiny)
    share = mass_k / cell_mass
    largest = torch.where(member.bool(), crowded_error[..., None], 0.0).amax(-2)
    return VoronoiParts(
        cell_Bk, crowd, mass, per_cell(exact), per_cell(over), per_cell(share * crowded_error),
        largest,
    )  # fmt: skip


def contribution_loss(
    family: Mixture, theta_BP: Tensor, truth: TrueMixture, inputs_Qd: Tensor
) -> Tensor:
    """sum_j | sum over cell j of w_i h_i - w*_j h*_j |_L2, (B,): the errors of whole cells.

    An expert split into two with the same sum adds no loss, nor does an expert with gate weight 0.
    """
    fitted = family.contributions(theta_BP, inputs_Qd)
    true = truth.family.contributions(truth.theta_P, inputs_Qd)
    member = torch.nn.functional.one_hot(cells(family, theta_BP, truth), true.shape[-1])
    gap = fitted @ member.to(fitted.dtype) - true
    return gap.square().mean(-2).sqrt().sum(-1)


def l2(family: Mixture, theta_BP: Tensor, truth_Q: Tensor, inputs_Qd: Tensor) -> Tensor:
    """Root mean square error of the regression function over the inputs, (B,)."""
    return (family.predict(theta_BP, inputs_Qd) - truth_Q).square().mean(-1).sqrt()
