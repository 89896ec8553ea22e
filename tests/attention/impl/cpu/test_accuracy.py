"""The error budgets of the fused operator against float64, output and gradients, in relative L2.

fp32: at most 1.5 times the error of a plain computation in fp32. bf16 and fp16: at most 1.15 times
the least error of a matrix product in the dtype (budgets.py).
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from sigmoid_attention.attention import sigmoid_attention
from tests.support.cpu.budgets import (
    Inputs,
    Named,
    drawn,
    eager,
    error,
    floor,
    normal,
    one_by_one,
)

pytestmark = pytest.mark.usefixtures("kernel")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXCESS = {torch.float32: 1.5, torch.bfloat16: 1.15, torch.float16: 1.15}
# Below this torch's products sum their terms in another order, by which they err up to three times
# less than those of longer sequences do.
SMALL = 64

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def fused(inputs: Inputs) -> Named:
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in inputs.leaves().items()}
    out = sigmoid_attention(
        leaves["query"],
        leaves["key"],
        leaves["value"],
        leaves.get("mask"),
        bias=leaves.get("bias", inputs.constant),
        alibi_slopes=leaves.get("slopes"),
        is_causal=inputs.is_causal,
        enable_gqa=True,
        impl="cpu",
    )
    grads = torch.autograd.grad(out, list(leaves.values()), inputs.grad_out)
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def plainly(inputs: Inputs) -> Named:
    if inputs.query.dtype != torch.float32:
        return floor(inputs)
    return (one_by_one if inputs.query.shape[2] < SMALL else eager)(inputs)


def assert_in_budget(actual: Named, plain: Named, exact: Named, dtype: torch.dtype) -> None:
    for name, truth in exact.items():
        excess, allowed = error(actual[name], truth), EXCESS[dtype] * error(plain[name], truth)
        assert excess <= allowed, f"{name}: errs by {excess:.3g}, {allowed:.3g} is allowed"


def check(inputs: Inputs, dtype: torch.dtype) -> None:
    inputs = inputs.to(dtype)
    assert_in_budget(fused(inputs), plainly(inputs), eager(inputs.to(torch.float64)), dtype)


def cases(lengths, spreads, constants):
    named = {
        f"N{length}-spread{spread}-b{constant}-{'causal' if is_causal else 'full'}": case
        for case in itertools.product(lengths, spreads, constants, (False, True))
        for length, spread, constant, is_causal in [case]
    }
    names = ("length", "spread", "constant", "is_causal")
    parametrize = pytest.mark.parametrize(names, named.values(), ids=named.keys())
    return lambda test: pytest.mark.product(parametrize(test))


@each_dtype
@cases((1, 2, 7, 33), (1, 3, 8), (-12, -7, -2, 0, 4))
def test_short_sequences(length, spread, constant, is_causal, dtype):
    batch = max(256 // length, 16)
    check(drawn(length, batch=batch, spread=spread, constant=constant, is_causal=is_causal), dtype)


@each_dtype
@cases((64, 200, 513), (1, 8), (-12, -7, 0, 4))
def test_sequences(length, spread, constant, is_causal, dtype):
    check(drawn(length, spread=spread, constant=constant, is_causal=is_causal), dtype)


@each_dtype
@cases((1024,), (1, 8), (-7,))
def test_long_sequences(length, spread, constant, is_causal, dtype):
    check(drawn(length, spread=spread, constant=constant, is_causal=is_causal), dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "is_causal"),
    [(torch.float32, False), (torch.bfloat16, True), (torch.float16, False)],
    ids=["float32-full", "bfloat16-causal", "float16-full"],
)
def test_four_thousand_keys(dtype, is_causal):
    check(drawn(4096, constant=-8, is_causal=is_causal), dtype)


@pytest.mark.slow
@pytest.mark.one_path
@each_dtype
@pytest.mark.parametrize("constant", [-10, 0], ids="b{}".format)
def test_sixteen_thousand_keys_on_sampled_rows_and_keys(constant, dtype):
    """No key knows of another, so a sample's gradients are those that it has among all."""
    whole = drawn(16384, constant=constant).to(dtype)
    actual = fused(whole)
    some = torch.arange(0, 16384, 255)
    query, key, value, grad_out = whole.query, whole.key, whole.value, whole.grad_out
    rows = replace(whole, query=query[:, :, some], grad_out=grad_out[:, :, some])
    keys = replace(whole, key=key[:, :, some], value=value[:, :, some])
    for part, names in ((rows, ("out", "query")), (keys, ("key", "value"))):
        plain, exact = plainly(part), eager(part.to(torch.float64))
        assert_in_budget(
            {name: actual[name][:, :, some] for name in names},
            plain,
            {name: exact[name] for name in names},
            dtype,
        )


