"""`StateBias`: its formula in both forms, what stays in fp32, and bad input."""

import math

import pytest
import torch

from sigmoid_attention import sigmoid_attention
from sigmoid_attention.nn import StateBias


def trained(log_visible: bool) -> StateBias:
    bias = StateBias(torch.tensor([-2.0, -3.0]), dim=3, log_visible=log_visible)
    for parameter in bias.parameters():
        parameter.data += torch.randn_like(parameter)
    return bias


@pytest.mark.parametrize("log_visible", [True, False], ids=["log m", "without"])
def test_it_is_its_formula(log_visible):
    bias = trained(log_visible)
    query, key, value = torch.randn(3, 1, 2, 5, 4, dtype=torch.float64).unbind(0)
    x = torch.randn(1, 5, 3, dtype=torch.float64)
    actual = sigmoid_attention(query, key, value, bias=bias.with_input(x), is_causal=True)
    for h in range(2):
        for i in range(5):
            b = bias.offset[h].item() + sum(bias.weight[h].double() * x[0, i]).item()
            if log_visible:
                b -= bias.slope[h].item() * math.log(i + 1)
            logits = key[0, h, : i + 1] @ query[0, h, i] / 2 + b
            expected = torch.sigmoid(logits) @ value[0, h, : i + 1]
            torch.testing.assert_close(actual[0, h, i], expected)


def test_its_parameters():
    bias = StateBias(torch.tensor([-2.0, -3.0]), dim=3)
    shapes = {name: tuple(parameter.shape) for name, parameter in bias.named_parameters()}
    assert shapes == {"offset": (2,), "slope": (2,), "weight": (2, 3)}
    assert bias.offset.tolist() == [-2.0, -3.0]
    assert not bias.slope.any() and not bias.weight.any()
    without = StateBias(torch.zeros(2), dim=3, log_visible=False)
    assert set(without.state_dict()) == {"offset", "weight"}
    assert {p.dtype for p in (*bias.bfloat16().parameters(), *without.half().parameters())} == {
        torch.float32
    }


def test_a_call_without_the_input_is_refused():
    query = torch.randn(1, 2, 5, 8)
    with pytest.raises(ValueError, match=r"^bias: StateBias needs the input of its layer"):
        sigmoid_attention(query, query, query, bias=StateBias(torch.zeros(2), dim=16))


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ((0.0, 3), TypeError, "StateBias: offset_H must be a tensor"),
        ((torch.zeros(2, 1), 3), ValueError, r"StateBias: offset_H must be floating of shape \(he"),
        ((torch.zeros(2).long(), 3), ValueError, "StateBias: offset_H must be floating"),
        ((torch.zeros(2), 0), ValueError, "StateBias: dim must be positive, got 0"),
        ((torch.zeros(2), 2.5), TypeError, "StateBias: dim must be a whole number, got 2.5"),
    ],
    ids=["number", "matrix", "integers", "no channel", "part of a channel"],
)
def test_bad_input(arguments, error, match):
    with pytest.raises(error, match=match):
        StateBias(*arguments)


def test_log_visible_must_be_a_switch():
    with pytest.raises(TypeError, match="StateBias: log_visible must be True or False, got"):
        StateBias(torch.zeros(2), 3, log_visible="no")  # pyright: ignore
