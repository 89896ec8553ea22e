"""Identifiability: ranks that theory gives, and the reference expert of a shift-blind gate."""

import pytest
import torch

from sigmoid_attention.mixtures import EXPERTS, GATES, SCORES, Mixture
from sigmoid_attention.mixtures.data import FiniteDesign
from sigmoid_attention.mixtures.identifiability import (
    jacobian_rank,
    rank_of,
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
    assert strongly_identifiable(expert, atoms_kE, inputs).missing == 2 * relations


@pytest.mark.parametrize("expert", ("linear", "constant"))
def test_derivatives_of_two_linear_experts_are_the_same_functions(expert):
    family = Mixture("sigmoid", expert, k=2, d=2)
    assert not strongly_identifiable(expert, atoms(family)[:, family.score_size :], INPUTS).full


@pytest.mark.parametrize("expert", ("relu+bias", "gelu+bias"))
def test_a_bias_breaks_the_example_of_definition_1_in_one_dimension_already(expert):
    """dh/da = x dh/db, once for every expert."""
    eta = torch.tensor([[1.0, 0.1], [-0.7, 0.3]], dtype=torch.float64)
    inputs = 5 * FiniteDesign.sobol(512, d=1).inputs_Qd
    x_times_by_bias = torch.cat(
        [
            EXPERTS[expert].value_and_slopes(eta, inputs)[1][..., 0],
            inputs * EXPERTS[expert].value_and_slopes(eta, inputs)[1][..., 1],
        ],
        -1,
    )
    assert rank_of(x_times_by_bias).missing == 2


@pytest.mark.parametrize(
    ("expert", "missing"),
    # The gate's slope tells apart linear experts, whose own derivatives are x and 1 for all. A
    # scale outside of a ReLU is the same as one inside.
    (("gelu", 0), ("tanh+bias", 0), ("relu", 0), ("linear", 0), ("relu+scale", 2)),
)
def test_weak_identifiability_is_about_gate_times_expert(expert, missing):
    family = Mixture("sigmoid", expert, k=2, d=2)
    theta = atoms(family).flatten()
    assert weakly_identifiable(family, theta, INPUTS).missing == missing


def test_first_derivatives_of_gate_times_expert_are_those_of_definition_2():
    family = Mixture("sigmoid", "tanh+bias", k=2, d=2)
    theta = atoms(family)

    def of_one_expert(atom):
        gate = torch.sigmoid(INPUTS @ atom[:2] + atom[2])
        return gate * torch.tanh(INPUTS @ atom[3:5] + atom[5])

    columns = torch.cat([torch.func.jacfwd(of_one_expert)(atom) for atom in theta], -1)
    ours = weakly_identifiable(family, theta.flatten(), INPUTS)
    expected = rank_of(columns)
    assert ours.smallest == pytest.approx(expected.smallest)
    assert (ours.rank, ours.columns) == (expected.rank, expected.columns)


@pytest.mark.parametrize("gate", ("softmax", "normalised_sigmoid"))
def test_weak_identifiability_needs_a_gate_without_a_sum(gate):
    family = Mixture(gate, "gelu", k=2, d=2)
    with pytest.raises(ValueError, match=r"^family must have a gate that weighs every expert for"):
        weakly_identifiable(family, atoms(family).flatten(), INPUTS)


def test_fewer_inputs_than_parameters_are_refused():
    family = Mixture("sigmoid", "gelu", k=3, d=2)
    theta = atoms(family).flatten()
    assert jacobian_rank(family, theta, INPUTS[:15]).columns == 15
    expected = "^inputs must be at least 15, one for each column, got 14$"
    with pytest.raises(ValueError, match=expected):
        jacobian_rank(family, theta, INPUTS[:14])
