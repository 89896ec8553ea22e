"""Calibration finds the bias exactly if the log-sum-exp has the fitted form."""

import math

import pytest
import torch

from sigmoid_attention import sigmoid_attention
from sigmoid_attention.attention import Learned
from sigmoid_attention.integrations.conversion import Calibration, SoftmaxStart
from sigmoid_attention.nn import StateBias


def watched(query, key, gain=1.0, ridge=0.0, given=None, **settings):
    bias = Calibration(SoftmaxStart(gain), gain, ridge)
    sigmoid_attention(query, key, key, bias=bias.with_input(given), enable_gqa=True, **settings)
    return bias


@pytest.mark.parametrize(("heads", "key_heads"), [(3, 3), (4, 2)], ids=["H3-G3", "H4-G2"])
@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_one_key_is_found_behind_the_projection_of_queries(heads, key_heads, gain):
    """With one key in all the log-sum-exp is the logit itself: linear in what queries come from."""
    torch.manual_seed(0)
    given = torch.randn(2, 50, 5, dtype=torch.float64)
    projection = torch.randn(heads, 5, 6, dtype=torch.float64)
    query = torch.einsum("bnc,hcd->bhnd", given, projection)
    key = torch.randn(1, key_heads, 1, 6, dtype=torch.float64)
    final = StateBias(torch.ones(heads), dim=5)
    watched(query, key.expand(2, -1, -1, -1), gain, ridge=1e-12, given=given).solve(final)
    each = key[0, :, 0].repeat_interleave(heads // key_heads, 0)
    expected = -torch.einsum("hcd,hd->hc", projection, each) / 6**0.5
    torch.testing.assert_close(final.weight.data, expected.float(), rtol=1e-4, atol=1e-4)
    expected = torch.full((heads,), -math.log(gain))
    torch.testing.assert_close(final.offset.data, expected, rtol=1e-4, atol=1e-4)


def test_neutral_keys_are_the_number_of_visible_ones():
    torch.manual_seed(0)
    query = torch.randn(1, 2, 30, 4, dtype=torch.float64)
    final, given = StateBias(torch.ones(2), dim=3), torch.randn(1, 30, 3, dtype=torch.float64)
    neutral = torch.zeros_like(query)
    watched(query, neutral, is_causal=True, ridge=1e-12, given=given).solve(final)
    torch.testing.assert_close(final.slope.data, torch.ones(2), rtol=1e-4, atol=1e-4)
    assert final.weight.abs().max() < 1e-4 and final.offset.abs().max() < 1e-4


def test_a_constant_is_the_mean_over_all_batches():
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 2, 20, 4, dtype=torch.float64).unbind(0)
    bias = Calibration(SoftmaxStart(1.0), 1.0)
    for row in range(3):
        sigmoid_attention(query[row : row + 1], key[row : row + 1], key[:1], bias=bias)
    final = Learned(0.0, num_heads=2)
    bias.solve(final)
    lse = (query @ key.mT / 2).logsumexp(-1)
    torch.testing.assert_close(final.value.data, -lse.mean((0, 2)).float())


def test_rows_that_see_nothing_count_for_nothing():
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 2, 20, 4, dtype=torch.float64).unbind(0)
    mask = torch.ones(2, 1, 20, 20, dtype=torch.bool)
    mask[1] = False
    bias = watched(query, key, attn_mask=mask)
    final = Learned(0.0, num_heads=2)
    bias.solve(final)
    lse = (query[:1] @ key[:1].mT / 2).logsumexp(-1)
    torch.testing.assert_close(final.value.data, -lse.mean((0, 2)).float())


def test_rows_all_as_long_leave_the_slope_at_rest():
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 2, 20, 4).unbind(0)
    final = StateBias(torch.zeros(2), dim=4)
    watched(query, key, ridge=1e-3, given=torch.randn(2, 20, 4)).solve(final)
    assert final.offset.isfinite().all() and final.slope.abs().max() < 10


def test_it_answers_with_the_start_meanwhile():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 2, 9, 4).unbind(0)
    start = SoftmaxStart(2.0)
    out = sigmoid_attention(query, key, key, bias=Calibration(start, 2.0))
    assert out.equal(sigmoid_attention(query, key, key, bias=start))