HEADS = 8
# A negative size is the sequence's.
TERMS = {
    "per-head": {"bias": (HEADS, 1, 1), "slopes": (HEADS,), "mask": (HEADS, 1, 1)},
    "per-row": {"bias": (HEADS, -1, 1), "mask": (-1, 1)},
    "per-key": {"bias": (1, 1, 1, -1), "mask": (-1,), "slopes": (HEADS,)},
    "per-pair": {"bias": (-1, -1), "mask": (HEADS, -1, -1)},
}


def with_terms(inputs: Inputs, kind: str, seed: int) -> Inputs:
    terms = {}
    for name, sizes in TERMS[kind].items():
        whole = (inputs.query.shape[2] if size < 0 else size for size in sizes)
        term = normal(*whole, seed=seed + len(name))
        terms[name] = term.abs() / 8 if name == "slopes" else term - 2
    return replace(inputs, terms=terms)


@each_dtype
@pytest.mark.parametrize(("length", "draws"), [(50, 16), (200, 8)], ids=["N50", "N200"])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("kind", TERMS)
def test_what_is_added_to_the_logits(kind, is_causal, length, draws, dtype):
    """Over several draws, since a gradient of eight numbers may be lucky."""
    triples: list[tuple[Named, Named, Named]] = []
    for draw in range(draws):
        inputs = drawn(length, heads=HEADS, head_dim=32, is_causal=is_causal, seed=10 * draw)
        inputs = with_terms(inputs, kind, draw).to(dtype)
        triples.append((fused(inputs), plainly(inputs), eager(inputs.to(torch.float64))))
    actual, plain, exact = (
        {name: torch.cat([result[name].flatten() for result in results]) for name in results[0]}
        for results in zip(*triples, strict=True)
    )
    assert_in_budget(actual, plain, exact, dtype)


@each_dtype
def test_the_sigmoid_and_its_slope_in_relative_terms(dtype):
    """One neutral key and a value of one: the output is the sigmoid of the bias, and a bias in fp32
    gets the slope without a rounding to the dtype."""
    bias = torch.linspace(-79, 30, 30001).view(-1, 1).requires_grad_()
    zeros, ones = torch.zeros(1, 1, 30001, 1, dtype=dtype), torch.ones(1, 1, 1, 1, dtype=dtype)
    out = sigmoid_attention(zeros, ones, ones, bias=bias, impl="cpu")
    (slope,) = torch.autograd.grad(out, bias, torch.ones_like(out))
    logit = bias.detach().double().flatten()
    weight = logit.sigmoid()
    # A product of bfloat16 forgives a coarse weight; a logit is a number of fp32 in any case.
    within = 2e-4 if dtype == torch.bfloat16 else 6 * 2.0**-24
    within = within + logit.abs() * 2.0**-24
    exact = weight * (-logit).sigmoid()
    assert ((slope.flatten() - exact).abs() <= within * exact).all()
    if dtype == torch.float32:
        assert ((out.detach().flatten() - weight).abs() <= within * weight).all()


@each_dtype
def test_shared_keys(dtype):
    inputs = drawn(300, heads=8, spread=2, constant=-5)
    check(replace(inputs, key=inputs.key[:, ::4], value=inputs.value[:, ::4]), dtype)


@each_dtype
def test_weights_near_the_inverse_of_a_million_keep_their_digits(dtype):
    """From 0.5 (1 + tanh) they would have lost them all in fp32: all values are positive."""
    inputs = drawn(500, spread=0.5, constant=-20 * math.log(2))
    check(replace(inputs, value=inputs.value.abs()), dtype)
