"""Equal functions with different parameters: exact identities, and differences between gates."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sigmoid_attention.mixtures import EXPERTS, SCORES, FiniteDesign, Mixture
from sigmoid_attention.mixtures.equivalence import (
    ADDITIVE,
    centred,
    shift_scores,
    sigmoid_as_softmax,
    softmax_as_sigmoid,
)
from sigmoid_attention.mixtures.projection import ApproximationProblem, project, starts_in
from sigmoid_attention.mixtures.solver import ParameterBox

INPUTS = FiniteDesign.sobol(64, d=2).inputs_Qd
seeds = st.integers(0, 10**6)
linear_in_parameters = st.sampled_from([name for name in SCORES if name != "euclidean"])


def drawn(family: Mixture, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(family.size, generator=rng, dtype=torch.float64)


def same(left: tuple[Mixture, torch.Tensor], right: tuple[Mixture, torch.Tensor]) -> None:
    answers = [family.predict(theta, INPUTS) for family, theta in (left, right)]
    torch.testing.assert_close(*answers, rtol=1e-12, atol=1e-12)


@given(linear_in_parameters, st.sampled_from(list(EXPERTS)), st.booleans(), seeds)
def test_two_softmax_experts_are_two_sigmoid_experts(score, expert, temperature, seed):
    softmax = Mixture("softmax", expert, score, k=2, d=2, temperature=temperature)
    theta = drawn(softmax, seed)
    sigmoid, converted = softmax_as_sigmoid(softmax, theta)
    assert sigmoid.gate == "sigmoid"
    same((softmax, theta), (sigmoid, converted))


@given(linear_in_parameters, st.sampled_from(ADDITIVE), st.integers(1, 4), st.booleans(), seeds)
def test_k_sigmoid_experts_that_add_up_are_2_to_the_k_softmax_experts(
    score, expert, k, temperature, seed
):
    """Of linear experts four under a softmax contain two under a sigmoid."""
    sigmoid = Mixture("sigmoid", expert, score, k=k, d=2, temperature=temperature)
    theta = drawn(sigmoid, seed)
    softmax, converted = sigmoid_as_softmax(sigmoid, theta)
    assert (softmax.gate, softmax.k) == ("softmax", 2**k)
    same((sigmoid, theta), (softmax, converted))


@given(
    st.sampled_from(("softmax", "sparsemax", "entmax15")),
    st.sampled_from(list(SCORES)),
    st.booleans(),
    seeds,
)
def test_a_shift_of_all_scores_changes_no_answer_of_a_blind_gate(gate, score, temperature, seed):
    family = Mixture(gate, "tanh", score, k=3, d=2, temperature=temperature)
    theta = drawn(family, seed)
    shift = drawn(family, seed + 1)[: family.score_size]
    shifted = shift_scores(family, theta, shift)
    assert (shifted - theta).abs().max() > 1e-3
    same((family, theta), (family, shifted))
    same((family, theta), (family, centred(family, theta)))
    # And what the shift did is undone by holding the mean.
    torch.testing.assert_close(centred(family, shifted), centred(family, theta), rtol=0, atol=1e-10)
    held = family.atoms(centred(family, shifted))[:, : family.score_size]
    torch.testing.assert_close(held.mean(0), torch.zeros_like(held[0]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("temperature", (False, True), ids=("plain", "temperature"))
@pytest.mark.parametrize(("score", "factor"), (("linear", 1.0), ("euclidean", 2.0)))
def test_a_shift_adds_the_same_to_all_scores_of_a_sigmoid_too(score, factor, temperature):
    family = Mixture("sigmoid", "constant", score, k=2, d=2, temperature=temperature)
    theta, shift = drawn(family, 0), torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    before = torch.logit(family.gate_weights(theta, INPUTS))
    after = torch.logit(family.gate_weights(shift_scores(family, theta, shift), INPUTS))
    rate = torch.exp(-theta[-1]) if temperature else 1.0
    by = (rate * factor * INPUTS @ shift[:2] + shift[2])[:, None].expand(-1, 2)
    torch.testing.assert_close(after - before, by)
    assert centred(family, theta) is theta


@pytest.mark.parametrize("slope", (0.0, 1.0, 3.0))
def test_two_sigmoids_sum_to_a_sigmoid_only_where_it_is_flat(slope):
    """Regime 1 of Nguyen et al. 2024: two sigmoids with slopes and intercepts within 3."""
    family = Mixture("sigmoid", "constant", k=2, d=1)
    inputs = torch.linspace(-2, 2, 64, dtype=torch.float64)[:, None]
    ones = torch.zeros(family.size, dtype=torch.bool)
    ones[[2, 5]] = True
    box = ParameterBox.around_zero(family.size, 4.0).pinned(
        ones, torch.ones(2, dtype=torch.float64)
    )
    target = (slope * inputs[:, 0] + 0.5).sigmoid()
    problem = ApproximationProblem(family, target, inputs, box)
    projection = project(problem, starts_in(box, 24, seed=0))
    assert (projection.floor < 1e-9) == (slope == 0)
    if slope:
        assert projection.floor > 1e-3


def test_weights_of_two_flat_sigmoids_are_shared_in_any_proportion():
    """The one exact split that a sigmoid allows."""
    target = torch.tensor(0.5, dtype=torch.float64).sigmoid()
    first = torch.linspace(0.01, 0.6, 7, dtype=torch.float64)
    family = Mixture("sigmoid", "constant", k=2, d=1)
    for part in first:
        second = torch.logit(target - part)
        theta = torch.stack(
            [0 * part, torch.logit(part), 0 * part + 1, 0 * part, second, 0 * part + 1]
        )
        expected = target.expand(5)
        torch.testing.assert_close(family.predict(theta, torch.randn(5, 1).double()), expected)


@pytest.mark.parametrize(
    ("convert", "family"),
    (
        (softmax_as_sigmoid, Mixture("softmax", "tanh", k=3)),
        (softmax_as_sigmoid, Mixture("sigmoid", "tanh", k=2)),
        (softmax_as_sigmoid, Mixture("softmax", "tanh", "euclidean", k=2)),
        (sigmoid_as_softmax, Mixture("sigmoid", "relu", k=2)),
        (sigmoid_as_softmax, Mixture("softmax", "linear", k=2)),
        (sigmoid_as_softmax, Mixture("sigmoid", "linear", "euclidean", k=2)),
    ),
)
def test_families_without_the_identity_are_refused(convert, family):
    with pytest.raises(ValueError, match=r"^family must have"):
        convert(family, torch.zeros(family.size))
