"""Packed sequences against the definition and against separate calls for each sequence."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sigmoid_attention.attention import (
    NegLogVisible,
    RowLSE,
    attention_statistics,
    sigmoid_attention,
)
from sigmoid_attention.attention import sigmoid_varlen_attention as packed_attention
from tests.support.attention.definition import Expected, define_packed, to_nearest
from tests.support.attention.packed import RAGGED, Packed, packs


def answer(positional, arguments) -> Expected:
    statistics = attention_statistics(*positional, **arguments)
    return Expected(packed_attention(*positional, **arguments), *statistics)


@given(packs(), st.sampled_from((torch.int32, torch.int64)))
def test_equals_the_definition_in_float64(packed: Packed, index):
    positional, arguments = packed.build(index=index)
    actual, expected = answer(positional, arguments), define_packed(*positional, **arguments)
    torch.testing.assert_close(actual.out, expected.out, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(actual.mass, expected.mass, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(actual.largest, expected.largest, rtol=1e-11, atol=1e-13)
    assert torch.equal(actual.visible, expected.visible)


def each_by_itself(positional, arguments) -> Tensor:
    query, key, value, ends_q, ends_k, _, max_k = positional
    parts = []
    for s in range(len(ends_q) - 1):
        own_q, own_k = slice(ends_q[s], ends_q[s + 1]), slice(ends_k[s], ends_k[s + 1])
        options = dict(arguments)
        if options.get("alibi_slopes") is not None and options["alibi_slopes"].dim() == 2:
            options["alibi_slopes"] = options["alibi_slopes"][s : s + 1]
        if isinstance(options["bias"], Tensor) and options["bias"].shape[-1] == max_k:
            rows, columns = own_q.stop - own_q.start, own_k.stop - own_k.start
            options["bias"] = options["bias"][s : s + 1, :, :rows, :columns]
        dense = [part[None].transpose(1, 2) for part in (query[own_q], key[own_k], value[own_k])]
        parts.append(sigmoid_attention(*dense, **options)[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("bias", ["-2.5", "visible", "lse", "learned", "tensor BHQK"])
def test_gradients_equal_those_of_each_sequence_by_itself(bias):
    packed = Packed(RAGGED.lengths_q, RAGGED.lengths_k, RAGGED.slack, RAGGED.call.but(bias=bias))
    positional, arguments = packed.build()
    inputs = [tensor.detach().requires_grad_() for tensor in positional[:3]]
    inputs.append(arguments["alibi_slopes"].requires_grad_())
    if isinstance(arguments["bias"], Tensor):
        inputs.append(arguments["bias"].requires_grad_())
    if bias == "learned":
        inputs.append(arguments["bias"].double().value)
    positional = (*inputs[:3], *positional[3:])
    actual = packed_attention(*positional, **arguments)
    expected = each_by_itself(positional, arguments)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
    )


@pytest.mark.parametrize("bias", ["-2.5", "lse", "visible"])
def test_derivatives_of_ragged_sequences(bias):
    packed = Packed((1, 2), (2, 1), 1, RAGGED.call.but(bias=bias, slopes=None, value_dim=1))
    (query, key, value, *ends), arguments = packed.build()

    def function(query, key, value):
        return packed_attention(query, key, value, *ends, **arguments)

    inputs = tuple(tensor.detach().requires_grad_() for tensor in (query, key, value))
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_error_stays_below_that_of_a_straightforward_computation(dtype):
    positional, arguments = RAGGED.build(dtype)
    exact = define_packed(*positional, **arguments).out
    rough = define_packed(*positional, **arguments, rounded=to_nearest(dtype)).out
    actual = packed_attention(*positional, **arguments)
    assert actual.dtype == dtype
    budget = (rough - exact).abs().max() + 2 * torch.finfo(dtype).eps * exact.abs().max()
    assert (actual.double() - exact).abs().max() <= budget


EMPTY = {
    "first-without-keys": ((2, 3), (0, 3), [0, 1]),
    "last-without-keys": ((3, 2), (3, 0), [3, 4]),
    "between-without-keys": ((1, 2, 1), (2, 0, 1), [1, 2]),
    "none-has-keys": ((2, 1), (0, 0), [0, 1, 2]),
    "one-without-queries": ((2, 0, 1), (2, 4, 1), []),
    "none-has-queries": ((0, 0), (3, 2), []),
    "nothing-at-all": ((0, 0), (0, 0), []),
}


@pytest.mark.parametrize("slack", [0, 2])
@pytest.mark.parametrize("bias", [0.0, NegLogVisible(), RowLSE()], ids=repr)
@pytest.mark.parametrize("lengths_q, lengths_k, rows", EMPTY.values(), ids=EMPTY.keys())
def test_empty_sequences(lengths_q, lengths_k, rows, bias, slack):
    packed = Packed(lengths_q, lengths_k, slack, RAGGED.call.but(is_causal=False))
    positional, arguments = packed.build()
    actual = answer(positional, arguments | {"bias": bias})
    assert actual.out.shape == (sum(lengths_q), 2, 2)
    others = [row for row in range(sum(lengths_q)) if row not in rows]
    for part in actual:
        assert not part[rows].any()
        assert part[others].all()


def test_a_sequence_cannot_touch_its_neighbours():
    """Not even with values that are not numbers, and not a neighbour without keys."""
    packed = Packed((2, 2, 2), (2, 3, 0), 1, RAGGED.call.but(bias="visible", is_causal=False))
    (query, key, value, *ends), arguments = packed.build()
    clean = packed_attention(query, key, value, *ends, **arguments)
    for poison in (math.nan, math.inf):
        spoilt_key, spoilt_value = key.clone(), value.clone()
        spoilt_key[2:5], spoilt_value[2:5] = poison, poison
        out = packed_attention(query, spoilt_key, spoilt_value, *ends, **arguments)
        assert torch.equal(out[[0, 1, 4, 5]], clean[[0, 1, 4, 5]])
        assert out[2:4].isnan().all() or out[2:4].isinf().all()
