"""Identifiability: ranks that theory gives, and the reference expert of a shift-blind gate."""

import pytest
import torch

from sigmoid_attention.mixtures import GATES, SCORES, Mixture
from sigmoid_attention.mixtures.data import FiniteDesign
from sigmoid_attention.mixtures.identifiability import (
    jacobian_rank,
    strongly_identifiable,
    weakly_identifiable,
)
from sigmoid_attention.mixtures.model import free_parameters

INPUTS = FiniteDesign.sobol(256, d=2).inputs_Qd


def atoms(family: Mixture) -> torch.Tensor:
    return torch.randn(family.k, family.atom_size, dtype=torch.float64)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("gate", ("sigmoid", "normalised_sigmoid", "softmax"))
def test_smooth_experts_are_seen_in_full_once_the_reference_is_held(gate, score):
    family = Mixture(gate, "gelu", score, k=3, d=2)
    theta, free = atoms(family).flatten(), free_parameters(family)
    assert jacobian_rank(family, theta, INPUTS, free).full
    held = int((~free).sum())
    assert held == (family.score_size if GATES[gate].shift else 0)
    # Without a reference as many directions are blind as the reference has numbers.
    assert jacobian_rank(family, theta, INPUTS).missing == held


@pytest.mark.parametrize(("expert", "missing"), (("relu", 1), ("linear", 1), ("gelu", 0)))
def test_a_gate_that_does_not_look_hides_the_size_of_homogeneous_experts(expert, missing):
    """Regime 1: sigmoid(beta0) c h is one number times h."""
    family = Mixture("sigmoid", expert, k=3, d=2)
    theta = atoms(family)
    theta[0, :2] = 0.0
    assert jacobian_rank(family, theta.flatten(), INPUTS).missing == missing


def test_a_temperature_is_confounded_with_the_size_of_a_linear_score():
    family = Mixture("sigmoid", "gelu", k=2, d=2, temperature=True)
    theta = torch.cat((atoms(family).flatten(), torch.zeros(1, dtype=torch.float64)))
    assert jacobian_rank(family, theta, INPUTS).missing == 1


@pytest.mark.parametrize(
    ("expert", "eta", "relations"),
    (
        ("gelu", ((1.0,), (-0.4,)), 0),
        ("tanh", ((1.0,), (0.3,)), 0),
        # h(a'x) knows x_1 dh/da_2 = x_2 dh/da_1, once an expert: taken by the letter, the
        # definition holds for no such expert in more than one dimension.
        ("gelu", ((1.0, 0.5), (-0.4, 0.8)), 1),
        ("gelu", ((1.0, 0.5, 0.3), (-0.4, 0.8, 1.2)), 3),
        ("tanh+bias", ((1.0, 0.5), (0.4, -1.5)), 1),  # dh/da = x dh/db
    ),
)
def test_experts_are_identifiable_up_to_the_relations_of_their_derivatives(expert, eta, relations):
    atoms_kE = torch.tensor(eta, dtype=torch.float64)
    dim = atoms_kE.shape[1] - expert.endswith("+bias")
    # A wide range, on which neither tanh nor gelu is nearly a polynomial.
    inputs = 5 * FiniteDesign.sobol(512, d=dim).inputs_Qd
    assert weakly_identifiable(expert, atoms_kE, inputs).full
    assert strongly_identifiable(expert, atoms_kE, inputs).missing == 2 * relations


@pytest.mark.parametrize("expert", ("linear", "constant"))
def test_derivatives_of_two_linear_experts_are_the_same_functions(expert):
    family = Mixture("sigmoid", expert, k=2, d=2)
    eta = atoms(family)[:, family.score_size :]
    assert not weakly_identifiable(expert, eta, INPUTS).full
    assert not strongly_identifiable(expert, eta, INPUTS).full
