"""Distances to sets of minimisers against all orders of experts, and laws against densities."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sigmoid_attention.mixtures import SCORES, FiniteDesign, Mixture
from sigmoid_attention.mixtures.distance import d3, hellinger, matched
from sigmoid_attention.mixtures.equivalence import shift_scores
from sigmoid_attention.mixtures.voronoi import l2

INPUTS = FiniteDesign.sobol(64, d=2).inputs_Qd
seeds = st.integers(0, 10**6)
each_score = st.sampled_from(list(SCORES))


def drawn(family: Mixture, *lead: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*lead, family.size, generator=rng, dtype=torch.float64)


def reordered(family: Mixture, theta: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    atoms = family.atoms(theta)[..., list(order), :].flatten(-2)
    return torch.cat((atoms, theta[..., atoms.shape[-1] :]), -1)


def by_part(family: Mixture, gap: torch.Tensor) -> torch.Tensor:
    """The sum of the parts' norms of differences (..., P) that were lined up already."""
    atoms = family.atoms(gap)
    places = [place for name, place in family.parts.items() if not name.startswith("eta_")]
    places.append(slice(family.score_size, None))
    return sum(atoms[..., place].norm(dim=-1).sum(-1) for place in places)


@given(each_score, st.integers(1, 4), seeds)
def test_experts_are_matched_as_the_best_of_all_orders_does(score, k, seed):
    family = Mixture("sigmoid", "gelu+bias", score, k=k, d=2)
    theta, other = drawn(family, 3, seed=seed), drawn(family, seed=seed + 1)
    orders = list(itertools.permutations(range(k)))
    costs = [by_part(family, theta - reordered(family, other, order)) for order in orders]
    torch.testing.assert_close(matched(family, theta, other), torch.stack(costs).amin(0))


@given(
    st.sampled_from(("sigmoid", "softmax", "entmax15")), each_score, st.permutations(range(4)),
    st.booleans(), seeds,
)  # fmt: skip
def test_order_and_what_the_gate_does_not_see_cost_nothing(gate, score, order, temperature, seed):
    family = Mixture(gate, "gelu", score, k=4, d=2, temperature=temperature)
    theta, other = drawn(family, 2, seed=seed), drawn(family, seed=seed + 1)
    shift = drawn(family, seed=seed + 2)[: family.score_size]
    if gate == "sigmoid":
        shift = 0 * shift
    before = matched(family, theta, other)
    after = matched(family, shift_scores(family, reordered(family, theta, order), shift), other)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)
    same = reordered(family, shift_scores(family, other, shift), order)
    assert matched(family, same[None], other).item() < 1e-9


@given(st.sampled_from(("linear", "fully_quadratic")), st.permutations(range(5)), seeds)
def test_holding_the_mean_costs_at_most_twice_the_best_shift(score, order, seed):
    family = Mixture("softmax", "gelu", score, k=5, d=2)
    other, error = drawn(family, seed=seed), 0.1 * drawn(family, seed=seed + 1)
    shift = drawn(family, seed=seed + 2)[: family.score_size]
    theta = reordered(family, shift_scores(family, other + error, shift), order)
    assert matched(family, theta[None], other).item() <= 2 * by_part(family, error).item()


def test_a_temperature_counts_by_its_logarithm():
    family = Mixture("sigmoid", "gelu", k=2, d=2, temperature=True)
    theta = drawn(family, 1, seed=0)
    warmer = theta.clone()
    warmer[0, -1] += 0.25
    assert matched(family, warmer, theta[0]).item() == pytest.approx(0.25)


def test_many_experts_are_matched_to_the_nearest_of_many_members():
    family = Mixture("sigmoid", "gelu", k=8, d=8)
    members = drawn(family, 10, seed=0)
    shuffled = reordered(family, members[torch.arange(40) % 10], tuple(reversed(range(8))))
    moved = shuffled + 1e-3
    expected = by_part(family, torch.full((family.size,), 1e-3, dtype=torch.float64))
    torch.testing.assert_close(d3(family, moved, members), expected.expand(40))


def test_samples_of_a_continuum_overstate_it_by_half_their_spacing():
    """Linear experts: one split into s eta and (1 - s) eta answers the same for every s."""
    family = Mixture("sigmoid", "linear", k=2, d=1)
    score, eta = torch.tensor([1.5, 0.3]).double(), torch.tensor([2.0, -1.0]).double()

    def split(share: torch.Tensor) -> torch.Tensor:
        share = share[:, None]
        halves = (score.expand(len(share), -1), share * eta, score.expand(len(share), -1))
        return torch.cat((*halves, (1 - share) * eta), -1)

    members = split(torch.linspace(0, 1, 21, dtype=torch.float64))
    inputs = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    answers = family.predict(members, inputs)
    torch.testing.assert_close(answers, answers[:1].expand_as(answers))
    spacing = matched(family, members[:1], members[1]).item()
    fits = split(torch.linspace(0.01, 0.99, 50, dtype=torch.float64))
    assert d3(family, fits, members).max().item() <= spacing / 2 + 1e-12
    assert matched(family, fits, members[0]).max().item() > 5 * spacing


def test_hellinger_is_that_of_the_gaussian_densities():
    family = Mixture("sigmoid", "gelu", k=2, d=2)
    theta, truth = drawn(family, 3, seed=0), drawn(family, seed=1)
    truth_Q, sigma = family.predict(truth, INPUTS), 0.4
    y = np.linspace(-12, 12, 4001)
    root = lambda mean: np.exp(-((y - mean) ** 2) / (4 * sigma**2)) / (2 * np.pi * sigma**2) ** 0.25  # noqa: E731
    squares = [
        [
            0.5 * np.trapezoid((root(f) - root(g)) ** 2, y)
            for f, g in zip(answers.tolist(), truth_Q.tolist(), strict=True)
        ]
        for answers in family.predict(theta, INPUTS)
    ]
    expected = np.sqrt(np.mean(squares, -1))
    actual = hellinger(family, theta, truth_Q, INPUTS, sigma=sigma)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9)


@given(seeds)
def test_a_small_hellinger_distance_is_an_l2_distance(seed):
    family = Mixture("softmax", "tanh", k=2, d=2)
    truth = drawn(family, seed=seed)
    near = truth[None] + 1e-9 * drawn(family, 1, seed=seed + 1)
    truth_Q = family.predict(truth, INPUTS)
    small = hellinger(family, near, truth_Q, INPUTS, sigma=0.1)
    torch.testing.assert_close(small, l2(family, near, truth_Q, INPUTS) / (8**0.5 * 0.1))


@pytest.mark.parametrize("shape", ((0, 8), (8,), (2, 7)))
def test_sets_of_another_size_are_refused(shape):
    family = Mixture("sigmoid", "gelu", k=2, d=2)
    with pytest.raises(ValueError, match=r"^members must be \(M, 10\) with M of 1 or more, got"):
        d3(family, torch.zeros(1, 10), torch.zeros(shape))
