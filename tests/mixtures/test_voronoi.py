"""Losses of fitted experts: zero at the truth, blind to order, and what splitting does to each."""

import itertools

import pytest
import torch

from sigmoid_attention.mixtures import Mixture
from sigmoid_attention.mixtures.data import FiniteDesign
from sigmoid_attention.mixtures.voronoi import Truth, contribution_loss, l2, voronoi

INPUTS = FiniteDesign.sobol(64, d=2).inputs_Qd

each_gate = pytest.mark.parametrize("gate", ("sigmoid", "softmax"))


def drawn(gate: str) -> Truth:
    family = Mixture(gate, "gelu", k=3, d=2)
    return Truth(family, torch.randn(family.size, dtype=torch.float64))


def split(truth: Truth) -> tuple[Mixture, torch.Tensor]:
    """The truth with its first expert twice, each with half of the mass at the intercept."""
    atoms = truth.atoms
    first = atoms[0].clone()
    place = truth.family.score_size - 1
    if truth.family.gate == "softmax":
        first[place] -= torch.log(torch.tensor(2.0))
    else:
        first[place] = torch.logit(first[place].sigmoid() / 2)
    whole = torch.cat((first.expand(2, -1), atoms[1:]))
    return Mixture(truth.family.gate, "gelu", k=4, d=2), whole.flatten()


@each_gate
def test_the_truth_has_no_loss_in_any_order(gate):
    truth = drawn(gate)
    expected = truth.family.predict(truth.theta_P, INPUTS)
    for order in itertools.permutations(range(3)):
        theta = truth.atoms[list(order)].flatten()[None]
        assert voronoi(truth.family, theta, truth).total_B.item() < 1e-12
        assert contribution_loss(truth.family, theta, truth, INPUTS).item() < 1e-12
        assert l2(truth.family, theta, expected, INPUTS).item() < 1e-12


@each_gate
def test_the_order_of_fitted_experts_changes_no_loss(gate):
    truth = drawn(gate)
    family, whole = split(truth)
    fitted = family.atoms(whole + 0.1 * torch.randn(family.size, dtype=torch.float64))
    losses = [
        voronoi(family, fitted[list(order)].flatten()[None], truth).total_B
        for order in itertools.permutations(range(4))
    ]
    torch.testing.assert_close(torch.cat(losses), losses[0].expand(24))


@each_gate
def test_a_split_expert_shares_a_cell_and_keeps_the_mass(gate):
    truth = drawn(gate)
    family, whole = split(truth)
    parts = voronoi(family, whole[None], truth)
    assert parts.crowd_Bt.tolist() == [[2.0, 1.0, 1.0]]
    assert parts.total_B.item() < 1e-7
    # Under softmax the halves answer as the whole did; a sigmoid's do at the intercept only.
    same = contribution_loss(family, whole[None], truth, INPUTS).item() < 1e-6
    assert same == (gate == "softmax")


def test_a_crowded_cell_counts_errors_to_their_power():
    truth = drawn("sigmoid")
    family, whole = split(truth)
    moved = whole.clone()
    moved[family.parts["eta_a"]] += torch.tensor([3e-3, 4e-3], dtype=torch.float64)
    square = voronoi(family, moved[None], truth)
    cubic = voronoi(family, moved[None], truth, powers={"eta_a": 3.0})
    assert square.over_Bt[0, 0].item() == pytest.approx(5e-3**2)
    assert cubic.over_Bt[0, 0].item() == pytest.approx(5e-3**3)
    assert square.largest_Bt[0].tolist() == pytest.approx([5e-3, 0, 0])
    assert square.weighted_Bt[0, 0].item() == pytest.approx(2.5e-3)
