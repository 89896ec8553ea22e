"""The error names the module that first gives a non-finite value."""

import pytest
import torch
from torch import nn

from sigmoid_attention.training.divergence import first_non_finite, non_finite_parameter


class Step(nn.Module):
    """y = f(x), where f or its derivative may be infinite."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def find(*layers, loss=torch.sum):
    model = nn.Sequential(*layers)
    x = torch.tensor([[0.0, 4.0]])
    return first_non_finite(model, lambda: loss(model(x)))


def test_a_nested_module_is_named_before_its_parents():
    inner = nn.Sequential(nn.Identity(), Step(lambda x: x / 0))
    assert find(nn.Linear(2, 2), inner, nn.Identity()) == "the output of 1.1"


def test_the_loss_itself():
    assert find(nn.Linear(2, 2), loss=lambda y: y.sum() / 0) == "the loss itself"


def test_an_infinite_derivative_shows_where_it_arrives():
    # The derivative of a square root at 0 is infinite; the gradient arrives at the layer before.
    with torch.no_grad():
        zero = nn.Linear(2, 2)
        zero.weight.zero_(), zero.bias.zero_()
    place_name = find(nn.Linear(2, 2), zero, Step(torch.sqrt))
    assert place_name == "the gradient at the output of 1"


def test_a_norm_that_overflows_names_the_largest_gradient():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    x = torch.tensor([[1e25, 1e25]])
    place_name = first_non_finite(model, lambda: model(x).sum())
    assert place_name == "the gradient of 0.weight"


def test_hooks_are_gone_afterwards():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ZeroDivisionError):
        first_non_finite(model, lambda: 1 / 0)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_parameters(value):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    assert non_finite_parameter(model) is None
    with torch.no_grad():
        model[1].bias[2] = value
    assert non_finite_parameter(model) == "1.bias"
