"""The function that attention modules call, with all arguments that they can pass."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from sigmoid_attention import NegLogVisible, RowLSE, sigmoid_attention
from sigmoid_attention.integrations.transformers import (
    attention_modules,
    convert,
    replace_bias,
    sigmoid_attention_forward,
)
from tests.support.transformers.architectures import ARCHITECTURES
from tests.support.transformers.checks import with_cache

HEADS, QUERIES, KEYS, DIM = 4, 5, 7, 6


class Attention(nn.Module):
    """As much of an attention module as the function looks at."""

    def __init__(self, bias=-2.0, is_causal=True):
        super().__init__()
        self.sigmoid_bias = bias
        self.is_causal = is_causal


def tensors(queries=QUERIES, keys=KEYS, key_heads=2, dtype=torch.float32):
    torch.manual_seed(0)
    query = torch.randn(2, HEADS, queries, DIM, dtype=dtype)
    key, value = torch.randn(2, 2, key_heads, keys, DIM, dtype=dtype).unbind(0)
    return query, key, value


def call(module, *args, **kwargs):
    out, weights = sigmoid_attention_forward(module, *args, **kwargs)
    assert out.is_contiguous()
    return out.transpose(1, 2), weights


def test_one_query_without_a_mask_sees_the_whole_cache():
    query, key, value = tensors(queries=1)
    out, weights = call(Attention(), query, key, value, None)
    torch.testing.assert_close(
        out, sigmoid_attention(query, key, value, bias=-2.0, enable_gqa=True)
    )
    assert weights is None


def test_the_first_tokens_of_a_static_cache_see_none_of_its_empty_part():
    query, key, value = tensors()
    key[:, :, QUERIES:], value[:, :, QUERIES:] = 3.0, torch.inf
    position = torch.randn(1, HEADS, QUERIES, KEYS)
    for settings in ({}, {"position_bias": position}):
        out, _ = call(Attention(), query, key, value, None, **settings)
        expected = sigmoid_attention(
            query,
            key[:, :, :QUERIES],
            value[:, :, :QUERIES],
            position[..., :QUERIES] if settings else None,
            bias=-2.0,
            is_causal=True,
            enable_gqa=True,
        )
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(("argument", "attribute"), [(True, False), (None, True), (False, True)])
def test_the_argument_is_causal_goes_before_the_module(argument, attribute):
    query, key, value = tensors(queries=KEYS)
    out, _ = call(Attention(is_causal=attribute), query, key, value, None, is_causal=argument)
    causal = attribute if argument is None else argument
    expected = sigmoid_attention(query, key, value, bias=-2.0, is_causal=causal, enable_gqa=True)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("hidden", [-torch.inf, torch.finfo(torch.float32).min, -1e9, -1e4])
@pytest.mark.parametrize("position", [False, True], ids=["alone", "position"])
def test_a_low_number_in_a_float_mask_hides_a_key_from_what_counts_keys(hidden, position):
    query, key, value = tensors()
    seen = torch.rand(2, 1, QUERIES, KEYS) < 0.6
    seen[0, 0, 2] = False
    extra = torch.randn(1, HEADS, QUERIES, KEYS) if position else torch.zeros(1)
    mask = torch.zeros(seen.shape).masked_fill(~seen, hidden)
    options = {"position_bias": extra} if position else {}
    out, _ = call(Attention(NegLogVisible()), query, key, value, mask, **options)
    added = extra.masked_fill(~seen, -torch.inf)
    expected = sigmoid_attention(query, key, value, added, bias=NegLogVisible(), enable_gqa=True)
    torch.testing.assert_close(out, expected)
    assert (out[0, :, 2] == 0).all()


def test_a_boolean_mask_and_a_position_bias_act_together_and_the_bias_learns():
    query, key, value = tensors()
    seen = torch.rand(2, 1, QUERIES, KEYS) < 0.6
    position = torch.randn(1, HEADS, QUERIES, KEYS, requires_grad=True)
    out, _ = call(Attention(), query, key, value, seen, position_bias=position)
    other = position.detach().clone().requires_grad_()
    groups = (x.repeat_interleave(2, 1).double() for x in (key, value))
    key, value = groups
    weights = (query.double() @ key.mT * DIM**-0.5 + other - 2.0).sigmoid() * seen
    torch.testing.assert_close(out, (weights @ value).float(), atol=1e-6, rtol=1e-5)
    for result in (out, weights @ value):
        result.sum().backward()
    torch.testing.assert_close(position.grad, other.grad, atol=1e-5, rtol=1e-5)


def test_weights_are_those_of_the_operator():
    query, key, value = tensors()
    seen = torch.rand(2, 1, QUERIES, KEYS) < 0.6
    out, weights = call(
        Attention(), query, key, value, seen, output_attentions=True, softcap=1.5, scaling=0.7
    )
    assert weights.shape == (2, HEADS, QUERIES, KEYS)
    assert (weights.masked_select(~seen) == 0).all()
    torch.testing.assert_close(weights @ value.repeat_interleave(2, 1), out, atol=1e-6, rtol=1e-5)


def test_a_window_is_in_the_mask_and_not_applied_again():
    query, key, value = tensors()
    seen = torch.ones(1, 1, QUERIES, KEYS, dtype=torch.bool)
    out, _ = call(Attention(), query, key, value, seen, sliding_window=1)
    expected = sigmoid_attention(query, key, value, bias=-2.0, enable_gqa=True)
    torch.testing.assert_close(out, expected)


def test_dropout_drops_weights():
    query, key, value = tensors(queries=KEYS)
    value = torch.ones_like(value)
    torch.manual_seed(5)
    out, _ = call(Attention(50.0, is_causal=False), query, key, value, None, dropout=0.5)
    # Each of seven weights is 0 or 2.
    assert set(out.unique().tolist()) <= {2.0 * kept for kept in range(8)}
    assert out.unique().numel() > 2


def test_autocast_leaves_queries_in_another_precision_than_values():
    query, key, value = tensors(queries=KEYS)
    out, _ = call(Attention(), query, key, value.bfloat16(), None)
    assert out.dtype == torch.bfloat16
    expected, _ = call(Attention(), query, key, value, None)
    torch.testing.assert_close(out.float(), expected, atol=0.03, rtol=0.03)


def test_autocast_trains_a_model():
    model = convert(ARCHITECTURES["Llama"].build())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**ARCHITECTURES["Llama"].batch()).logits.square().mean()
    loss.backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in model.parameters())


@pytest.mark.parametrize(
    ("error", "mask", "complaint"),
    [
        (ValueError, torch.ones(2, KEYS, dtype=torch.bool), r"attention_mask:? .*\(2, 7\)"),
        (
            ValueError,
            torch.ones(1, 1, QUERIES, KEYS, dtype=torch.int64),
            "attention_mask:? .*torch.int64",
        ),
        (TypeError, "padding", "attention_mask must be a tensor or None, got str"),
    ],
    ids=["two-dimensions", "integers", "text"],
)
def test_a_mask_of_another_kind_is_refused(error, mask, complaint):
    with pytest.raises(error, match=complaint):
        sigmoid_attention_forward(Attention(), *tensors(), mask)


@pytest.mark.parametrize("name", ["s_aux", "sinks"])
def test_attention_sinks_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"^{name}: Attention has attention sinks"):
        sigmoid_attention_forward(Attention(), *tensors(), None, **{name: torch.zeros(HEADS)})


def test_a_module_without_a_bias_asks_for_a_conversion():
    with pytest.raises(ValueError, match="Attention runs as sigmoid attention without a bias"):
        sigmoid_attention_forward(Attention(None), *tensors(), None)


def test_the_bias_of_one_module_may_depend_on_its_rows():
    """As a conversion starts: p / (1 + p) in one layer, independently of the others."""
    architecture = ARCHITECTURES["GPT-2"]
    model = convert(architecture.build(), bias=-3.0)
    before = model(**architecture.batch()).logits
    replace_bias(attention_modules(model)["transformer.h.1.attn"], RowLSE())
    after = model(**architecture.batch()).logits
    assert not torch.equal(before, after)
    cache = DynamicCache(config=model.config)
    tokens = architecture.batch()["input_ids"]
    parts = [
        model(input_ids=part, **with_cache(model, cache)).logits
        for part in tokens.split((8, 1, 2), 1)
    ]
    torch.testing.assert_close(torch.cat(parts, 1), after, atol=2e-5, rtol=2e-5)


def test_attentions_are_returned_by_a_model():
    config = GPT2Config(vocab_size=19, n_embd=12, n_layer=2, n_head=3, n_positions=9)
    model = convert(GPT2LMHeadModel(config).eval())
    out = model(input_ids=torch.arange(7)[None], output_attentions=True)
    assert [x.shape for x in out.attentions] == [(1, 3, 7, 7)] * 2
    for weights in out.attentions:
        assert (weights.triu(1) == 0).all() and (weights.tril().sum(-1) > 0).all()
