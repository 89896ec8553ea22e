"""Bias policies: their values, the required n, and equal outputs for the same text given whole,
in chunks, from a cache, padded or packed.
"""

import math
import re
from collections.abc import Iterator
from itertools import pairwise, product
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sigmoid_attention.attention import (
    BiasPolicy,
    Constant,
    HeadValues,
    Learned,
    NegLogEffectiveLength,
    NegLogLength,
    NegLogVisible,
    RowLSE,
    attention_statistics,
    sigmoid_attention,
    sigmoid_decode,
    sigmoid_varlen_attention,
)
from tests.support.attention.calls import WINDOWS

N, HEADS = 11, 3


@pytest.fixture
def text() -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of N tokens, (2, 3, 11, 5), in float64."""
    chance = torch.Generator().manual_seed(2)
    return torch.randn(3, 2, HEADS, N, 5, generator=chance, dtype=torch.float64).unbind(0)


def mass_of_neutral_keys(bias, keys: int = 6, queries: int = 6, **arguments) -> Tensor:
    """Row masses where every logit is the bias alone, (HEADS, queries)."""
    query = torch.zeros(1, HEADS, queries, 2, dtype=torch.float64)
    key = torch.ones(1, HEADS, keys, 2, dtype=torch.float64)
    return attention_statistics(query, key, key, bias=bias, **arguments).mass[0]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_constant_and_plain_numbers_are_the_same():
    expected = torch.full((HEADS, 6), 6 * sigmoid(-1.5), dtype=torch.float64)
    torch.testing.assert_close(mass_of_neutral_keys(Constant(-1.5)), expected)
    torch.testing.assert_close(mass_of_neutral_keys(-1.5), expected)
    torch.testing.assert_close(mass_of_neutral_keys(Constant(-1)), mass_of_neutral_keys(-1))


@pytest.mark.parametrize("n", [1, 6, 1000, 2**40])
@pytest.mark.parametrize("offset", [0.0, -2.0])
def test_minus_log_of_the_training_length(n, offset):
    assert NegLogLength(n, offset).value == pytest.approx(offset - math.log(n))
    # sigmoid(offset - log n) = 1 / (1 + n e^-offset): a row of n neutral keys sums to about one
    expected = torch.full((HEADS, 6), 6 / (1 + n * math.exp(-offset)), dtype=torch.float64)
    torch.testing.assert_close(mass_of_neutral_keys(NegLogLength(n, offset)), expected)


def test_no_bias_is_minus_log_of_the_keys_where_that_is_no_guess():
    for arguments in ({}, {"is_causal": True}, {"window_size": (2, 1)}):
        torch.testing.assert_close(
            mass_of_neutral_keys(None, **arguments),
            mass_of_neutral_keys(NegLogLength(6), **arguments),
        )


@pytest.mark.parametrize("at_least", [1, 4])
def test_minus_log_of_the_keys_in_sight(at_least):
    mass = mass_of_neutral_keys(NegLogVisible(at_least), is_causal=True)
    seen = torch.arange(1, 7, dtype=torch.float64)
    torch.testing.assert_close(mass, (seen / (1 + seen.clamp(min=at_least))).expand(HEADS, 6))


def test_minus_log_of_the_keys_in_sight_counts_windows_and_masks():
    mask = torch.tensor([True, False, True, True, True, True])
    mass = mass_of_neutral_keys(
        NegLogVisible(), is_causal=True, window_size=(2, -1), attn_mask=mask
    )
    seen = torch.tensor([1, 1, 2, 2, 3, 3], dtype=torch.float64)
    torch.testing.assert_close(mass, (seen / (1 + seen)).expand(HEADS, 6))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("is_causal", [False, True], ids=["both-sides", "causal"])
def test_visible_keys_are_counted_for_all_lengths(window, is_causal):
    left, right = (window[0], 0) if is_causal else window
    for queries, keys in product((1, 4, 6), (0, 1, 3, 6)):
        arguments = {"is_causal": is_causal, "window_size": window}
        mass = mass_of_neutral_keys(NegLogVisible(), keys, queries, **arguments)
        ahead = [[j - (i + keys - queries) for j in range(keys)] for i in range(queries)]
        seen = [
            sum((left < 0 or -by <= left) and (right < 0 or by <= right) for by in row)
            for row in ahead
        ]
        torch.testing.assert_close(mass[0].tolist(), [count / (1 + count) for count in seen])


def test_minus_log_of_the_effective_length():
    slopes, n = (1.5, 0.25, 0.0), 7
    policy = NegLogEffectiveLength(slopes, n, offset=0.5)
    lengths = [sum(math.exp(-slope * t) for t in range(n)) for slope in slopes]
    assert policy.values == pytest.approx([0.5 - math.log(length) for length in lengths])
    expected = [6 * sigmoid(value) for value in policy.values]
    torch.testing.assert_close(mass_of_neutral_keys(policy)[:, 0].tolist(), expected)


def test_the_effective_length_of_slopes_near_zero_is_the_length():
    tiny = NegLogEffectiveLength((1e-18, 1e-9, 0.0), 4096)
    assert tiny.values == pytest.approx([-math.log(4096)] * 3, rel=1e-6)


def test_the_effective_length_takes_slopes_as_a_tensor():
    slopes = torch.tensor([0.5, 0.25])
    assert NegLogEffectiveLength(slopes, 8) == NegLogEffectiveLength((0.5, 0.25), 8)


def test_the_effective_length_is_copied_to_its_device_once(text):
    """While a graph is captured nothing may be copied, not even for a policy that is made anew."""

    def attended():
        bias = NegLogEffectiveLength((0.5, 0.25, 0.125), 12)
        return sigmoid_attention(*text, bias=bias, impl="reference")

    expected = attended()
    with mock.patch.object(torch, "tensor", None):
        assert torch.equal(attended(), expected)


def test_a_traced_effective_length_is_not_cached(text):
    bias = NegLogEffectiveLength((0.5, 0.25, 0.0625), 13)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert sigmoid_attention(*text, bias=bias).shape == text[0].shape
    assert torch.isfinite(sigmoid_attention(*text, bias=bias)).all()


def test_row_lse_turns_a_softmax_weight_into_p_over_one_plus_p(text):
    query, key, value = text
    for hidden in (torch.zeros(N, N, dtype=torch.bool), torch.ones(N, N).triu(1).bool()):
        logits = query @ key.mT / 5**0.5
        p = torch.softmax(logits.masked_fill(hidden, -math.inf), -1)
        out = sigmoid_attention(query, key, value, ~hidden, bias=RowLSE())
        torch.testing.assert_close(out, p / (1 + p) @ value)


POLICIES: list[BiasPolicy] = [
    Constant(-1.0),
    NegLogLength(16, offset=0.5),
    NegLogVisible(at_least=2),
    NegLogEffectiveLength((0.5, 0.25, 0.0), 16),
    Learned(NegLogLength(16), num_heads=HEADS),
    HeadValues(torch.linspace(-2, -1, HEADS)),
]
each_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)


@pytest.mark.parametrize("policy", [*POLICIES[:4], RowLSE()], ids=lambda p: type(p).__name__)
def test_policies_that_are_not_trained_are_values(policy):
    with pytest.raises(AttributeError):
        policy.b = 1.0
    assert hash(policy) == hash(policy)
    assert policy in {policy}


# ------------------------------------------------------------------------------------- learned


@pytest.mark.parametrize(
    "init, start",
    [
        (-3.0, [-3.0] * 3),
        (2, [2.0] * 3),
        (Constant(-1.0), [-1.0] * 3),
        (NegLogLength(8, offset=1.0), [1 - math.log(8)] * 3),
        (NegLogEffectiveLength((0.0, 0.0, 100.0), 4), [-math.log(4), -math.log(4), 0.0]),
    ],
    ids=["float", "int", "Constant", "NegLogLength", "NegLogEffectiveLength"],
)
def test_learned_starts_at_its_initial_value(init, start):
    policy = Learned(init, num_heads=3)
    torch.testing.assert_close(policy.value.tolist(), start, rtol=1e-6, atol=1e-6)
    assert isinstance(policy.value, torch.nn.Parameter)


def test_learned_is_trained_by_a_step(text):
    policy = Learned(NegLogLength(N), num_heads=HEADS)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    before = policy.value.detach().clone()

    def loss() -> Tensor:
        return (sigmoid_attention(*text, bias=policy, is_causal=True) - text[2]).square().mean()

    first = loss()
    first.backward()
    assert policy.value.grad.abs().min() > 0
    optimizer.step()
    assert (policy.value != before).all()
    assert loss() < first


def test_learned_is_saved_with_its_module(text):
    policy, other = Learned(-1.0, num_heads=HEADS), Learned(-2.0, num_heads=HEADS)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.value, policy.value)
    assert "num_heads=3" in repr(policy)


def test_values_kept_elsewhere_get_their_gradient(text):
    values = torch.linspace(-2, -1, HEADS, requires_grad=True)
    learned = Learned(0.0, num_heads=HEADS)
    learned.value.data.copy_(values.detach())
    for bias in (HeadValues(values), learned):
        sigmoid_attention(*text, bias=bias).square().sum().backward()
    torch.testing.assert_close(values.grad, learned.value.grad)


# ------------------------------------------------------------------ the operator refuses to guess

REFUSED = {
    "fewer-queries-Q1-K11": (slice(10, None), None),
    "more-queries-Q11-K10": (slice(None), None),
    "bool-mask": (slice(None), torch.ones(N, N, dtype=torch.bool)),
    "float-mask": (slice(None), torch.zeros(N, N)),
    "mask-that-broadcasts": (slice(None), torch.ones(2, 1, 1, N, dtype=torch.bool)),
}


@pytest.mark.parametrize("queries, mask", REFUSED.values(), ids=REFUSED.keys())
def test_the_operator_refuses_to_guess_n(text, queries, mask):
    query, key, value = text
    if mask is None and queries == slice(None):
        key, value = key[:, :, 1:], value[:, :, 1:]
    sentence = r"bias: None .* give the training length, e\.g\. bias=NegLogLength"
    with pytest.raises(ValueError, match=sentence) as refusal:
        sigmoid_attention(query[:, :, queries], key, value, mask, is_causal=True)
    shown = f"{query[:, :, queries].shape[2]} queries, {key.shape[2]} keys"
    assert shown in str(refusal.value)


def test_decoding_refuses_to_guess_n(text):
    query, key, value = text
    for used in (N, 4):
        seqused_k = torch.tensor([N, used])
        with pytest.raises(ValueError, match=r"bias:? .* give that length, e\.g\. .*NegLogLength"):
            sigmoid_decode(query[:, :, -1:], key, value, seqused_k=seqused_k, is_causal=True)


def test_packed_sequences_refuse_to_guess_n(text):
    packed = [tensor[0].transpose(0, 1) for tensor in text]
    for ends in ([0, N], [0, 4, N]):
        cu = torch.tensor(ends)
        with pytest.raises(
            ValueError, match=r"bias:? .* the training length, e\.g\. .*NegLogLengt"
        ):
            sigmoid_varlen_attention(*packed, cu, cu, N, N)


@pytest.mark.parametrize("size", [N, 1])
def test_a_vector_of_other_than_the_heads_is_refused(text, size):
    sentence = f"bias: a vector must have a number for each head, (3,), got ({size},)"
    vector = torch.zeros(size, dtype=torch.float64)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        sigmoid_attention(*text, bias=vector)


def per_head(text, bias: Tensor | BiasPolicy, impl: str) -> Iterator[Tensor]:
    """Answers of all three functions with a bias for each head."""
    query, key, value = text
    yield sigmoid_attention(query, key, value, bias=bias, impl=impl)
    ends, rows = torch.tensor([0, N]), [tensor[0].transpose(0, 1) for tensor in text]
    yield sigmoid_varlen_attention(*rows, ends, ends, 2 * N, 2 * N, bias=bias, impl=impl)
    used = torch.tensor([N, 4])
    yield sigmoid_decode(query, key, value, seqused_k=used, bias=bias, is_causal=True, impl=impl)


@pytest.mark.parametrize("wrap", [lambda bias: bias, Constant], ids=["tensor", "constant"])
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_vector_is_a_bias_per_head(text, wrap, impl, dtype):
    text = tuple(tensor.to(dtype) for tensor in text)
    vector = torch.tensor([-1.0, -2.5, 0.5], dtype=dtype)
    shaped = vector.view(HEADS, 1, 1)
    for _ in range(3):  # prepared calls as well
        for out, expected in zip(
            per_head(text, wrap(vector), impl), per_head(text, shaped, impl), strict=True
        ):
            assert torch.equal(out, expected)


def test_a_vector_of_biases_gets_its_gradient(text):
    vector = torch.tensor([-1.0, -2.5, 0.5], dtype=torch.float64, requires_grad=True)
    shaped = vector.detach().view(HEADS, 1, 1).requires_grad_()
    for out, expected in zip(
        per_head(text, vector, "auto"), per_head(text, shaped, "auto"), strict=True
    ):
        (gradient,) = torch.autograd.grad(out.square().sum(), vector)
        (right,) = torch.autograd.grad(expected.square().sum(), shaped)
        torch.testing.assert_close(gradient, right.view(HEADS))


# ----------------------------------------------------------------- one answer on every way there


def whole(text, policy, **arguments) -> Tensor:
    return sigmoid_attention(*text, bias=policy, is_causal=True, **arguments)


@each_policy
def test_a_cached_decode_continues_the_same_answer(text, policy):
    query, key, value = text
    expected = whole(text, policy)
    for step in range(N):
        used = torch.full((2,), step + 1)
        out = sigmoid_decode(
            query[:, :, step : step + 1], key, value, seqused_k=used, bias=policy, is_causal=True
        )
        torch.testing.assert_close(out, expected[:, :, step : step + 1])


@each_policy
@given(cuts=st.sets(st.integers(1, N - 1), max_size=4))
def test_chunks_give_the_same_answer(policy, cuts):
    chance = torch.Generator().manual_seed(2)
    text = torch.randn(3, 2, HEADS, N, 5, generator=chance, dtype=torch.float64).unbind(0)
    query, key, value = text
    ends = [0, *sorted(cuts), N]
    slopes = torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64)
    arguments = {"alibi_slopes": slopes, "window_size": (6, -1)}
    chunks = [
        sigmoid_attention(
            query[:, :, start:end],
            key[:, :, :end],
            value[:, :, :end],
            bias=policy,
            is_causal=True,
            **arguments,
        )
        for start, end in pairwise(ends)
    ]
    torch.testing.assert_close(torch.cat(chunks, 2), whole(text, policy, **arguments))


@each_policy
@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_gives_the_same_answer(text, policy, padding):
    before, after = (4, 0) if padding == "left" else (0, 4)
    padded = [torch.nn.functional.pad(tensor, (0, 0, before, after), value=9.0) for tensor in text]
    real = torch.nn.functional.pad(torch.ones(N), (before, after)).bool()
    out = sigmoid_attention(*padded, real[None, None, None], bias=policy, is_causal=True)
    torch.testing.assert_close(out[:, :, before : before + N], whole(text, policy))


@each_policy
def test_packing_gives_the_same_answer(text, policy):
    packed = [tensor.transpose(1, 2).flatten(0, 1) for tensor in text]
    ends = torch.tensor([0, N, 2 * N])
    out = sigmoid_varlen_attention(*packed, ends, ends, N, N, bias=policy, is_causal=True)
    torch.testing.assert_close(out.unflatten(0, (2, N)).transpose(1, 2), whole(text, policy))
