"""`LearnedCentring`: the function that it is, its parameters, casts, copies, and bad input."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from sigmoid_attention import (
    CentredKeys,
    Constant,
    HeadValues,
    Learned,
    LearnedCentring,
    NegLogLength,
    NegLogVisible,
    RowLSE,
    sigmoid_attention,
)
from sigmoid_attention.attention import validation


class Layer(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.bias = bias

    def forward(self, query, key, value):
        return sigmoid_attention(query, key, value, bias=self.bias, is_causal=True)


def inputs():
    return torch.randn(3, 2, 3, 5, 4, dtype=torch.float64).unbind(0)


def defined(query, key, value, b, strength):
    """Causal sigmoid attention to centred keys, row by row, with heads' b and strength (H,)."""
    rows = []
    for i in range(query.shape[2]):
        seen = key[:, :, : i + 1]
        centred = seen - strength.view(-1, 1, 1) * seen.mean(2, keepdim=True)
        logits = (query[:, :, i : i + 1] * centred).sum(-1) / math.sqrt(query.shape[-1])
        weights = torch.sigmoid(logits + b.view(-1, 1))
        rows.append((weights[..., None] * value[:, :, : i + 1]).sum(2))
    return torch.stack(rows, 2)


@pytest.mark.parametrize("inner", [-2.0, NegLogLength(7), Learned(-2.5, 3)], ids=repr)
def test_it_is_its_definition(inner):
    policy = LearnedCentring(inner, num_heads=3)
    policy.strength.data = torch.tensor([0.5, 1.0, -0.3])
    b = {
        float: lambda: torch.full((3,), inner),
        NegLogLength: lambda: torch.full((3,), inner.value),
    }
    b = b.get(type(inner), lambda: inner.value)()
    query, key, value = inputs()
    actual = Layer(policy)(query, key, value)
    expected = defined(query, key, value, b.detach(), policy.strength.detach())
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


def test_strength_and_the_inner_bias_learn():
    layer = Layer(LearnedCentring(Learned(-2.0, 3), num_heads=3))
    assert {name for name, _ in layer.named_parameters()} == {"bias.strength", "bias.bias.value"}
    layer(*inputs()).square().sum().backward()
    assert all(parameter.grad.all() for parameter in layer.parameters())


def test_each_module_is_called_once_a_call():
    layer, calls = Layer(LearnedCentring(Learned(-2.0, 3), num_heads=3)), []
    for module in (layer.bias, layer.bias.bias):
        module.register_forward_hook(lambda module, *_: calls.append(type(module)))
    layer(*inputs())
    assert sorted(calls, key=str) == [Learned, LearnedCentring]


def test_a_traced_layer_computes_the_same():
    layer = Layer(LearnedCentring(Learned(-2.0, 3), num_heads=3))
    given = inputs()
    traced = torch.fx.symbolic_trace(layer)
    assert torch.equal(traced(*given), layer(*given))
    layer.bias.strength.data.fill_(0.2)
    assert torch.equal(traced(*given), layer(*given))


def test_the_strength_stays_in_fp32():
    layer = Layer(LearnedCentring(-2.0, num_heads=3)).bfloat16()
    assert layer.bias.strength.dtype == torch.float32
    layer.load_state_dict({"bias.strength": torch.ones(3, dtype=torch.bfloat16)}, assign=True)
    assert layer.bias.strength.dtype == torch.float32


def test_copies_and_saved_layers_are_equal():
    layer, buffer = Layer(LearnedCentring(Learned(-2.0, 3), num_heads=3, init=0.5)), io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    given = inputs()
    for other in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(*given), layer(*given))
        assert other.bias.strength is not layer.bias.strength


@pytest.mark.parametrize(
    "inner", [RowLSE(), CentredKeys(-2.0), LearnedCentring(-2.0, 2)], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize("outer", [CentredKeys, lambda bias: LearnedCentring(bias, 2)])
def test_a_bias_that_removes_the_common_part_is_refused(inner, outer):
    with pytest.raises(ValueError, match=rf"bias must not remove .* got {type(inner).__name__}"):
        outer(inner)


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ((math.nan, 2), ValueError, "LearnedCentring: bias must be a finite number or a bias pol"),
        (("-2", 2), TypeError, "LearnedCentring: bias must be .* got the string '-2'"),
        ((torch.zeros(2), 2), TypeError, "LearnedCentring: bias must be a finite number"),
        ((-2.0, 0), ValueError, "LearnedCentring: num_heads must be a positive whole number"),
        ((-2.0, 2.5), TypeError, "LearnedCentring: num_heads must be a positive whole number"),
        ((-2.0, 2, math.inf), ValueError, "LearnedCentring: init"),
        ((-2.0, 2, None), TypeError, "LearnedCentring: init"),
    ],
    ids=str,
)
def test_bad_input(arguments, error, match):
    with pytest.raises(error, match=match):
        LearnedCentring(*arguments)


@pytest.mark.parametrize(
    "bias, match",
    [
        (LearnedCentring(-2.0, 3), "bias: LearnedCentring has 3 heads, the layer has 2"),
        (LearnedCentring(Learned(-2.0, 3), 2), "bias: LearnedCentring: bias: Learned has 3 heads"),
        (CentredKeys(-2.0, torch.ones(2)), r"bias: CentredKeys holds .* LearnedCentring\(bias, he"),
        (CentredKeys(Constant(torch.ones(()))), "bias: CentredKeys: bias: Constant holds"),
    ],
    ids=["heads", "inner heads", "tensor", "inner tensor"],
)
def test_a_layer_refuses_what_does_not_fit(bias, match):
    with pytest.raises(ValueError, match=match):
        validation.layer_bias(bias, 2)


@pytest.mark.parametrize(
    "bias", [LearnedCentring(-2.0, 2), CentredKeys(NegLogVisible(), 0.5), HeadValues(torch.ones(2))]
)
def test_a_layer_takes_what_fits(bias):
    assert validation.layer_bias(bias, 2) is bias


def test_repr_names_bias_and_heads():
    assert repr(LearnedCentring(-2.0, 3)) == "LearnedCentring(bias=-2.0, num_heads=3)"
    assert "(bias): Learned(num_heads=2)" in repr(LearnedCentring(Learned(-2.0, 2), 2))
