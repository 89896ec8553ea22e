"""How far fitted experts are from the true ones: Voronoi losses, and losses that need no cells.

Shape letters: B fits, k fitted experts, t true experts, F parameters of a score, E of an expert,
Q inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.mixtures.model import Mixture


@dataclass(frozen=True)
class Truth:
    """A true mixture: its family, with k* experts, and its parameters."""

    family: Mixture
    theta_P: Tensor

    @property
    def atoms(self) -> Tensor:
        return self.family.atoms(self.theta_P)


@dataclass(frozen=True)
class Parts:
    """What a loss is made of, for each true expert j; a number that does not apply is 0.

    ``mass`` |sum of gate masses in the cell - the true one|, ``exact`` what errs in a cell of one,
    ``over`` what errs in a cell of several, ``weighted`` likewise with each fitted expert's share
    of the cell's mass, ``largest`` the largest error of an expert's parameters in the cell.
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
        """The papers' loss: masses, exact cells, crowded cells."""
        return (self.mass_Bt + self.exact_Bt + self.over_Bt).sum(-1)


def cells(family: Mixture, theta_BP: Tensor, truth: Truth) -> Tensor:
    """The true expert nearest to each fitted one, (B, k), by all but the intercept of the score.

    Source: P2, section 3: A_j = {i : |theta_i - theta*_j| <= |theta_i - theta*_l| for all l}.
    """
    return _distances(family, theta_BP, truth).argmin(-1)


def _shape_and_expert(family: Mixture, atoms: Tensor) -> Tensor:
    intercept = family.score_size - 1
    return torch.cat((atoms[..., :intercept], atoms[..., intercept + 1 :]), -1)


def _distances(family: Mixture, theta_BP: Tensor, truth: Truth) -> Tensor:
    fitted = _shape_and_expert(family, family.atoms(theta_BP))
    true = _shape_and_expert(truth.family, truth.atoms)
    return torch.linalg.vector_norm(fitted[..., :, None, :] - true, dim=-1)


def _masses(family: Mixture, atoms: Tensor) -> Tensor:
    """sigmoid or exponential of the intercept: the weights of the mixing measure G."""
    intercept = atoms[..., family.score_size - 1]
    return intercept.exp() if family.gate == "softmax" else intercept.sigmoid()


def voronoi(
    family: Mixture,
    theta_BP: Tensor,
    truth: Truth,
    *,
    powers: dict[str, float] | None = None,
    everywhere: bool = False,
) -> Parts:
    r"""The parts of the papers' Voronoi losses.

    .. math::
        D = \sum_j \Big|\sum_{i \in A_j} m_i - m_j^*\Big|
          + \sum_{|A_j| = 1} \|\Delta_{ij}\|_1^{(parts)}
          + \sum_{|A_j| > 1} \sum_{i \in A_j} \sum_{parts} \|\Delta_{ij}\|^{r}

    with masses m = sigmoid(beta0), under softmax exp(beta0), by which the terms are then weighted.
    The mass of a cell of one is part of its exact term instead, as |Delta beta0|, where the gate is
    not softmax. Source: P2, equations of D1, D2,r and the softmax D; P3's with A, b, c.

    Args:
        powers: the exponent r of each part in a crowded cell, 2 where it is not named.
        everywhere: use the powers in cells of one as well (D2,r).
    """
    fitted, true = family.atoms(theta_BP), truth.atoms
    cell_Bk = cells(family, theta_BP, truth)
    count = true.shape[-2]
    member = torch.nn.functional.one_hot(cell_Bk, count).to(fitted.dtype)
    crowd = member.sum(-2)
    mass_k, mass_t = _masses(family, fitted), _masses(truth.family, true)
    competing = family.gate == "softmax"
    factor = mass_k if competing else torch.ones_like(mass_k)
    difference = fitted - true[cell_Bk]
    intercept = family.score_size - 1
    plain, powered = torch.zeros_like(mass_k), torch.zeros_like(mass_k)
    for name, place in family.parts.items():
        norm = torch.linalg.vector_norm(difference[..., place], dim=-1)
        if place.start == intercept:
            if not competing:
                plain = plain + norm
            continue
        plain = plain + norm
        powered = powered + norm ** (powers or {}).get(name, 2.0)
    alone = crowd.gather(-1, cell_Bk) == 1
    exact = torch.where(alone, powered if everywhere else plain, 0.0) * factor
    over = torch.where(alone, 0.0, powered) * factor
    per_cell = lambda values: (member * values[..., None]).sum(-2)  # noqa: E731
    mass = (per_cell(mass_k) - mass_t).abs()
    if not competing and not everywhere:
        mass = torch.where(crowd == 1, 0.0, mass)
    expert_error = torch.linalg.vector_norm(difference[..., family.score_size :], dim=-1)
    crowded_error = torch.where(alone, 0.0, expert_error)
    share = mass_k / per_cell(mass_k).gather(-1, cell_Bk)
    largest = torch.where(member.bool(), crowded_error[..., None], 0.0).amax(-2)
    return Parts(
        cell_Bk, crowd, mass, per_cell(exact), per_cell(over), per_cell(share * crowded_error),
        largest,
    )  # fmt: skip


def contribution_loss(family: Mixture, theta_BP: Tensor, truth: Truth, inputs_Qd: Tensor) -> Tensor:
    """sum_j | sum over cell j of w_i h_i - w*_j h*_j |_L2, (B,): what a cell answers, not by whom.

    Splitting an expert into two of the same answer costs nothing, and neither does one whose gate
    is shut.
    """
    fitted = family.contributions(theta_BP, inputs_Qd)
    true = truth.family.contributions(truth.theta_P, inputs_Qd)
    member = torch.nn.functional.one_hot(cells(family, theta_BP, truth), true.shape[-1])
    gap = fitted @ member.to(fitted.dtype) - true
    return gap.square().mean(-2).sqrt().sum(-1)


def l2(family: Mixture, theta_BP: Tensor, truth_Q: Tensor, inputs_Qd: Tensor) -> Tensor:
    """Root mean square error of the regression function over the inputs, (B,)."""
    return (family.predict(theta_BP, inputs_Qd) - truth_Q).square().mean(-1).sqrt()
