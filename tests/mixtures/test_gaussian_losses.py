"""Losses of Gaussian experts: invariances, and sizes of errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sigmoid_attention.mixtures import Mixture
from sigmoid_attention.mixtures.gaussian import GaussianExperts, SharedExperts, TrueGaussianExperts
from sigmoid_attention.mixtures.gaussian.losses import (
    HALF_SYSTEM,
    SYSTEM,
    expert_loss,
    matched,
    routed_loss,
    shared_loss,
)

GATES = ("softmax", "normalised_sigmoid")


def family(gate: str, k: int, s: int = 1) -> GaussianExperts:
    return GaussianExperts(Mixture(gate, "linear", k=k), SharedExperts("linear", s))


def theta(routed: list[list[float]], shared: list[list[float]]) -> torch.Tensor:
    """Rows (beta1, beta0, a, b, variance) and (a, b, variance, weight)."""
    routed = [[*row[:-1], math.log(row[-1])] for row in routed]
    shared = [[*row[:-2], math.log(row[-2]), math.log(row[-1])] for row in shared]
    return torch.tensor([x for row in (*routed, *shared) for x in row], dtype=torch.float64)


ROUTED = [[5.0, -0.5, 8.0, 2.0, 0.4], [5.0, 0.5, -6.0, 1.0, 0.4]]
SHARED = [[2.0, 0.0, 0.2, 1.0]]


def truth(gate: str) -> TrueGaussianExperts:
    return TrueGaussianExperts(family(gate, 2), theta(ROUTED, SHARED))


def drawn(gate: str, seed: int, k: int = 4, s: int = 3) -> tuple[GaussianExperts, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    experts = family(gate, k, s)
    return experts, 2 * torch.randn(3, experts.size, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("gate", GATES)
@given(
    seed=st.integers(0, 10**6), order=st.permutations(range(4)), of_shared=st.permutations(range(3))
)
def test_the_order_of_experts_does_not_matter(gate, seed, order, of_shared):
    experts, at = drawn(gate, seed)
    routed, shared = experts.atoms(at)
    other = torch.cat((routed[:, order].flatten(1), shared[:, of_shared].flatten(1)), -1)
    for loss in (routed_loss, shared_loss):
        before, after = (loss(experts, x, truth(gate)).total_B for x in (at, other))
        torch.testing.assert_close(before, after)
    members = drawn(gate, seed + 1)[1][:2]
    torch.testing.assert_close(matched(experts, at, members), matched(experts, other, members))


@given(
    seed=st.integers(0, 10**6),
    slope=st.floats(-3, 3),
    level=st.floats(-3, 3),
    weight=st.floats(-3, 3),
)
def test_a_shift_of_all_scores_or_weights_does_not_matter(seed, slope, level, weight):
    experts, at = drawn("softmax", seed)
    shift = torch.zeros(experts.size, dtype=torch.float64)
    routed, shared = experts.atoms(shift)
    routed[:, 0], routed[:, 1], shared[:, -1] = slope, level, weight
    for loss in (routed_loss, shared_loss):
        before, after = (loss(experts, x, truth("softmax")).total_B for x in (at, at + shift))
        torch.testing.assert_close(before, after, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("gate", GATES)
def test_the_truth_and_its_twins_cost_nothing(gate):
    rows = [[*row] for row in (ROUTED[0], ROUTED[0], ROUTED[1])]
    mass = 1 / (1 + math.exp(0.5)) / 2
    half = -0.5 - math.log(2) if gate == "softmax" else math.log(mass / (1 - mass))
    rows[0][1] = rows[1][1] = half
    twins = theta(rows, [[*SHARED[0][:-1], 0.3], [*SHARED[0][:-1], 0.7]])
    experts = family(gate, 3, 2)
    assert float(routed_loss(experts, twins[None], truth(gate)).total_B) == pytest.approx(
        0, abs=1e-12
    )
    assert float(shared_loss(experts, twins[None], truth(gate)).total_B) == pytest.approx(
        0, abs=1e-12
    )
    assert float(matched(experts, twins[None], twins[None])) == 0


def test_softmax_terms_are_counted_by_hand():
    """A crowded cell has its powers, an exact one the first; masses weigh both."""
    e = math.exp
    rows = [
        [5.0, -0.5 - math.log(2), 8.1, 2.2, 0.4],
        [5.0, -0.5 - math.log(2), 7.9, 2.2, 0.5],
        [5.0, 0.5, -6.0, 1.3, 0.4],
    ]
    at = theta(rows, [[2.0, 0.1, 0.2, 0.25], [2.3, 0.0, 0.2, 0.75]])
    powers = {"eta_a": HALF_SYSTEM, "eta_b": SYSTEM, "a": HALF_SYSTEM, "b": SYSTEM}
    experts, of_truth = family("softmax", 3, 2), truth("softmax")
    routed = routed_loss(experts, at[None], of_truth, powers)
    half = e(-0.5) / 2
    known = half * (2 * 0.1**2 + 2 * 0.2**4 + 0.1**2)
    torch.testing.assert_close(routed.over_Bt, torch.tensor([[known, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(
        routed.exact_Bt, torch.tensor([[0.0, e(0.5) * 0.3]], dtype=torch.float64)
    )
    assert float(routed.mass_Bt.sum()) == pytest.approx(0, abs=1e-12)
    shared = shared_loss(experts, at[None], of_truth, powers)
    assert float(shared.total_B) == pytest.approx(0.25 * 0.1**4 + 0.75 * 0.3**2)


def test_three_in_a_cell_have_the_higher_power():
    at = theta([[*ROUTED[0]] for _ in range(3)] + [ROUTED[1]], SHARED)
    experts = family("softmax", 4)
    routed, _ = experts.atoms(at)
    routed[:3, 1] -= math.log(3)
    routed[0, 3] += 0.5
    loss = routed_loss(experts, at[None], truth("softmax"), {"eta_b": SYSTEM})
    assert float(loss.over_Bt.sum()) == pytest.approx(math.exp(-0.5) / 3 * 0.5**6)


def test_normalised_sigmoid_terms_are_counted_by_hand():
    rows = [[5.2, -0.4, 8.0, 2.0, 0.4], [5.0, 0.5, -6.0, 1.0, 0.7]]
    loss = routed_loss(
        family("normalised_sigmoid", 2), theta(rows, SHARED)[None], truth("normalised_sigmoid")
    )
    torch.testing.assert_close(loss.exact_Bt, torch.tensor([[0.2 + 0.1, 0.3]], dtype=torch.float64))
    assert float(loss.mass_Bt.sum() + loss.over_Bt.sum()) == 0


def test_an_empty_cell_costs_its_mass():
    at = theta([ROUTED[0], ROUTED[0]], SHARED)
    loss = routed_loss(family("normalised_sigmoid", 2), at[None], truth("normalised_sigmoid"))
    assert float(loss.mass_Bt[0, 1]) == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_the_nearest_minimiser_counts():
    experts = family("normalised_sigmoid", 2)
    here, far = theta(ROUTED, SHARED), theta([[9.0, *row[1:]] for row in ROUTED], SHARED)
    moved = theta([[5.1, 0.8, *ROUTED[1][2:]], [*ROUTED[0][:4], 0.6]], SHARED)
    distance = matched(experts, moved[None], torch.stack((far, here)))
    assert float(distance) == pytest.approx(0.1 + 0.3 + 0.2)


@pytest.mark.parametrize("gate", GATES)
def test_experts_count_as_often_as_they_are_chosen(gate):
    """The gate's parameters have no effect, and a dead expert has none."""
    rows = [[0.0, 1.0, 8.3, 2.4, 0.4], [0.0, 1.0, -6.0, 1.0, 0.5], [0.0, -60.0, 99.0, 9.0, 0.1]]
    at = theta(rows, SHARED)[None]
    inputs = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    loss = expert_loss(family(gate, 3), at, truth(gate), inputs)
    assert float(loss) == pytest.approx(0.5 * 0.5 + 0.5 * 0.1)


def test_the_shared_loss_needs_shared_experts():
    alone = GaussianExperts(Mixture("softmax", "linear", k=2))
    with pytest.raises(ValueError, match=r"^shared: neither the family nor the truth"):
        shared_loss(alone, torch.zeros(1, alone.size), truth("softmax"))
