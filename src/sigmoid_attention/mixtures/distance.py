"""Distances without Voronoi cells: to the nearest minimiser, and between conditional laws.

Shape letters: B fits, M members of a set, k experts, P parameters, Q inputs.
"""

import torch
from torch import Tensor

from sigmoid_attention.extras import lab_imports
from sigmoid_attention.mixtures.equivalence import centred
from sigmoid_attention.mixtures.model import Mixture

with lab_imports("sigmoid_attention.mixtures"):
    import numpy as np
    from scipy.optimize import linear_sum_assignment


def matched(family: Mixture, theta_BP: Tensor, other_P: Tensor) -> Tensor:
    r"""The distance of fits to a mixture of the same family, with matched experts, (B,).

    .. math::
        \min_\pi \sum_i \Big( \sum_{parts} \|\beta_i - \bar\beta_{\pi(i)}\|
          + |\beta_{0 i} - \bar\beta_{0 \pi(i)}| + \|\eta_i - \bar\eta_{\pi(i)}\| \Big)

    over all orders pi of the experts (Hungarian method, which is fast for many experts). The parts
    are beta1, or A and b of a quadratic score. Under a gate that ignores a common shift both are
    centred first, which gives at most twice the least value over all shifts. A temperature enters
    by its logarithm.

    Args:
        other_P: one mixture, or one for each fit, (B, P).

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> family = Mixture("sigmoid", "constant", k=2)
        >>> theta = torch.tensor([[1.0, 0.0, 5.0, 2.0, 0.0, 6.0]])
        >>> matched(family, theta, torch.tensor([2.0, 0.0, 6.0, 1.0, 0.5, 5.0])).tolist()
        [0.5]
    """
    fitted = family.atoms(centred(family, theta_BP))
    other = family.atoms(centred(family, other_P))
    gap_Bkk = fitted[..., :, None, :] - other[..., None, :, :]
    eta = slice(family.score_size, None)
    of_score = [part for part in family.parts.values() if part.start < family.score_size]
    norms = [torch.linalg.vector_norm(gap_Bkk[..., part], dim=-1) for part in (*of_score, eta)]
    cost_Bkk = torch.stack(norms).sum(0)
    least = [cost[linear_sum_assignment(cost)].sum() for cost in cost_Bkk.numpy()]
    beside = (theta_BP - other_P)[..., family.k * family.atom_size :].abs().sum(-1)
    return torch.tensor(np.array(least)) + beside


def d3(family: Mixture, theta_BP: Tensor, members_MP: Tensor) -> Tensor:
    """Distance of fits to the nearest of several minimisers, (B,).

    The papers sum over the Voronoi cells of one minimiser, which is the same near that minimiser.
    With matched experts the loss is a distance also where several experts share one cell. Samples
    represent a continuum of minimisers. The distance changes by no more than the minimiser does, so
    samples with a spacing of eps overstate it by at most eps / 2. Source: Nguyen et al. 2024, D3;
    Yan et al. 2025, L3.

    Args:
        members_MP: parameters of the minimisers, e.g. ``projection.Projection.theta_MP``.

    Raises:
        ValueError: no members, or members of another size.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> family = Mixture("sigmoid", "constant", k=1)
        >>> members = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 4.0]])
        >>> d3(family, torch.tensor([[0.0, 0.0, 3.0]]), members).tolist()
        [1.0]
    """
    if members_MP.dim() != 2 or len(members_MP) == 0 or members_MP.shape[1] != family.size:
        raise ValueError(
            f"members must be (M, {family.size}) with M of 1 or more, got {tuple(members_MP.shape)}"
        )
    return torch.stack([matched(family, theta_BP, member) for member in members_MP]).amin(0)


def hellinger(
    family: Mixture, theta_BP: Tensor, truth_Q: Tensor, inputs_Qd: Tensor, *, sigma: float
) -> Tensor:
    r"""Hellinger distance of the laws of an answer with Gaussian noise, (B,), between 0 and 1.

    .. math:: h^2 = \operatorname{mean}_x \Big(1 - e^{-(f_\theta(x) - f^*(x))^2 / (8 \sigma^2)}\Big)

    which is half the integrated square of the difference of the densities' roots. It saturates
    where L2 does not, and is L2 / (sqrt 8 sigma) for small errors.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> family = Mixture("sigmoid", "constant", k=1)
        >>> theta, inputs = torch.zeros(1, 3), torch.zeros(4, 1)
        >>> hellinger(family, theta, torch.full((4,), 100.0), inputs, sigma=0.1).tolist()
        [1.0]
    """
    gap_BQ = family.predict(theta_BP, inputs_Qd) - truth_Q
    # expm1 is accurate for small distances.
    return (-torch.expm1(-gap_BQ.square() / (8 * sigma**2))).mean(-1).sqrt()
