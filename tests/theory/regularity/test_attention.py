"""Bounds of attention layers: never below measured norms, and attained where possible."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sigmoid_attention.attention import RowLSE
from sigmoid_attention.nn import Attention
from sigmoid_attention.theory.regularity import (
    Ball,
    Box,
    attention_bound,
    attention_bound_at,
    mean_norm_bound,
)
from tests.support.examples import examples
from tests.support.theory.random_layers import inputs, layers, whole_jacobian

ROUNDING = 1 + 1e-9
radii = st.floats(0.05, 8.0)


def measured(layer: Attention, x: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(whole_jacobian(lambda x: layer(x[None]), x), 2))


def longest(layer: Attention, x: torch.Tensor) -> float:
    return float(layer(x[None]).detach().norm(dim=-1).max())


@settings(max_examples=examples(1200))
@given(layers(), radii)
def test_no_layer_is_steeper_than_its_bounds_on_a_ball_on_a_box_and_at_a_point(drawn, radius):
    layer, tokens, rng = drawn
    x = inputs(tokens, radius, rng)
    norm, reach = measured(layer, x), longest(layer, x)
    ball = attention_bound(layer, Ball(radius), tokens)
    box = attention_bound(layer, Box(x.amin(0), x.amax(0)), tokens)
    point = attention_bound_at(layer, x)
    for bound in (ball, box, point):
        assert norm <= bound.jacobian * ROUNDING
        assert reach <= bound.reach * ROUNDING + 1e-12
    assert point.jacobian <= min(ball.jacobian, box.jacobian) * ROUNDING
    assert point.reach == pytest.approx(reach, rel=1e-9, abs=1e-12)


@settings(max_examples=examples(300))
@given(layers(), radii)
def test_a_layer_scale_behind_the_layer_counts(drawn, radius):
    layer, tokens, rng = drawn
    gain = torch.randn(layer.dim, generator=rng, dtype=torch.float64)
    x = inputs(tokens, radius, rng)
    actual = whole_jacobian(lambda x: gain * layer(x[None]), x)
    norm = float(torch.linalg.matrix_norm(actual, 2))
    assert norm <= attention_bound(layer, Ball(radius), tokens, gain_C=gain).jacobian * ROUNDING
    assert norm <= attention_bound_at(layer, x, gain_C=gain).jacobian * ROUNDING


@settings(max_examples=examples(500))
@given(
    layers().filter(
        lambda drawn: (
            drawn[0].activation == "sigmoid"
            and drawn[0].query.bias is None
            and isinstance(drawn[0].qk_norm.query, torch.nn.Identity)
        )
    ),
    radii,
)
def test_the_mean_of_squared_norms_bounds_a_sigmoid_layer(drawn, radius):
    layer, tokens, rng = drawn
    x = inputs(tokens, radius, rng)
    mean_square = float(x.square().sum(-1).mean())
    bound = mean_norm_bound(layer, mean_square, tokens)
    assert measured(layer, x) <= bound * ROUNDING


def constant(tokens: int, activation: str, bias: float = -1.0) -> Attention:
    """A layer whose queries are zero, so that all weights are what the bias makes them."""
    layer = Attention(
        4,
        1,
        max_seq_len=tokens,
        activation=activation,
        bias=bias,
        is_causal=False,
        impl="reference",
    ).double()
    torch.nn.init.zeros_(layer.query.weight)
    torch.nn.init.zeros_(layer.key.weight)
    return layer


@pytest.mark.parametrize("tokens", (1, 3, 7))
def test_where_every_weight_is_the_same_the_bound_is_attained(tokens):
    layer = constant(tokens, "sigmoid")
    product = layer.output.weight @ layer.value.weight
    norm = tokens * torch.sigmoid(torch.tensor(-1.0).double()) * torch.linalg.norm(product, 2)
    x = torch.randn(tokens, 4).double()
    assert measured(layer, x) == pytest.approx(norm.item(), rel=1e-9)
    assert attention_bound(layer, Ball(3.0), tokens).jacobian == pytest.approx(norm.item())
    assert attention_bound_at(layer, x).jacobian == pytest.approx(norm.item())


def test_where_every_weight_is_the_same_softmax_is_bounded_by_its_value_path():
    layer = constant(4, "softmax")
    product = torch.linalg.norm(layer.output.weight @ layer.value.weight, 2).item()
    bound = attention_bound(layer, Ball(3.0), 4)
    assert bound.through_queries == bound.through_keys == 0
    assert bound.jacobian == pytest.approx(product)


def test_the_bound_of_a_sigmoid_grows_with_the_square_of_the_radius():
    layer = Attention(8, 2, max_seq_len=16, is_causal=False).double()
    far = [attention_bound(layer, Ball(radius), 16).jacobian for radius in (1e3, 1e4)]
    assert math.log10(far[1] / far[0]) == pytest.approx(2, abs=0.01)


def test_a_bias_far_below_zero_makes_the_bound_small():
    """The attained range of sigma' is used, not its supremum of a quarter."""
    loose, tight = (
        attention_bound(Attention(8, 2, max_seq_len=16, bias=bias), Ball(0.1), 16).jacobian
        for bias in (0.0, -12.0)
    )
    torch.manual_seed(0)
    assert tight < 1e-4 * loose


def test_a_layer_scale_of_zero_bounds_by_zero():
    layer = Attention(8, 2, max_seq_len=4)
    assert attention_bound(layer, Ball(1.0), 4, gain_C=torch.zeros(8)).jacobian == 0


@pytest.mark.parametrize(
    "call, message",
    (
        (lambda layer: Ball(0.0), "radius must be positive and finite, got 0.0"),
        (lambda layer: Ball(float("nan")), "radius must be positive and finite, got nan"),
        (lambda layer: Ball(1.0, lower=2.0), "lower must lie between 0 and the radius, got 2.0"),
        (lambda layer: Box(torch.ones(3), torch.zeros(3)), "nowhere above high"),
        (lambda layer: Box(torch.ones(3), torch.ones(2)), "vectors of one length"),
        (lambda layer: attention_bound(layer, Ball(1.0), 0), "tokens must be 1 or more, got 0"),
        (lambda layer: attention_bound_at(layer, torch.ones(3, 7)), r"\(tokens, 8\), got \(3, 7\)"),
        (lambda layer: attention_bound_at(layer, torch.full((3, 8), torch.nan)), "must be finite"),
    ),
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Attention(8, 2, max_seq_len=4))


def test_a_part_without_a_bound_is_named():
    with pytest.raises(ValueError, match="RowLSE depends on the logits"):
        attention_bound(Attention(8, 2, max_seq_len=4, bias=RowLSE()), Ball(1.0), 4)
    for settings_, message in (
        ({"activation": "softmax"}, "about a sigmoid, got a softmax layer"),
        ({"qk_norm": "rms"}, "the query has a norm"),
    ):
        with pytest.raises(ValueError, match=message):
            mean_norm_bound(Attention(8, 2, max_seq_len=4, **settings_), 1.0, 4)
    biased = Attention(8, 2, max_seq_len=4, linear_bias=True)
    torch.nn.init.ones_(biased.key.bias)
    torch.nn.init.zeros_(biased.query.bias)
    with pytest.raises(ValueError, match="the key has an additive term"):
        mean_norm_bound(biased, 1.0, 4)
