"""Dropout of weights: the dropped weights, the scale of the others, and unchanged results.

With the identity as value the output is the matrix of weights itself.
"""

import pytest
import torch
from torch import Tensor

from sigmoid_attention.attention import (
    attention_statistics,
    sigmoid_attention,
    sigmoid_varlen_attention,
)

N = 111


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(3)
    query, key = torch.randn(2, 2, 3, N, 4, generator=chance, dtype=torch.float64).unbind(0)
    return query, key, torch.eye(N, dtype=torch.float64).expand(2, 3, N, N)


def dropped(tensors, dropout_p: float, seed: int, **arguments):
    torch.manual_seed(seed)
    return sigmoid_attention(*tensors, dropout_p=dropout_p, bias=-1.0, **arguments)


@pytest.mark.parametrize("dropout_p", [0.1, 0.75])
def test_a_weight_is_dropped_or_grows_by_the_same_factor(tensors, dropout_p):
    weights = sigmoid_attention(*tensors, bias=-1.0)
    out = dropped(tensors, dropout_p, seed=0)
    kept = out != 0
    torch.testing.assert_close(out[kept], weights[kept] / (1 - dropout_p))
    spread = (dropout_p * (1 - dropout_p) / kept.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - dropout_p)) < 4 * spread


def test_the_expectation_is_the_answer_without_dropout(tensors):
    weights = sigmoid_attention(*tensors, bias=-1.0)
    draws = 50
    mean = sum(dropped(tensors, 0.5, seed) for seed in range(draws)) / draws
    # Var of w * Bernoulli(1 - p) / (1 - p) is w^2 p / (1 - p) = w^2 here.
    z = (mean - weights) / (weights / draws**0.5)
    assert abs(z.mean()) < 4 / z.numel() ** 0.5
    assert 0.97 < z.std() < 1.03


def test_the_seed_decides(tensors):
    assert torch.equal(dropped(tensors, 0.3, seed=1), dropped(tensors, 0.3, seed=1))
    assert not torch.equal(dropped(tensors, 0.3, seed=1), dropped(tensors, 0.3, seed=2))


def test_without_dropout_no_random_number_is_drawn(tensors):
    before = torch.get_rng_state()
    sigmoid_attention(*tensors, bias=-1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_hidden_keys_stay_hidden_and_statistics_are_those_without_dropout(tensors):
    out = dropped(tensors, 0.5, seed=0, is_causal=True)
    assert not out.triu(1).any()
    options = {"bias": -1.0, "is_causal": True}
    statistics = attention_statistics(*tensors, **options, dropout_p=0.5)
    expected = attention_statistics(*tensors, **options)
    assert all(torch.equal(*rows) for rows in zip(statistics, expected, strict=True))


def test_the_gradient_passes_where_the_weight_was_kept(tensors):
    query, key, value = tensors
    value = value.clone().requires_grad_()
    out = dropped((query, key, value), 0.5, seed=0)
    out.sum().backward()
    # dO/dV sums the kept weights of a key over its queries, once for each value dimension.
    torch.testing.assert_close(value.grad, out.detach().sum(2)[..., None].expand_as(value))


def test_packed_sequences_are_dropped_alike():
    chance = torch.Generator().manual_seed(3)
    query, key, value = torch.randn(3, 9, 2, 4, generator=chance, dtype=torch.float64).unbind(0)
    ends = torch.tensor([0, 9])
    torch.manual_seed(5)
    packed = sigmoid_varlen_attention(query, key, value, ends, ends, 9, 9, bias=-1.0, dropout_p=0.5)
    torch.manual_seed(5)
    dense = [tensor.transpose(0, 1)[None] for tensor in (query, key, value)]
    expected = sigmoid_attention(*dense, bias=-1.0, dropout_p=0.5)
    torch.testing.assert_close(packed, expected[0].transpose(0, 1))
