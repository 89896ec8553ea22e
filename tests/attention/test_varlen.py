"""Packed sequences against the definition and against each sequence by itself."""

import math
from dataclasses import dataclass
from itertools import accumulate

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
from tests.attention.calls import BIAS_SHAPES, WINDOWS, Call
from tests.attention.definition import Expected, define_packed, to_nearest


@dataclass(frozen=True)
class Packed:
    """Lengths of the sequences, how far max_q and max_k exceed the longest, and a call's rest."""

    lengths_q: tuple[int, ...]
    lengths_k: tuple[int, ...]
    slack: int
    call: Call

    @property
    def longest(self) -> tuple[int, int]:
        return max(self.lengths_q) + self.slack, max(self.lengths_k) + self.slack

    def build(self, dtype=torch.float64, index=torch.int64) -> tuple[tuple, dict]:
        """The positional arguments and the others."""
        max_q, max_k = self.longest
        tensors, arguments = self.call.but(
            batch=len(self.lengths_q), queries=max_q, keys=max_k
        ).build(dtype)
        wanted = (self.lengths_q, self.lengths_k, self.lengths_k)
        tokens = [
            torch.cat([tensor[s, :, :length] for s, length in enumerate(lengths)], 1)
            for tensor, lengths in zip(tensors, wanted, strict=True)
        ]
        ends = [
            torch.tensor([0, *accumulate(lengths)], dtype=index)
            for lengths in (self.lengths_q, self.lengths_k)
        ]
        return (*(tensor.transpose(0, 1) for tensor in tokens), *ends, max_q, max_k), arguments


@st.composite
def packs(draw) -> Packed:
    sequences = draw(st.integers(1, 4))
    length = st.integers(0, 5)
    lengths_q = draw(st.lists(length, min_size=sequences, max_size=sequences))
    lengths_k = draw(st.just(lengths_q) | st.lists(length, min_size=sequences, max_size=sequences))
    policies = ("visible", "effective", "learned", "lse")
    tensors = (f"tensor {letters}" for letters in BIAS_SHAPES)
    biases = ("-2.5", *policies, *tensors)
    call = Call(
        batch=1,
        key_heads=draw(st.integers(1, 2)),
        group=draw(st.sampled_from((1, 2))),
        queries=1,
        keys=1,
        head_dim=3,
        value_dim=2,
        bias=draw(st.sampled_from(biases)),
        slopes=draw(st.sampled_from((None, "H", "BH"))),
        is_causal=draw(st.booleans()),
        window_size=draw(st.sampled_from(WINDOWS)),
        softcap=draw(st.sampled_from((None, 0.7))),
        seed=draw(st.integers(0, 2**16)),
    )
    return Packed(tuple(lengths_q), tuple(lengths_k), draw(st.integers(0, 2)), call)


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


RAGGED = Packed(
    lengths_q=(3, 1, 5, 2),
    lengths_k=(4, 2, 3, 7),
    slack=1,
    call=Call(
        batch=1,
        key_heads=1,
        group=2,
        queries=1,
        keys=1,
        head_dim=3,
        value_dim=2,
        is_causal=True,
        slopes="BH",
        seed=4,
    ),
)


def each_by_itself(positional, arguments) -> Tensor:
    query, key, value, ends_q, ends_k, _, max_k = positional
    parts = []
    for s in range(len(ends_q) - 1):
        own_q, own_k = slice(ends_q[s], ends_q[s + 1]), slice(ends_k[s], ends_k[s + 1])
        own = dict(arguments)
        if own.get("alibi_slopes") is not None and own["alibi_slopes"].dim() == 2:
            own["alibi_slopes"] = own["alibi_slopes"][s : s + 1]
        if isinstance(own["bias"], Tensor) and own["bias"].shape[-1] == max_k:
            rows, columns = own_q.stop - own_q.start, own_k.stop - own_k.start
            own["bias"] = own["bias"][s : s + 1, :, :rows, :columns]
        dense = [part[None].transpose(1, 2) for part in (query[own_q], key[own_k], value[own_k])]
        parts.append(sigmoid_attention(*dense, **own)[0].transpose(0, 1))
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
