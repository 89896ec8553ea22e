"""Measured norms: Lanczos against the full Jacobian, and the search for the largest norm."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sigmoid_attention.nn import Attention
from sigmoid_attention.theory.regularity import (
    Ball,
    attention_bound,
    jacobian_norm,
    largest_gain,
    max_jacobian_norm,
    onto_ball,
)
from tests.support.examples import examples
from tests.support.theory.random_layers import inputs, layers, whole_jacobian


@settings(max_examples=examples(60))
@given(layers(), st.floats(0.1, 3.0))
def test_lanczos_finds_the_norm_of_the_whole_jacobian(drawn, radius):
    layer, tokens, rng = drawn
    x = inputs(tokens, radius, rng)
    whole = jacobian_norm(lambda x: layer(x[None])[0], x)
    norm = largest_gain(lambda x: layer(x[None])[0], x, steps=x.numel())
    assert norm.value <= whole.value * (1 + 1e-6)
    assert norm.value >= 0.98 * whole.value
    matrix = whole_jacobian(lambda x: layer(x[None]), x)
    moved = (matrix @ norm.direction.flatten()).norm()
    assert moved.item() == pytest.approx(norm.value, rel=1e-4, abs=1e-12)
    assert (matrix @ whole.direction.flatten()).norm().item() == pytest.approx(whole.value)


def test_few_steps_give_less_and_say_that_they_have_not_settled():
    stretch = torch.linspace(0.1, 1.0, 400).double() ** 0.1
    few = largest_gain(lambda x: stretch * x, torch.zeros(400).double(), steps=2)
    assert few.steps == 2 and not few.settled and few.value < 0.999
    late = largest_gain(lambda x: stretch * x, torch.zeros(400).double(), seconds=0.0)
    assert late.steps == 1 and not late.settled
    with pytest.raises(ValueError, match="steps must be 1 or more, got 0"):
        largest_gain(torch.exp, torch.zeros(2), steps=0)


@pytest.mark.parametrize("activation", ("sigmoid", "softmax"))
def test_the_search_finds_a_steeper_point_within_the_ball_and_below_the_bound(activation):
    torch.manual_seed(1)
    layer = Attention(
        6, 1, max_seq_len=4, activation=activation, is_causal=False, impl="reference"
    ).double()
    x = onto_ball(torch.randn(4, 6).double(), 1.0)
    begin = jacobian_norm(lambda x: layer(x[None])[0], x)
    point, norm = max_jacobian_norm(
        lambda x: layer(x[None])[0], x, partial(onto_ball, radius=3.0), steps=30
    )
    assert float(point.norm(dim=-1).max()) <= 3.0 + 1e-9
    assert norm.value == jacobian_norm(lambda x: layer(x[None])[0], point).value
    assert 1.3 * begin.value < norm.value <= attention_bound(layer, Ball(3.0), 4).jacobian


def test_tokens_within_the_ball_stay_where_they_are():
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    assert onto_ball(x, 1.0).tolist() == [pytest.approx([0.6, 0.8]), pytest.approx([0.3, 0.4])]
