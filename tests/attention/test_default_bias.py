"""Calls without a bias: the default value, and the warning for calls of different lengths."""

import warnings

import pytest
import torch

from sigmoid_attention import NegLogLength, sigmoid_attention
from sigmoid_attention.attention import api, call_cache, default_bias
from sigmoid_attention.integrations import flash_attn, triton_sigmoid
from sigmoid_attention.nn import Attention, SigmoidMultiheadAttention


@pytest.fixture(autouse=True)
def no_call_was_made(monkeypatch):
    monkeypatch.setattr(default_bias, "_first_keys", None)
    monkeypatch.setattr(default_bias, "_warned", False)
    # A remembered call was looked at when it was first made.
    monkeypatch.setattr(call_cache, "_prepared", {})


def text(length: int):
    return torch.ones(3, 1, 2, length, 4).unbind(0)


def warnings_of(*calls) -> list[str]:
    with warnings.catch_warnings(record=True, action="always") as caught:
        for call in calls:
            call()
    return [str(warning.message) for warning in caught]


def of(length: int, **arguments):
    return lambda: sigmoid_attention(*text(length), **arguments)


def test_calls_of_one_length_are_no_news():
    assert warnings_of(of(9), of(9, is_causal=True), of(9)) == []


def test_another_length_is_warned_of_once():
    (sentence,) = warnings_of(of(9), of(7), of(7), of(5), of(9))
    assert sentence.startswith("bias: None means -log(number of keys), and calls came with 9 and 7")
    assert "e.g. bias=NegLogLength(1024)" in sentence and "\n" not in sentence


@pytest.mark.parametrize(
    "call",
    [
        lambda x: sigmoid_attention(x, x, x),
        lambda x: flash_attn.flash_attn_func(*[x.transpose(1, 2)] * 3),
        lambda x: flash_attn.flash_attn_qkvpacked_func(torch.stack([x.transpose(1, 2)] * 3, 2)),
    ],
    ids=["operator", "flash", "packed"],
)
def test_the_warning_names_the_line_of_the_caller(call):
    with pytest.warns(UserWarning, match="bias: None") as caught:
        call(text(9)[0])
        call(text(7)[0])
    assert caught[0].filename == __file__


def test_a_call_that_was_remembered_is_no_other():
    assert len(warnings_of(*[of(9)] * 5, *[of(7)] * 5, *[of(9)] * 5)) == 1


def test_a_bias_that_is_given_is_no_news():
    assert warnings_of(of(9, bias=-1.0), of(7, bias=NegLogLength(9)), of(7, bias=-1.0), of(9)) == []


def test_empty_calls_have_no_length():
    assert warnings_of(of(0), of(9), of(0)) == []


def test_the_names_of_others_warn_by_theirs():
    rows = {length: torch.ones(1, length, 2, 4) for length in (9, 7)}
    for function in (flash_attn.flash_attn_func, triton_sigmoid.sigmoid_attention):
        default_bias._first_keys, default_bias._warned = None, False
        calls = [lambda x=x: function(x, x, x) for x in rows.values()]  # noqa: B023
        (sentence,) = warnings_of(*calls)
        assert sentence.startswith("sigmoid_bias: None means")


def test_a_graph_stands_for_all_lengths():
    compiled = torch.compile(lambda *x: sigmoid_attention(*x), backend="eager", fullgraph=True)
    assert warnings_of(*[lambda n=n: compiled(*text(n)) for n in (9, 7, 5)]) == []


def test_layers_take_no_length_of_a_call(monkeypatch):
    monkeypatch.setattr(api, "default_bias", None)
    layer = Attention(8, 2, max_seq_len=16)
    multihead = SigmoidMultiheadAttention(8, 2, batch_first=True, sigmoid_bias=NegLogLength(16))
    for length in (9, 7):
        x = torch.randn(1, length, 8)
        layer(x), multihead(x, x, x)
