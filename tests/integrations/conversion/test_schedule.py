"""The schedule starts at the softmax up to the gain, ends without row statistics, and is linear."""

import math

import pytest
import torch

from sigmoid_attention import NegLogVisible, sigmoid_attention
from sigmoid_attention.attention import Constant, Learned
from sigmoid_attention.integrations.conversion import (
    Annealed,
    DividedByMass,
    SoftmaxStart,
    anneal,
)


def tensors(batch=2, heads=3, length=7, dim=5):
    torch.manual_seed(0)
    return torch.randn(3, batch, heads, length, dim, dtype=torch.float64).unbind(0)


@pytest.mark.parametrize("gain", [1.0, 1.5, 8.0])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_the_start_is_p_over_one_plus_p_over_gain(gain, is_causal):
    query, key, value = tensors()
    scores = query @ key.mT / math.sqrt(5)
    if is_causal:
        scores = scores.masked_fill(~torch.ones(7, 7).tril().bool(), -math.inf)
    p = torch.softmax(scores, -1)
    out = gain * sigmoid_attention(
        query, key, value, bias=SoftmaxStart(gain), is_causal=is_causal, impl="reference"
    )
    torch.testing.assert_close(out, p / (1 + p / gain) @ value, rtol=1e-12, atol=1e-12)


def test_a_large_gain_is_the_softmax():
    query, key, value = tensors()
    softmax = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    out = 1e6 * sigmoid_attention(query, key, value, bias=SoftmaxStart(1e6), impl="reference")
    torch.testing.assert_close(out, softmax, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("exponent", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_rows_are_divided_by_a_power_of_their_mass(exponent, dtype):
    query, key, value = tensors()
    weights = torch.sigmoid(query @ key.mT / math.sqrt(5) - 3)
    expected = weights @ value / (1.5 * weights.sum(-1, keepdim=True)) ** exponent
    operator = DividedByMass(1.5)
    operator.exponent = exponent
    out = operator(*(x.to(dtype) for x in (query, key, value)), bias=-3.0)
    assert out.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 5e-3
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_the_bias_moves_on_a_line(t):
    query, key, value = tensors()
    final = Learned(-2.0, num_heads=3).double()
    bias = Annealed(SoftmaxStart(2.0), final)
    bias.t = t
    lse = (query @ key.mT / math.sqrt(5)).logsumexp(-1, keepdim=True)
    explicit = (1 - t) * (-lse - math.log(2)) + t * -2.0
    torch.testing.assert_close(
        sigmoid_attention(query, key, value, bias=bias, impl="reference"),
        sigmoid_attention(query, key, value, bias=explicit, impl="reference"),
        rtol=1e-12,
        atol=1e-12,
    )


def test_at_the_end_no_row_is_read():
    class Unasked(SoftmaxStart):
        def resolve(self, rows):
            raise AssertionError("the row was looked at")

    query, key, value = tensors()
    bias = Annealed(Unasked(1.0), Learned(-2.0, num_heads=3).double())
    bias.t = 1.0
    out = sigmoid_attention(query, key, value, bias=bias)
    assert out.equal(sigmoid_attention(query, key, value, bias=Constant(-2.0)))


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_the_second_half_is_at_the_end(steps):
    values = [anneal(step, steps) for step in range(steps)]
    assert values == sorted(values) and values[0] > 0
    assert all(t == 1 for t in values[max(1, steps // 2) :]) and values[-1] == 1


@pytest.mark.parametrize(
    "error, gain, description",
    [
        (ValueError, 0.0, "0.0"),
        (ValueError, 10**400, "a number of"),
        (TypeError, torch.nn.Parameter(torch.ones(())), "a P"),
    ],
)
def test_a_gain_that_is_no_positive_number_is_refused(error, gain, description):
    with pytest.raises(error, match=f"gain must be positive and finite, got {description}"):
        SoftmaxStart(gain)


def test_visible_keys_are_not_confused_with_the_softmax():
    query, key, value = tensors()
    naive = sigmoid_attention(query, key, value, bias=NegLogVisible(), is_causal=True)
    start = sigmoid_attention(query, key, value, bias=SoftmaxStart(1.0), is_causal=True)
    assert (naive - start).abs().max() > 0.01
