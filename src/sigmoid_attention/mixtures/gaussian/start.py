"""Starting points of maximum likelihood near the truth, as in published simulations.

Shape letters: t true and k fitted experts of a group, A parameters of an expert, P of all.
"""

import torch
from torch import Tensor

from sigmoid_attention.mixtures.gaussian.family import GaussianExperts, TrueGaussianExperts

# Standard deviations of the start around the truth, and the exponents of n in them.
APART, APART_POWER = 0.005, -0.083
VARIANCE_APART, VARIANCE_POWER = 0.0005, -0.25


def near_truth(
    truth: TrueGaussianExperts,
    family: GaussianExperts,
    *,
    n: int,
    times: float,
    rng: torch.Generator,
) -> Tensor:
    """A start around the truth, (P,), for a family with as many experts or more.

    Every true expert is the origin of one fitted expert; the origins of the others are drawn at
    random. Experts with the same origin share its mass equally. Scores and experts get normal noise
    of standard deviation 0.005 n^-0.083; variances get the absolute value of normal noise of
    0.0005 n^-0.25. Source: the public code of arXiv 2305.03288, by authors of Nguyen et al. 2025,
    whose own start was not recovered; sharing the mass is ours.

    Args:
        n: number of observations.
        times: a factor of the distance of the start from the truth.

    Raises:
        ValueError: fewer experts than the truth has.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> from sigmoid_attention.mixtures.gaussian import (
        ...     GaussianExperts, TrueGaussianExperts, near_truth,
        ... )
        >>> one = GaussianExperts(Mixture("softmax", "constant", k=1))
        >>> truth = TrueGaussianExperts(one, torch.zeros(4))
        >>> family = GaussianExperts(Mixture("softmax", "constant", k=2))
        >>> start = near_truth(truth, family, n=100, times=0.0, rng=torch.Generator())
        >>> (start * 100).round().tolist()
        [0.0, -69.0, 0.0, 0.0, 0.0, -69.0, 0.0, 0.0]
    """
    routed, shared = truth.family.atoms(truth.theta_P)
    wanted = family.routed.k, family.shared.k if family.shared else 0
    if wanted[0] < len(routed) or wanted[1] < len(shared):
        raise ValueError(
            f"family must have as many experts as the truth, {len(routed)} routed and "
            f"{len(shared)} shared, got {wanted[0]} and {wanted[1]}"
        )
    place = family.routed.score_size - 1
    atoms, copies = _with_copies(routed, wanted[0], rng)
    intercept = atoms[:, place]
    if family.routed.gate == "softmax":
        atoms[:, place] = intercept - copies.log()
    else:
        atoms[:, place] = torch.logit(intercept.sigmoid() / copies)
    spread = times * APART * n**APART_POWER, times * VARIANCE_APART * n**VARIANCE_POWER
    start = [_noisy(atoms, -1, spread, rng)]
    if len(shared):
        atoms, copies = _with_copies(shared, wanted[1], rng)
        atoms[:, -1] -= copies.log()
        start.append(_noisy(atoms, -2, spread, rng))
    return torch.cat(start)


def _with_copies(true_tA: Tensor, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Experts (k, A), each a copy of a true one, and the number of copies of its origin."""
    known = len(true_tA)
    extra = torch.randint(known, (count - known,), generator=rng)
    origin = torch.cat((torch.arange(known), extra))
    return true_tA[origin], torch.bincount(origin)[origin].to(true_tA.dtype)


def _noisy(
    atoms_kA: Tensor, log_variance: int, spread: tuple[float, float], rng: torch.Generator
) -> Tensor:
    noise = torch.randn(atoms_kA.shape, generator=rng, dtype=torch.float64).to(atoms_kA.dtype)
    moved = atoms_kA + spread[0] * noise
    variance = atoms_kA[:, log_variance].exp() + spread[1] * noise[:, log_variance].abs()
    moved[:, log_variance] = variance.log()
    return moved.flatten()
