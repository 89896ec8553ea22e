"""Exact conversion between a row of sigmoid attention and a mixture of experts.

A row is a mixture in two ways. Over a *sequence* the input is all tokens, one after another, and
the mixture has quadratic scores and linear experts (Yan et al. 2025). Over a *context* of fixed
keys the input is the query, and the mixture has linear scores and constant experts, the values.
Centred keys change the coefficients of the scores, and neither the family nor the experts.

Shape letters: N tokens, M their width, D head dim, E channels of the answer, K keys, d dimension of
the mixture's input (N M or D), P its parameters, H heads; ``block`` is a token's place among d.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.mixtures.equivalence import ADDITIVE
from sigmoid_attention.mixtures.gates import gate
from sigmoid_attention.mixtures.hierarchy import Hierarchy
from sigmoid_attention.mixtures.model import Mixture

# The largest deviation of parameters from the form of attention, relative to the largest parameter.
ROUNDING = 1e-9


@dataclass(frozen=True)
class AttentionHead:
    r"""Weights of a head of sigmoid self-attention, whose row i over tokens x_1 .. x_N is

    .. math::
        y_i = \sum_j \sigma\big(x_i^\top W_q W_k^\top (x_j - \lambda \bar x) / \sqrt D + b_j\big)
            \, W_v^\top x_j,

    with x̄ the mean of the tokens.

    Args:
        query_MD, key_MD, value_ME: W_q, W_k, W_v. With a head's part of the output projection
            multiplied into W_v, heads add up to the layer's answer.
        bias: b, one number or one a key, (N,).
        centring: λ, the strength of `CentredKeys`.

    Example:
        >>> import torch
        >>> weights = torch.eye(2, dtype=torch.float64)
        >>> head = AttentionHead(weights, weights, weights, torch.tensor(0.0, dtype=torch.float64))
        >>> family, theta_EP = head.as_mixture(tokens=3, row=0)
        >>> family.score, family.expert, family.k, family.d
        ('partially_quadratic', 'linear', 3, 6)
        >>> again = AttentionHead.of_mixture(family, theta_EP, row=0)
        >>> bool(torch.allclose(again.query_MD @ again.key_MD.T, weights))
        True
    """

    query_MD: Tensor
    key_MD: Tensor
    value_ME: Tensor
    bias: Tensor
    centring: float = 0.0

    def as_mixture(self, tokens: int, row: int) -> tuple[Mixture, Tensor]:
        r"""The family and its parameters for each channel of the answer, (E, P).

        Token j is expert j: its score has A = sym(E_i' W_q W_k' (E_j - λ Ē)) / sqrt D and c = b_j,
        and its output is (W_v' E_j x)_e, where E_j selects token j of x = (x_1, .., x_N), of N M
        numbers, and Ē is the mean of the E_j. A score depends on the symmetric part of its matrix
        only, so sym changes no output.
        Source: Yan et al. 2025, section 2.

        Raises:
            ValueError: a row that is none of the tokens.
        """
        _check_row(row, tokens)
        width, channels = self.value_ME.shape
        family = _over_sequence(tokens, tokens * width)
        product_MM = self.query_MD @ self.key_MD.T / math.sqrt(self.query_MD.shape[1])
        atoms = product_MM.new_zeros(channels, tokens, family.atom_size)
        parts = family.parts
        atoms[..., parts["c"]] = self.bias.expand(tokens)[:, None]
        for j in range(tokens):
            shares_N = product_MM.new_full((tokens,), -self.centring / tokens)
            shares_N[j] += 1
            matrix_dd = product_MM.new_zeros(family.d, family.d)
            matrix_dd[_block(row, width)] = torch.kron(shares_N, product_MM)
            atoms[:, j, parts["A"]] = _flat(matrix_dd)
            atoms[:, j, parts["eta_a"]][:, _block(j, width)] = self.value_ME.T
        return family, atoms.flatten(1)

    @classmethod
    def of_mixture(
        cls,
        family: Mixture,
        theta_EP: Tensor,
        row: int,
        *,
        head_dim: int | None = None,
        centring: float = 0.0,
    ) -> "AttentionHead":
        """The weights of a head whose row is this mixture.

        The mixture determines queries and keys up to an invertible matrix between them; here both
        have the same singular values. A single token determines only the symmetric part of
        W_q W_k', and nothing of it if λ is 1.

        Args:
            theta_EP: parameters for each channel, in the order of the tokens.
            head_dim: D, the width of a token by default, which is always enough.
            centring: λ.

        Raises:
            ValueError: a row that is none of the tokens, another kind of family, or parameters that
                are no row of attention with this head dim: scores that differ between channels or
                tokens, an expert that reads another token than its own, a matrix of higher rank.
        """
        _check_row(row, family.k)
        if family != _over_sequence(family.k, family.d) or family.d % family.k:
            raise ValueError(
                "family must be sigmoid, partially_quadratic and linear, with d a multiple of k "
                f"and without a temperature, got {family}"
            )
        tokens, width = family.k, family.d // family.k
        head_dim = width if head_dim is None else head_dim
        atoms, parts = family.atoms(theta_EP), family.parts
        matrices = [_symmetric(atom[parts["A"]], family.d) for atom in atoms[0]]
        if tokens == 1:
            product_MM = matrices[0] / (1 - centring) if centring != 1 else matrices[0]
        else:
            # Another token's matrix has the product in two blocks, half in each; the matrix of the
            # row's own token has only the symmetric part. The difference from a third token's
            # matrix has no part of the mean.
            other = 0 if row else tokens - 1
            difference_dd = matrices[other] - matrices[tokens - 1 if row else 0]
            product_MM = 2 * difference_dd[_block(row, width), _block(other, width)]
        left, values, right = torch.linalg.svd(product_MM * math.sqrt(head_dim))
        root_D = values[:head_dim].sqrt()
        head = cls(
            _padded(left[:, :head_dim] * root_D, head_dim),
            _padded(right.T[:, :head_dim] * root_D, head_dim),
            atoms[:, row, parts["eta_a"]][:, _block(row, width)].T,
            atoms[0, :, parts["c"]].squeeze(-1),
            centring,
        )
        _agree(theta_EP, head.as_mixture(tokens, row)[1], f"a row of attention, D={head_dim}")
        return head


@dataclass(frozen=True)
class AttentionContext:
    r"""Fixed keys and values that a query x attends to.

    .. math:: y = \sum_j \sigma\big(x^\top (k_j - \lambda \bar k) / \sqrt D + b_j\big)\, v_j

    Every mixture with a sigmoid gate, linear scores and constant experts is of this form, with
    λ = 0.

    Args:
        key_KD, value_KE: keys and values. bias: b, one number or one a key, (K,).
        centring: λ, the strength of `CentredKeys`.

    Example:
        >>> import torch
        >>> context = AttentionContext(torch.eye(3)[:, :1], torch.ones(3, 2), torch.zeros(3))
        >>> family, theta_EP = context.as_mixture()
        >>> family.k, family.d, theta_EP.shape
        (3, 1, torch.Size([2, 9]))
        >>> AttentionContext.of_mixture(family, theta_EP).value_KE.shape
        torch.Size([3, 2])
    """

    key_KD: Tensor
    value_KE: Tensor
    bias: Tensor
    centring: float = 0.0

    def as_mixture(self) -> tuple[Mixture, Tensor]:
        """The family and its parameters for each channel, (E, P).

        Key j is expert j: beta1 = (k_j - λ k̄) / sqrt D, beta0 = b_j, and its output is v_j.
        """
        keys, dim = self.key_KD.shape
        family = _over_context(keys, dim)
        channels = self.value_KE.shape[1]
        centred_KD = self.key_KD - self.centring * self.key_KD.mean(0)
        slopes = (centred_KD / math.sqrt(dim)).expand(channels, -1, -1)
        intercepts = self.bias.expand(channels, keys)[..., None]
        atoms = torch.cat((slopes, intercepts, self.value_KE.T[..., None]), -1)
        return family, atoms.flatten(1)

    @classmethod
    def of_mixture(
        cls, family: Mixture, theta_EP: Tensor, *, centring: float = 0.0
    ) -> "AttentionContext":
        """The keys, values and biases of this mixture.

        With ``centring`` 1 the mixture determines the keys up to their mean, which is 0 here.

        Raises:
            ValueError: another kind of family, scores that differ between channels, or slopes
                whose mean is not 0 for a ``centring`` of 1.
        """
        if family != _over_context(family.k, family.d):
            raise ValueError(
                f"family must be sigmoid, linear and constant, without a temperature, got {family}"
            )
        atoms, parts = family.atoms(theta_EP), family.parts
        key_KD = atoms[0, :, parts["beta1"]] * math.sqrt(family.d)
        if centring != 1:
            key_KD = key_KD + centring / (1 - centring) * key_KD.mean(0)
        context = cls(
            key_KD,
            atoms[..., parts["eta_c"]].squeeze(-1).T,
            atoms[0, :, parts["beta0"]].squeeze(-1),
            centring,
        )
        _agree(theta_EP, context.as_mixture()[1], "attention to a context")
        return context


def _over_sequence(tokens: int, dim: int) -> Mixture:
    return Mixture("sigmoid", "linear", "partially_quadratic", k=tokens, d=dim)


def _over_context(keys: int, dim: int) -> Mixture:
    return Mixture("sigmoid", "constant", k=keys, d=dim)


def _check_row(row: int, tokens: int) -> None:
    if not 0 <= row < tokens:
        raise ValueError(f"row must be from 0 to {tokens - 1}, got {row}")


# Heads ----------------------------------------------------------------------------------------


def heads_as_hierarchy(heads: Sequence[tuple[Mixture, Tensor]]) -> tuple[Hierarchy, Tensor]:
    """The sum of several heads, each as a mixture, and its parameters for each channel, (E, P).

    Every head is a group whose weight is max(1, 0) for every input.

    Raises:
        ValueError: no heads, or heads of different families.
    """
    families = {family for family, _ in heads}
    if len(families) != 1:
        raise ValueError(f"heads must be one or more of one family, got {len(families)} families")
    family = Hierarchy("relu", families.pop(), groups=len(heads))
    inner = torch.stack([theta_EP for _, theta_EP in heads], 1)
    outer = inner.new_zeros(*inner.shape[:2], family.score_size)
    outer[..., -1] = 1.0
    return family, family.join(outer, inner)


def hierarchy_as_heads(family: Hierarchy, theta_EP: Tensor) -> list[tuple[Mixture, Tensor]]:
    """The groups as mixtures whose sum is the whole; group weights are multiplied into experts.

    Raises:
        ValueError: experts that are neither linear nor constant, or a group whose weight depends on
            the input.
    """
    if family.inner.expert not in ADDITIVE:
        raise ValueError(f"family must have linear or constant experts, got {family.inner.expert}")
    outer, inner = family.split(theta_EP)
    if family.score == "euclidean" or outer[..., :-1].any():
        raise ValueError("theta: groups must have scores that do not depend on the input")
    weights_Eg = gate(family.gate).weights(outer[..., -1])
    scores, experts = family.inner.atoms(inner).tensor_split([family.inner.score_size], -1)
    atoms = torch.cat((scores, experts * weights_Eg[..., None, None]), -1)
    rest = inner[..., family.inner.k * family.inner.atom_size :]
    whole_EgI = torch.cat((atoms.flatten(-2), rest), -1)
    return [(family.inner, whole_EI) for whole_EI in whole_EgI.unbind(-2)]


# Blocks and symmetric matrices ----------------------------------------------------------------


def _block(token: int, width: int) -> slice:
    return slice(token * width, (token + 1) * width)


def _padded(matrix: Tensor, columns: int) -> Tensor:
    """The matrix, with columns of zeros where the head dim exceeds the width of a token."""
    return torch.nn.functional.pad(matrix, (0, columns - matrix.shape[1]))


def _flat(matrix_dd: Tensor) -> Tensor:
    """The parameters of the symmetric part, in the form of quadratic scores, with the same norm."""
    row, column = torch.triu_indices(*matrix_dd.shape)
    symmetric = (matrix_dd + matrix_dd.T) / 2
    flat = symmetric[row, column]
    return torch.where(row == column, flat, flat * math.sqrt(2.0))


def _symmetric(flat: Tensor, dim: int) -> Tensor:
    """The matrix of the parameters ``flat``; the inverse of ``_flat``."""
    row, column = torch.triu_indices(dim, dim)
    matrix = flat.new_zeros(dim, dim)
    halves = torch.where(row == column, flat, flat / math.sqrt(2.0))
    matrix[row, column] = matrix[column, row] = halves
    return matrix


def _agree(theta_EP: Tensor, rebuilt_EP: Tensor, form: str) -> None:
    error = (theta_EP - rebuilt_EP).abs().max()
    if not error <= ROUNDING * theta_EP.abs().max():  # nor is NaN
        raise ValueError(f"theta must be {form}, but is {error:.2g} away from it")
