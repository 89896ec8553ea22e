"""Identifiability: ranks of the Jacobian at the truth and of an expert's derivatives.

Shape letters: Q inputs, P parameters, E parameters of an expert.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.mixtures import gates
from sigmoid_attention.mixtures.experts import expert
from sigmoid_attention.mixtures.model import Mixture

# The smallest ratio of a singular value to the largest, for columns of length one, at which a
# direction counts as identified. Exact deficiencies give about 1e-16, ill-conditioned but
# identified directions above 1e-9.
SEEN = 1e-11


@dataclass(frozen=True)
class Rank:
    """Rank and conditioning of a matrix whose columns were scaled to length one."""

    rank: int
    columns: int
    smallest: float

    @property
    def full(self) -> bool:
        return self.rank == self.columns

    @property
    def missing(self) -> int:
        return self.columns - self.rank


def rank_of(columns_QP: Tensor) -> Rank:
    """The number of independent columns; ``smallest`` is the ratio of the least singular value to
    the largest.

    Raises:
        ValueError: fewer inputs than columns, which could not tell the columns apart.
    """
    inputs, columns = columns_QP.shape
    if inputs < columns:
        raise ValueError(f"inputs must be at least {columns}, one for each column, got {inputs}")
    norm = torch.linalg.vector_norm(columns_QP, dim=0)
    values = torch.linalg.svdvals(columns_QP / norm.clamp(min=torch.finfo(columns_QP.dtype).tiny))
    relative = values / values[0]
    return Rank(int((relative > SEEN).sum()), columns, float(relative[-1]))


def jacobian_rank(
    family: Mixture, theta_P: Tensor, inputs_Qd: Tensor, free_P: Tensor | None = None
) -> Rank:
    """The rank of df/dtheta over the inputs; below full rank no amount of data determines theta.

    Args:
        free_P: True for estimated parameters, all by default. Under a gate that ignores a common
            shift of its scores, the score of one expert must be fixed.
    """
    _, jacobian = family.predict_with_jacobian(theta_P, inputs_Qd)
    return rank_of(jacobian if free_P is None else jacobian[:, free_P])


def weakly_identifiable(family: Mixture, theta_P: Tensor, inputs_Qd: Tensor) -> Rank:
    r"""The first derivatives of F at distinct experts, in all their parameters.

    .. math:: F(x; \beta, \eta) = \sigma(\beta_1 \cdot x + \beta_0)\, h(x, \eta)

    Experts are weakly identifiable if these functions of x are linearly independent (Nguyen et al.
    2024, definition 2). The derivatives of F include x F' of the gate, so that linear experts may
    satisfy it, whose own derivatives x and 1 are the same for all of them. F may have any other
    gate in which every expert has a weight of its own, and any score.

    Raises:
        ValueError: a gate in which weights share a sum, or fewer inputs than parameters.
    """
    if gates.gate(family.gate).shift or family.gate == "normalised_sigmoid" or family.temperature:
        raise ValueError(
            "family must have a gate that weighs every expert for itself, without a temperature, "
            f"got {family}"
        )
    # A sum of F over experts: its derivatives by one expert's parameters are those of its F.
    return jacobian_rank(family, theta_P, inputs_Qd)


def strongly_identifiable(name: str, parameters_kE: Tensor, inputs_Qd: Tensor) -> Rank:
    """{x^nu d^gamma h/deta^gamma : |nu| + |gamma| <= 2} at distinct eta_i.

    Strong identifiability of Nguyen et al. 2024, with the terms from the gate's derivatives in
    regime 1 (derived from the Taylor expansion of its proof; the paper states the set for the
    expert alone). Strictly, no ridge expert h(a'x) satisfies it in d > 1, since x_u dh/da_v = x_v
    dh/da_u gives d (d - 1) / 2 relations for each expert. The paper's own example, phi(a'x + b)
    with ReLU or GELU, fails already in d = 1, since dh/da = x dh/db. Second derivatives are
    computed by automatic differentiation.

    Raises:
        ValueError: fewer inputs than functions.
    """
    dim = inputs_Qd.shape[1]
    value = expert(name).value(parameters_kE, inputs_Qd)[..., None]
    first = _first(name, parameters_kE, inputs_Qd)
    second = _second(name, parameters_kE, inputs_Qd)
    row, column = torch.triu_indices(dim, dim)
    once, twice = inputs_Qd, inputs_Qd[:, row] * inputs_Qd[:, column]
    terms = [
        value,
        _times(value, once),
        _times(value, twice),
        first,
        _times(first, once),
        second,
    ]
    return rank_of(torch.cat(terms, -1).flatten(1))


def _times(terms: Tensor, factors_Qu: Tensor) -> Tensor:
    """(Q, k, terms * u): every term times every factor."""
    return (terms[..., None] * factors_Qu[:, None, None, :]).flatten(-2)


def _first(name: str, parameters_kE: Tensor, inputs_Qd: Tensor) -> Tensor:
    return expert(name).value_and_slopes(parameters_kE, inputs_Qd)[1]


def _second(name: str, parameters_kE: Tensor, inputs_Qd: Tensor) -> Tensor:
    """(Q, k, E (E + 1) / 2)."""
    size = parameters_kE.shape[-1]
    derivatives = []
    for parameters_E in parameters_kE:
        slopes = torch.func.jacfwd(
            lambda eta: expert(name).value_and_slopes(eta[None], inputs_Qd)[1][:, 0]
        )(parameters_E)
        row, column = torch.triu_indices(size, size)
        derivatives.append(slopes[:, row, column])
    return torch.stack(derivatives, 1)
