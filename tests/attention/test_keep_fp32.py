"""Parameters that must stay in fp32 keep full precision when the model is cast or loaded."""

import copy

import pytest
import torch
from torch import nn

from sigmoid_attention import Learned, NegLogLength, sigmoid_attention
from sigmoid_attention.nn import Router

HEADS = 3
DIGITS = -6.9 + 0.06 * torch.linspace(-1, 1, HEADS)


def learned():
    bias = Learned(0.0, HEADS)
    bias.value.data.copy_(DIGITS)
    return bias, "value"


def router():
    layer = Router(4, HEADS, 1, balance_rate=1e-3)
    layer.correction_bias.copy_(DIGITS)
    return layer, "correction_bias"


OWNERS = pytest.mark.parametrize("make", [learned, router], ids=lambda make: make.__name__)
LESS = {
    "bfloat16()": lambda model: model.bfloat16(),
    "half()": lambda model: model.half(),
    "to(bfloat16)": lambda model: model.to(torch.bfloat16),
    "to(dtype=)": lambda model: model.to(dtype=torch.float16),
    "to(device, dtype)": lambda model: model.to("cpu", torch.bfloat16),
    "to(tensor)": lambda model: model.to(torch.zeros(1, dtype=torch.bfloat16)),
    "type()": lambda model: model.type(torch.bfloat16),
    "copied": lambda model: copy.deepcopy(model).bfloat16(),
    "twice": lambda model: copy.deepcopy(model.half()).bfloat16(),
    "there and back": lambda model: model.half().float(),
}


@OWNERS
@pytest.mark.parametrize("cast", LESS.values(), ids=LESS)
@pytest.mark.parametrize("swapped", [False, True], ids=["", "swapped"])
def test_casts_to_less_change_no_bit(make, cast, swapped):
    owner, name = make()
    torch.__future__.set_swap_module_params_on_conversion(swapped)
    try:
        model = cast(nn.Sequential(owner, nn.Linear(2, 2)))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    kept = getattr(model[0], name)
    assert kept.dtype == torch.float32 and torch.equal(kept.data, DIGITS)


@OWNERS
def test_wider_dtypes_and_other_devices_are_taken(make):
    owner, name = make()
    model = nn.Sequential(owner).double()
    assert getattr(model[0], name).dtype == torch.float64
    assert torch.equal(getattr(model.bfloat16()[0], name).data, DIGITS)
    assert getattr(model.to("meta", torch.bfloat16)[0], name).is_meta
    assert getattr(model.to_empty(device="cpu")[0], name).dtype == torch.float32


@OWNERS
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_parameters_loaded_in_half_precision_become_fp32(make, assign):
    owner, name = make()
    state = {key: value.to(torch.bfloat16) for key, value in owner.state_dict().items()}
    owner.load_state_dict(state, assign=assign)
    kept = getattr(owner, name)
    assert kept.dtype == torch.float32 and torch.equal(kept.data, DIGITS.bfloat16().float())
    assert all(value.dtype == torch.bfloat16 for value in state.values())


@OWNERS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_default_dtype_is_not_theirs(make, dtype):
    torch.set_default_dtype(dtype)
    try:
        owner, name = make()
    finally:
        torch.set_default_dtype(torch.float32)
    assert getattr(owner, name).dtype == torch.float32


def test_a_gradient_stays_with_its_parameter():
    owner, _ = learned()
    owner.value.grad = DIGITS.clone()
    owner.bfloat16()
    assert torch.equal(owner.value.grad, DIGITS) and owner.value.grad.dtype == torch.float32


def test_a_bias_learns_from_small_steps_in_a_model_of_bfloat16():
    owner, _ = learned()
    model = nn.Sequential(owner).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(100):
        owner.value.grad = torch.ones_like(owner.value)
        optimizer.step()
    torch.testing.assert_close(owner.value.data, DIGITS - 0.1)


def test_the_operator_takes_a_bias_of_fp32_beside_other_inputs():
    query = torch.randn(1, HEADS, 5, 8, dtype=torch.bfloat16)
    bias = Learned(NegLogLength(1000), HEADS).bfloat16()
    out = sigmoid_attention(query, query, query, bias=bias)
    expected = sigmoid_attention(*[query.double()] * 3, bias=NegLogLength(1000))
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-4)
    out.sum().backward()
    assert bias.value.grad.dtype == torch.float32 and bias.value.grad.abs().min() > 0
