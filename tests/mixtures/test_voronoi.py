"""Losses of fitted experts: zero at the truth, independent of order, and effects of splits."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sigmoid_attention.mixtures import GATES, SCORES, Mixture
from sigmoid_attention.mixtures.data import FiniteDesign
from sigmoid_attention.mixtures.equivalence import shift_scores
from sigmoid_attention.mixtures.voronoi import (
    TrueMixture,
    aligned,
    contribution_loss,
    l2,
    quadratic_powers,
    voronoi,
)

INPUTS = FiniteDesign.sobol(64, d=2).inputs_Qd

each_gate = pytest.mark.parametrize("gate", ("sigmoid", "softmax"))


def drawn(gate: str) -> TrueMixture:
    family = Mixture(gate, "gelu", k=3, d=2)
    return TrueMixture(family, torch.randn(family.size, dtype=torch.float64))


def split(truth: TrueMixture) -> tuple[Mixture, torch.Tensor]:
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


def test_d2r_raises_the_intercept_of_a_cell_of_one_to_its_power():
    """Equation 9: |Delta beta0|^r in place of the mass."""
    family = Mixture("sigmoid", "constant", k=2)
    truth = TrueMixture(family, torch.tensor([1.0, 0.0, 5.0, 2.0, 0.0, 9.0]).double())
    fitted = torch.tensor([[1.0, 2.0, 5.0, 2.0, 0.0, 9.0]]).double()
    cubes = dict.fromkeys(family.parts, 3.0)
    parts = voronoi(family, fitted, truth, powers=cubes, everywhere=True)
    assert parts.total_B.tolist() == pytest.approx([2.0**3])
    assert parts.mass_Bt.tolist() == [[0.0, 0.0]]
    # In a cell of two, and in one without any, the mass stays and beta0 is no other term.
    both = torch.tensor([[1.0, 2.0, 5.0, 1.0, 0.0, 5.0]]).double()
    parts = voronoi(family, both, truth, powers=cubes, everywhere=True)
    mass = [torch.sigmoid(torch.tensor(2.0).double()).item(), 0.5]
    assert parts.mass_Bt[0].tolist() == pytest.approx(mass)
    assert parts.total_B.item() == pytest.approx(sum(mass))


# Invariances ----------------------------------------------------------------------------------

seeds = st.integers(0, 10**6)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def losses(family: Mixture, theta: torch.Tensor, truth: TrueMixture) -> torch.Tensor:
    """All that is called a loss here, one after another."""
    square = voronoi(family, theta, truth, powers=quadratic_powers(family))
    ones, cubes = dict.fromkeys(family.parts, 1.0), dict.fromkeys(family.parts, 3.0)
    totals = [
        square.total_B,
        voronoi(family, theta, truth, powers=ones).total_B,
        voronoi(family, theta, truth, powers=cubes, everywhere=True).total_B,
        square.largest_Bt.amax(-1),
        square.weighted_Bt.sum(-1),
        contribution_loss(family, theta, truth, INPUTS),
    ]
    return torch.stack(totals)


@given(
    st.sampled_from(list(GATES)), st.sampled_from(list(SCORES)), st.permutations(range(4)), seeds
)
def test_neither_order_nor_an_unseen_shift_changes_a_loss(gate, score, order, seed):
    truth_family = Mixture(gate, "tanh", score, k=2, d=2)
    truth = TrueMixture(truth_family, normal(truth_family.size, seed=seed))
    family = Mixture(gate, "tanh", score, k=4, d=2)
    theta = normal(3, family.size, seed=seed + 1)
    other = family.atoms(theta)[:, list(order)].flatten(-2)
    if GATES[gate].shift:
        shift = 5 * normal(family.score_size, seed=seed + 2)
        other = shift_scores(family, other, shift)
    torch.testing.assert_close(
        losses(family, other, truth), losses(family, theta, truth), rtol=1e-8, atol=1e-8
    )
    moved_truth = TrueMixture(truth_family, truth.atoms.flip(0).flatten())
    torch.testing.assert_close(losses(family, theta, moved_truth), losses(family, theta, truth))


@given(st.sampled_from(list(SCORES)), st.integers(1, 3), seeds)
def test_a_shifted_split_truth_has_no_loss(score, copies, seed):
    """The repeated expert may be any one, the reference, or all of them."""
    truth_family = Mixture("softmax", "gelu", score, k=2, d=2)
    truth = TrueMixture(truth_family, normal(truth_family.size, seed=seed))
    atoms = truth.atoms[[0] * copies + [1] * 2].clone()
    atoms[:copies, truth_family.score_size - 1] -= torch.log(torch.tensor(float(copies)))
    atoms[copies:, truth_family.score_size - 1] -= torch.log(torch.tensor(2.0))
    family = Mixture("softmax", "gelu", score, k=copies + 2, d=2)
    theta = shift_scores(family, atoms.flatten(), normal(family.score_size, seed=seed + 1))[None]
    assert losses(family, theta, truth).max().item() < 1e-6
    assert voronoi(family, theta, truth).crowd_Bt.tolist() == [[float(copies), 2.0]]


def literal(family: Mixture, atoms: torch.Tensor, truth: TrueMixture, cell: list[int]) -> float:
    """The softmax D by its formula, with these cells and the scores as they are."""
    intercept = family.score_size - 1
    mass, true_mass = atoms[:, intercept].exp(), truth.atoms[:, intercept].exp()
    mass, true_mass = mass / mass.sum(), true_mass / true_mass.sum()
    total = 0.0
    for j in range(truth.family.k):
        members = [i for i, place in enumerate(cell) if place == j]
        total += abs(float(sum(mass[i] for i in members)) - float(true_mass[j]))
        power = 1 if len(members) == 1 else 2
        for i in members:
            gap = atoms[i] - truth.atoms[j]
            norms = (gap[:intercept].norm(), gap[intercept + 1 :].norm())
            total += float(mass[i] * sum(norm**power for norm in norms))
    return total


@pytest.mark.slow
@given(seeds)
def test_the_softmax_loss_is_near_the_least_over_all_shifts(seed):
    truth = TrueMixture(Mixture("softmax", "gelu", k=3, d=2), 2 * normal(15, seed=seed))
    family = Mixture("softmax", "gelu", k=4, d=2)
    cell = [0, 0, 1, 2]
    atoms = truth.atoms[cell] + 0.01 * normal(4, 5, seed=seed + 1)
    atoms[:2, 2] -= torch.log(torch.tensor(2.0))
    shift = normal(3, seed=seed + 2)
    loss = voronoi(family, shift_scores(family, atoms.flatten(), shift)[None], truth)
    if loss.cell_Bk[0].tolist() == cell:  # experts that lie too close may be told otherwise
        shifts = 0.02 * normal(300, 3, seed=seed + 3)
        shifts[0] = 0.0
        shifted = family.atoms(shift_scores(family, atoms.flatten(), shifts))
        least = min(literal(family, theta, truth, cell) for theta in shifted)
        assert loss.total_B.item() < 6 * least
        ours = family.atoms(aligned(family, atoms.flatten()[None], truth))[0]
        assert loss.total_B.item() == pytest.approx(literal(family, ours, truth, cell))


# Quadratic scores -----------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ("sigmoid", "softmax"))
@pytest.mark.parametrize(
    ("score", "part", "by_crowd"),
    (
        ("partially_quadratic", "A", {2: 2, 3: 2, 4: 2}),
        ("fully_quadratic", "A", {2: 2, 3: 3, 4: 3.5}),
        ("fully_quadratic", "b", {2: 4, 3: 6, 4: 7, 5: 7}),
        ("fully_quadratic", "eta_a", {2: 2, 3: 2, 4: 2}),
    ),
)
def test_exponents_of_quadratic_scores_follow_the_crowd(gate, score, part, by_crowd):
    truth_family = Mixture(gate, "gelu", score, k=2, d=2)
    truth = TrueMixture(truth_family, 2 * normal(truth_family.size, seed=1))
    for crowd, power in by_crowd.items():
        family = Mixture(gate, "gelu", score, k=crowd + 1, d=2)
        atoms = truth.atoms[[0] * crowd + [1]].clone()
        atoms[0, family.parts[part]] += (
            0.05 / family.atoms(atoms.flatten())[0, family.parts[part]].numel() ** 0.5
        )
        theta = atoms.flatten()[None]
        loss = voronoi(family, theta, truth, powers=quadratic_powers(family))
        assert loss.crowd_Bt.tolist() == [[float(crowd), 1.0]]
        weight = 1.0
        if gate == "softmax":
            weight = float(atoms[:, family.score_size - 1].softmax(0)[0])
        assert loss.over_Bt[0, 0].item() == pytest.approx(weight * 0.05**power)


def test_a_power_of_no_part_is_refused():
    truth = drawn("sigmoid")
    with pytest.raises(ValueError, match=r"^powers must name parts of beta1, .*, got A$"):
        voronoi(truth.family, truth.theta_P[None], truth, powers={"A": 2.0})


# Contributions --------------------------------------------------------------------------------


@each_gate
@pytest.mark.parametrize("expert", ("linear", "relu"))
def test_experts_of_the_same_answer_cost_nothing_however_they_are_split(gate, expert):
    """The literal losses see the halves' parameters, which any share makes as well."""
    family = Mixture(gate, expert, k=2, d=2)
    truth = TrueMixture(family, 3 * normal(family.size, seed=4))
    whole = Mixture(gate, expert, k=3, d=2)
    for share in (0.5, 0.3):
        atoms = truth.atoms[[0, 0, 1]].clone()
        if gate == "softmax":
            # Each with a share of the mass; what one answers too much the other does too little.
            place, eta = family.score_size - 1, atoms[0, family.score_size :].clone()
            atoms[:2, place] += torch.tensor([share, 1 - share], dtype=torch.float64).log()
            atoms[0, family.score_size :] = 0.5 * eta
            atoms[1, family.score_size :] = (1 - share * 0.5) / (1 - share) * eta
        else:
            atoms[0, family.score_size :] *= share
            atoms[1, family.score_size :] *= 1 - share
        theta = atoms.flatten()[None]
        assert voronoi(whole, theta, truth).total_B.item() > 0.1
        assert contribution_loss(whole, theta, truth, INPUTS).item() < 1e-12


@each_gate
def test_a_dead_expert_costs_nothing_wherever_it_is(gate):
    truth = drawn(gate)
    family = Mixture(gate, "gelu", k=4, d=2)
    dead = torch.tensor([[1.0, -1.0, -60.0, 3.0, 3.0]], dtype=torch.float64)
    theta = torch.cat((dead, truth.atoms)).flatten()[None]
    assert contribution_loss(family, theta, truth, INPUTS).item() < 1e-12
    if gate == "sigmoid":
        assert voronoi(family, theta, truth).total_B.item() > 0.1
