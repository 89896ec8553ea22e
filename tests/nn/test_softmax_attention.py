"""Softmax attention against torch's own operator and against a loop over rows."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sigmoid_attention.nn import alibi_slopes, softmax_attention, softmax_statistics


def tensors(B=2, H=4, G=4, Q=5, K=5, D=8, E=8, dtype=torch.float64):
    return (
        torch.randn(B, H, Q, D, dtype=dtype),
        torch.randn(B, G, K, D, dtype=dtype),
        torch.randn(B, G, K, E, dtype=dtype),
    )


def by_rows(query, key, value, *, visible, slopes=None, softcap=None, float_mask=None):
    """One row at a time; rows without keys are zero."""
    B, H, Q, D = query.shape
    G, K = key.shape[1:3]
    out = torch.zeros(B, H, Q, value.shape[-1], dtype=query.dtype)
    for b, h, i in itertools.product(range(B), range(H), range(Q)):
        g = h // (H // G)
        seen = [j for j in range(K) if visible(b, i + K - Q, j)]
        if not seen:
            continue
        logits = []
        for j in seen:
            logit = query[b, h, i] @ key[b, g, j] / math.sqrt(D)
            if softcap is not None:
                logit = softcap * torch.tanh(logit / softcap)
            if slopes is not None:
                logit = logit - slopes[h] * abs(i + K - Q - j)
            if float_mask is not None:
                logit = logit + float_mask[i, j]
            logits.append(logit)
        weights = torch.stack(logits).softmax(0)
        out[b, h, i] = weights @ value[b, g, seen]
    return out


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("G", [4, 2, 1])
def test_it_is_torchs_operator_where_that_needs_no_mask(is_causal, G):
    query, key, value = tensors(G=G)
    expected = F.scaled_dot_product_attention(
        query, key, value, is_causal=is_causal, enable_gqa=True
    )
    out = softmax_attention(query, key, value, is_causal=is_causal, enable_gqa=True)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


@pytest.mark.parametrize("Q, K", [(1, 1), (1, 7), (3, 7), (7, 7), (7, 3)])
def test_causality_is_aligned_at_the_last_key(Q, K):
    query, key, value = tensors(Q=Q, K=K)
    expected = by_rows(query, key, value, visible=lambda b, i, j: j <= i)
    torch.testing.assert_close(softmax_attention(query, key, value, is_causal=True), expected)
    torch.testing.assert_close(softmax_attention(query, key, value, window_size=(-1, 0)), expected)


@pytest.mark.parametrize("window", [(0, 0), (2, 0), (1, 2), (-1, 1), (3, -1)], ids=str)
@pytest.mark.parametrize("softcap", [None, 3.0], ids=["plain", "softcap"])
def test_window_alibi_and_groups(window, softcap):
    query, key, value = tensors(G=2, Q=4, K=6, E=5)
    left, right = window
    slopes = alibi_slopes(4).double()
    expected = by_rows(
        query,
        key,
        value,
        visible=lambda b, i, j: (left < 0 or i - j <= left) and (right < 0 or j - i <= right),
        slopes=slopes,
        softcap=softcap,
    )
    out = softmax_attention(
        query,
        key,
        value,
        window_size=window,
        alibi_slopes=slopes,
        softcap=softcap,
        enable_gqa=True,
    )
    torch.testing.assert_close(out, expected, atol=2e-7, rtol=2e-7)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("softcap", [None, 1e9], ids=["sdpa", "formed"])
def test_a_row_without_keys_gives_zeros_and_finite_gradients(kind, softcap):
    query, key, value = (x.requires_grad_() for x in tensors(Q=4, K=4))
    real = torch.tensor([[False, False, True, True], [True, True, True, True]])
    mask = real[:, None, None]
    if kind == "float":
        mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    out = softmax_attention(query, key, value, mask, is_causal=True, softcap=softcap)
    expected = by_rows(query, key, value, visible=lambda b, i, j: j <= i and bool(real[b, j]))
    torch.testing.assert_close(out, expected)
    assert out[0, :, :2].count_nonzero() == 0
    out.sum().backward()
    for x in (query, key, value):
        assert x.grad.isfinite().all()
    assert key.grad[0, :, :2].count_nonzero() == 0 and value.grad[0, :, :2].count_nonzero() == 0


def test_a_float_mask_is_added():
    query, key, value = tensors(Q=3, K=5)
    mask = torch.randn(3, 5, dtype=torch.float64)
    expected = by_rows(query, key, value, visible=lambda b, i, j: True, float_mask=mask)
    torch.testing.assert_close(softmax_attention(query, key, value, mask), expected)


def test_statistics_of_the_rows():
    query, key, value = tensors(Q=3, K=5)
    real = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    real[0, ..., :4] = False
    out = softmax_attention(query, key, value, real, is_causal=True, softcap=1e9)
    aux = softmax_statistics(query, key, value, real, is_causal=True)
    assert aux.visible[1, 0].tolist() == [3, 4, 5]
    assert aux.visible[0, 0].tolist() == [0, 0, 1]
    torch.testing.assert_close(aux.mass, (aux.visible > 0).double())
    torch.testing.assert_close(aux.largest[0, :, 2], torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(
        out, softmax_attention(query, key, value, real, is_causal=True), atol=1e-12, rtol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("softcap", [None, 5.0], ids=["sdpa", "formed"])
def test_low_precision_comes_back_as_it_came(dtype, softcap):
    query, key, value = tensors(dtype=dtype)
    slopes = alibi_slopes(4)
    settings = dict(is_causal=True, alibi_slopes=slopes, softcap=softcap)
    out = softmax_attention(query, key, value, **settings)
    exact = softmax_attention(query.double(), key.double(), value.double(), **settings)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, atol=3e-2, rtol=3e-2)


def test_dropout_keeps_the_expectation_on_both_paths():
    query, key, value = tensors(B=1, H=1, G=1, Q=1, K=4)
    repeated = [x.expand(4000, -1, -1, -1) for x in (query, key, value)]
    plain = softmax_attention(query, key, value)[0]
    for softcap in (None, 1e9):
        out = softmax_attention(*repeated, dropout_p=0.3, softcap=softcap)
        torch.testing.assert_close(out.mean(0), plain, atol=0.1, rtol=0)
        assert out.std(0).min() > 0


@pytest.mark.parametrize(
    "changes, match",
    [
        (dict(query=torch.ones(2, 5, 8)), r"query must be \(batch, heads, length, dim\)"),
        (dict(query=torch.ones(1, 2, 5, 8, dtype=torch.long)), "query: dtype must be fp16"),
        (dict(key=torch.ones(1, 2, 5, 7)), "key: head dim must equal query's"),
        (dict(key=torch.ones(1, 2, 5, 8).half()), "key: dtype must equal query's"),
        (dict(value=torch.ones(1, 2, 4, 8)), "value: batch, heads and length must equal key's"),
        (dict(query=torch.ones(1, 4, 5, 8)), "key: has 2 heads for 4 query heads"),
        (dict(query=torch.ones(1, 3, 5, 8), enable_gqa=True), "2 heads do not divide 3"),
        (dict(scale=math.nan), "scale must be a finite number, got nan"),
        (dict(softcap=0.0), "softcap must be positive and finite"),
        (dict(dropout_p=1.0), "dropout_p must be a number, at least 0 and below 1, got 1.0"),
        (dict(attn_mask=torch.ones(5, 5).long()), "attn_mask must be boolean"),
        (dict(attn_mask=torch.ones(5, 4)), "attn_mask must broadcast to"),
        (dict(alibi_slopes=torch.ones(3)), r"alibi_slopes must be \(heads,\) = \(2,\)"),
        (
            dict(query=torch.ones(1, 2, 5, 0), key=torch.ones(1, 2, 5, 0)),
            "head dim must be positive",
        ),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_wrong_values_are_refused(changes, match):
    query, key, value = tensors(B=1, H=2, G=2, dtype=torch.float32)
    with pytest.raises(ValueError, match=match) as error:
        softmax_attention(**{"query": query, "key": key, "value": value, **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, match",
    [
        (dict(query=[[1.0]]), "query must be a tensor of torch, got"),
        (dict(enable_gqa="yes"), "enable_gqa must be True or False, got the string 'yes'"),
        (dict(is_causal=None), "is_causal must be True or False, got None"),
        (dict(window_size=3), r"window_size must be \(left, right\), .*, got 3"),
        (
            dict(scale=torch.nn.Parameter(torch.ones(()))),
            "scale must be a finite number, got a Pa",
        ),
        (dict(softcap="3"), "softcap must be positive and finite"),
        (dict(dropout_p=None), "dropout_p must be a number, at least 0 and below 1, got None"),
        (dict(attn_mask=[[True]]), "attn_mask must be a tensor of torch"),
        (dict(alibi_slopes=[0.5, 0.25]), "alibi_slopes must be a tensor of torch"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_wrong_types_are_refused(changes, match):
    query, key, value = tensors(B=1, H=2, G=2, dtype=torch.float32)
    with pytest.raises(TypeError, match=match) as error:
        softmax_attention(**{"query": query, "key": key, "value": value, **changes})
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_are_numbers():
    query, key, value = tensors(Q=3)
    settings = dict(scale=0.5, softcap=2.0, dropout_p=0.0)
    expected = softmax_attention(query, key, value, is_causal=True, **settings)
    settings = {name: np.float64(number) for name, number in settings.items()}
    options = dict(window_size=[-1, np.int64(-1)], is_causal=np.bool_(True), enable_gqa=1)
    assert softmax_attention(query, key, value, **settings, **options).equal(expected)
