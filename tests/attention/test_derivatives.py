"""First and second derivatives in both modes, and finite derivatives at non-finite inputs.

A case names a call and the arguments, in addition to query, key and value, whose derivatives are
checked.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from sigmoid_attention.attention import (
    CentredKeys,
    NegLogVisible,
    RowLSE,
    attention_statistics,
    sigmoid_attention,
)
from tests.support.attention.calls import Call
from tests.support.attention.differentiable import (
    CASES,
    SQUARE,
    TALL,
    differentiable,
)

cases = pytest.mark.parametrize("call", CASES.values(), ids=CASES.keys())


@cases
def test_first_derivatives_in_both_modes_and_batched(call):
    function, inputs = differentiable(call)
    assert gradcheck(
        function,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@cases
def test_second_derivatives(call):
    function, inputs = differentiable(call)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, fast_mode=True)


def gradients(tensors, arguments) -> list[Tensor]:
    """Of the sum of squares, to query, key, value and every floating argument."""
    others = [
        argument.requires_grad_()
        for argument in arguments.values()
        if isinstance(argument, Tensor) and argument.is_floating_point()
    ]
    inputs = [*(tensor.requires_grad_() for tensor in tensors), *others]
    out = sigmoid_attention(*tensors, **arguments)
    return list(torch.autograd.grad(out.float().square().sum(), inputs, create_graph=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("bias", [-2.0, NegLogVisible(), RowLSE(), CentredKeys(-2.0)], ids=repr)
@pytest.mark.parametrize("kind", ["no-keys", "bool", "float"])
def test_derivatives_at_rows_that_see_no_key_are_zero_and_others_are_not(kind, bias, dtype):
    tensors, _ = TALL.build(dtype)
    arguments = {"bias": bias, "is_causal": True}
    if kind != "no-keys":
        hidden = torch.tensor([[True, True], [True, True], [False, True], [False, False]])
        zeros = torch.zeros(4, 2, dtype=dtype)
        arguments["is_causal"] = False
        arguments["attn_mask"] = ~hidden if kind == "bool" else zeros.masked_fill(hidden, -math.inf)
    query, *others = gradients(tensors, arguments)
    assert all(gradient.isfinite().all() for gradient in (query, *others))
    assert not query[:, :, :2].any()
    assert query[:, :, 3].any()
    again = torch.autograd.grad(query.float().square().sum(), tensors)
    assert all(gradient.isfinite().all() for gradient in again)


EXTREME = {
    "plain": SQUARE.but(is_causal=True),
    "softcap": SQUARE.but(softcap=5.0),
    "row-lse": SQUARE.but(bias="lse", is_causal=True),
    "visible": SQUARE.but(bias="visible", is_causal=True),
    "centred": SQUARE.but(bias="centred", is_causal=True),
    "centred-window": SQUARE.but(bias="centred", window_size=(1, 0)),
    "slopes": SQUARE.but(slopes="H"),
    "hiding-mask": SQUARE.but(mask="hiding QK"),
    "bias": SQUARE.but(bias="tensor BHQK"),
}


extremes = pytest.mark.parametrize("call", EXTREME.values(), ids=EXTREME.keys())
signs = pytest.mark.parametrize("sign", [1, -1], ids=["plus", "minus"])


def saturated(call: Call, sign: int, dtype: torch.dtype):
    """The call with every logit at ten thousand, above or below zero."""
    (query, key, value), arguments = call.but(scale=1.0).build(dtype)
    query, key = torch.full_like(query, 100.0), torch.full_like(key, sign * 50.0)
    assert torch.equal(query @ key.mT, torch.full_like(query @ key.mT, sign * 1e4))
    return (query, key, value), arguments


@signs
@extremes
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_answer_and_gradients_are_finite_at_logits_of_ten_thousand(call, dtype, sign):
    tensors, arguments = saturated(call, sign, dtype)
    assert sigmoid_attention(*tensors, **arguments).isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(tensors, arguments))


@signs
@extremes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_second_derivatives_are_finite_at_logits_of_ten_thousand(call, dtype, sign):
    """Not in fp16, where some of them are finite and above 65504."""
    tensors, arguments = saturated(call, sign, dtype)
    total = sum(gradient.float().square().sum() for gradient in gradients(tensors, arguments))
    second = torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in second)


@pytest.mark.parametrize("infinite", ["minus", "plus"])
def test_a_bias_of_infinity_closes_or_opens_the_gate(infinite):
    (query, key, value), _ = SQUARE.build()
    bias = torch.full((2, 1, 1), math.inf if infinite == "plus" else -math.inf, dtype=query.dtype)
    out = sigmoid_attention(query, key, value, bias=bias)
    expected = value.sum(2, keepdim=True).expand_as(out) if infinite == "plus" else out * 0
    torch.testing.assert_close(out, expected)
    assert all(g.isfinite().all() for g in gradients((query, key, value), {"bias": bias}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_gradients_err_no_more_than_those_of_a_straightforward_computation(dtype):
    call = Call(batch=2, key_heads=2, group=1, queries=13, keys=17, head_dim=7, value_dim=5)
    tensors, arguments = call.but(bias="tensor BHQK", mask="float QK", slopes="H").build(dtype)
    slopes, bias, mask = (arguments[name] for name in ("alibi_slopes", "bias", "attn_mask"))
    inputs = [tensor.requires_grad_() for tensor in (*tensors, bias, mask, slopes)]
    distance = (torch.arange(13)[:, None] + 17 - 13 - torch.arange(17)).abs()

    def plain(query, key, value, bias, mask, slopes) -> Tensor:
        logits = query @ key.mT * 7**-0.5 + bias + mask
        return torch.sigmoid(logits - slopes[:, None, None] * distance) @ value

    def operator(query, key, value, bias, mask, slopes) -> Tensor:
        settings = {"bias": bias, "alibi_slopes": slopes, "impl": "reference"}
        return sigmoid_attention(query, key, value, mask, **settings)

    def differentiated(function, inputs) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*inputs).sum(), inputs)

    exact = differentiated(plain, [tensor.detach().double().requires_grad_() for tensor in inputs])
    straightforward = differentiated(plain, inputs)
    for name, gradient, rough, truth in zip(
        ("query", "key", "value", "bias", "mask", "slopes"),
        differentiated(operator, inputs),
        straightforward,
        exact,
        strict=True,
    ):
        assert gradient.dtype == dtype
        budget = (rough - truth).abs().max() + 2 * torch.finfo(dtype).eps * truth.abs().max()
        assert (gradient - truth).abs().max() <= budget, name


@pytest.mark.parametrize("statistic", ["mass", "largest"])
def test_the_statistics_are_differentiable(statistic):
    (query, key, value), _ = TALL.build()

    def function(query, key):
        statistics = attention_statistics(query, key, value, bias=-1.0, is_causal=True)
        return getattr(statistics, statistic)

    assert gradcheck(function, (query.requires_grad_(), key.requires_grad_()))
