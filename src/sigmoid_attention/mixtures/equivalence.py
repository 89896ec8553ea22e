"""Different parameters of the same function: shifted scores, and conversion between gates.

Shape letters: k experts, F parameters of a score, P parameters of a mixture; ... any leading.
"""

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from sigmoid_attention.mixtures.gates import gate
from sigmoid_attention.mixtures.model import Mixture

# Experts that are linear in their parameters; the sum of two is an expert of the same kind.
ADDITIVE = ("linear", "constant")


def shift_scores(family: Mixture, theta_P: Tensor, shift_F: Tensor) -> Tensor:
    r"""Parameters of the mixture with the same function of x added to all scores.

    .. math:: s_i(x) \to s_i(x) + \tfrac{1}{\tau} c \cdot \phi(x) + c_0, \qquad (c, c_0) = shift

    with the features phi of a score that is linear in its parameters, and phi(x) = 2 x for
    Euclidean scores, whose centres move by c. A gate that ignores a common shift gives the same
    output.

    Args:
        theta_P: (..., P). shift_F: (..., F); leading dimensions broadcast.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> family = Mixture("softmax", "constant", k=2)
        >>> theta = torch.tensor([1.0, 0.0, 5.0, 2.0, 0.0, 6.0])
        >>> shift_scores(family, theta, torch.tensor([-2.0, 1.0])).tolist()
        [-1.0, 1.0, 5.0, 0.0, 1.0, 6.0]
    """
    lead = torch.broadcast_shapes(theta_P.shape[:-1], shift_F.shape[:-1])
    theta = theta_P.expand(*lead, -1)
    intercept = family.score_size - 1
    scores, experts = family.atoms(theta).tensor_split([family.score_size], -1)
    moved = scores + shift_F[..., None, :]
    if family.score == "euclidean":
        centre, by = scores[..., :intercept], shift_F[..., None, :intercept]
        rate = torch.exp(-theta[..., -1:]) if family.temperature else 1.0
        moved[..., intercept] += rate * (by * (2 * centre + by)).sum(-1)
    atoms = torch.cat((moved, experts), -1).flatten(-2)
    return torch.cat((atoms, theta[..., atoms.shape[-1] :]), -1)


def centred(family: Mixture, theta_P: Tensor) -> Tensor:
    """The parameters with score parameters of mean zero over experts, under a shift-blind gate.

    Two mixtures that differ in a common shift of their scores only become equal. Under any other
    gate nothing changes.
    """
    if not gate(family.gate).shift:
        return theta_P
    intercept = family.score_size - 1
    # Moving Euclidean centres changes the intercepts, which therefore come second.
    for part in (slice(intercept), slice(intercept, None)):
        mean = family.atoms(theta_P)[..., : family.score_size].mean(-2)
        shift = torch.zeros_like(mean)
        shift[..., part] = -mean[..., part]
        theta_P = shift_scores(family, theta_P, shift)
    return theta_P


def softmax_as_sigmoid(family: Mixture, theta_P: Tensor) -> tuple[Mixture, Tensor]:
    r"""Two experts under a softmax as the same two under a sigmoid.

    .. math:: softmax(s_1, s_2) = (\sigma(s_1 - s_2), \sigma(s_2 - s_1))

    Raises:
        ValueError: another gate, another number of experts, or Euclidean scores, since the
            difference of two Euclidean scores is not a Euclidean score.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> theta = torch.tensor([1.0, 0.0, 5.0, 2.0, 0.5, 6.0])
        >>> family, theta = softmax_as_sigmoid(Mixture("softmax", "constant", k=2), theta)
        >>> family.gate, theta.tolist()
        ('sigmoid', [-1.0, -0.5, 5.0, 1.0, 0.5, 6.0])
    """
    if (family.gate, family.k) != ("softmax", 2) or family.score == "euclidean":
        raise ValueError(
            "family must have a softmax gate, 2 experts and scores that are linear in their "
            f"parameters, got {family.gate}, {family.k} and {family.score}"
        )
    scores, experts = family.atoms(theta_P).tensor_split([family.score_size], -1)
    apart = scores - scores.flip(-2)
    atoms = torch.cat((apart, experts), -1).flatten(-2)
    shifted_P = torch.cat((atoms, theta_P[..., atoms.shape[-1] :]), -1)
    return replace(family, gate="sigmoid"), shifted_P


def sigmoid_as_softmax(family: Mixture, theta_P: Tensor) -> tuple[Mixture, Tensor]:
    r"""k experts under a sigmoid as 2^k under a softmax, where sums of experts are experts.

    .. math::
        \sum_i \sigma(s_i) h_i = \sum_S softmax\Big(\sum_{i \in S} s_i\Big)_S \sum_{i \in S} h_i

    over all sets S of experts, since the product of all 1 + exp(s_i) is the sum of the softmax. The
    first expert is that of the empty set, with output zero. [derived]

    Raises:
        ValueError: another gate, experts that are neither linear nor constant, or Euclidean scores.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> theta = torch.tensor([1.0, 0.5, 5.0, 2.0, 0.5, 6.0])
        >>> family, theta = sigmoid_as_softmax(Mixture("sigmoid", "constant", k=2), theta)
        >>> family.k, family.atoms(theta)[-1].tolist()
        (4, [3.0, 1.0, 11.0])
    """
    if family.gate != "sigmoid" or family.expert not in ADDITIVE or family.score == "euclidean":
        raise ValueError(
            "family must have a sigmoid gate, linear or constant experts and scores that are "
            f"linear in their parameters, got {family.gate}, {family.expert} and {family.score}"
        )
    atoms = family.atoms(theta_P)
    subsets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=family.k)), dtype=atoms.dtype)
    sums = (subsets @ atoms).flatten(-2)
    sums_P = torch.cat((sums, theta_P[..., family.k * family.atom_size :]), -1)
    return replace(family, gate="softmax", k=len(subsets)), sums_P
