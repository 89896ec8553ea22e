"""The arguments of an implementation for packed, cached and paged calls, and the cost of queries.

``sequence_by_sequence`` is an independent implementation, written from the docstrings of
``Sequences`` and ``Problem`` alone: it finds every token by start, length and page.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sigmoid_attention.attention import (
    Constant,
    NegLogLength,
    NegLogVisible,
    attention_statistics,
    dispatch,
    sigmoid_attention,
    sigmoid_decode,
    sigmoid_varlen_attention,
    torch_state,
)
from sigmoid_attention.attention.dispatch import Backend
from sigmoid_attention.attention.impl import reference, reference_blocks
from sigmoid_attention.attention.impl.reference import AttentionStatistics
from sigmoid_attention.attention.inspection import _problem
from sigmoid_attention.attention.masking import in_window, offsets, query_positions
from sigmoid_attention.attention.problem import Problem
from tests.support.attention import cached, packed
from tests.support.attention.cached import Cached, caches
from tests.support.attention.packed import Packed, packs


def keys_of(cache: Tensor, problem: Problem, s: int) -> Tensor:
    """(1, G, length, D) of sequence s."""
    sequences = problem.sequences
    start, length = int(sequences.start_k_B[s]), int(sequences.length_k_B[s])
    if sequences.block_table_BM is None:
        row = 0 if cache.shape[0] == 1 else s
        return cache[row : row + 1, :, start : start + length]
    page_size = cache.shape[2]
    places = [
        (int(sequences.block_table_BM[s, t // page_size]), t % page_size) for t in range(length)
    ]
    tokens = [cache[page, :, place] for page, place in places]
    return torch.stack(tokens, 1)[None] if tokens else cache[:1, :, :0]


def no_refusal(problem: Problem) -> None:
    pass


def sequence_by_sequence(problem: Problem) -> Tensor:
    parts = [
        reference.output(weights, value, 0.0, value.dtype)
        for weights, _, value in weights_by_sequence(problem)
    ]
    return torch.cat(parts, joint(problem))


def statistics_by_sequence(problem: Problem) -> AttentionStatistics:
    parts = [
        reference.row_statistics(weights, visible)
        for weights, visible, _ in weights_by_sequence(problem)
    ]
    rows = zip(*parts, strict=True)
    return AttentionStatistics(*(torch.cat(numbers, joint(problem)) for numbers in rows))


def joint(problem: Problem) -> int:
    """The dimension along which sequences follow one another."""
    return 2 if problem.query.shape[0] == 1 else 0


def weights_by_sequence(problem: Problem) -> list[tuple[Tensor, Tensor | None, Tensor]]:
    """Weights, visible keys and values of each sequence."""
    sequences = problem.sequences
    bias = problem.bias
    parts = []
    for s in range(sequences.count):
        start, length = int(sequences.start_q_B[s]), int(sequences.length_q_B[s])
        row = 0 if problem.query.shape[0] == 1 else s
        query = problem.query[row : row + 1, :, start : start + length]
        key, value = (keys_of(cache, problem, s) for cache in (problem.key, problem.value))
        offset_QK = offsets(query_positions(length, key.shape[2], query.device), key.shape[2])
        slopes = problem.alibi_slopes
        visible = in_window(offset_QK, problem.window)
        parts.append(
            (
                reference.attention_weights(
                    query,
                    key,
                    scale=problem.scale,
                    softcap=problem.softcap,
                    bias=bias.broadcast_to(problem.shape)[s : s + 1, :, :length, : key.shape[2]]
                    if isinstance(bias, Tensor)
                    else bias,
                    float_mask=None,
                    alibi_slopes=slopes
                    if slopes is None or slopes.dim() == 1
                    else slopes[s : s + 1],
                    offset_QK=offset_QK,
                    visible=visible,
                ),
                visible,
                value,
            )
        )
    return parts


@pytest.fixture
def seen(monkeypatch) -> list[Problem]:
    """The problems that impl="listening" was handed; it answers as the definition does."""
    problems = []

    def listening(problem: Problem) -> Tensor:
        problems.append(problem)
        return reference_blocks.attend(problem)

    monkeypatch.setitem(dispatch.BACKENDS, "listening", Backend(listening, no_refusal))
    return problems


@pytest.fixture(scope="module", autouse=True)
def another_implementation():
    with pytest.MonkeyPatch.context() as patch:
        backend = Backend(sequence_by_sequence, no_refusal)
        patch.setitem(dispatch.BACKENDS, "by sequence", backend)
        yield


def assert_same(function, positional, arguments) -> None:
    expected = function(*positional, **arguments)
    out = function(*positional, **arguments, impl="by sequence")
    torch.testing.assert_close(out, expected)
    rows = attention_statistics(*positional, **arguments)
    problem = _problem(*positional, **arguments)
    by_sequence = statistics_by_sequence(problem)
    if problem.sequences.packed:
        by_sequence = (numbers[0].T for numbers in by_sequence)
    torch.testing.assert_close(tuple(by_sequence), tuple(rows))


indices = st.sampled_from((torch.int32, torch.int64))


@given(packs(), indices)
def test_packed_tokens_are_where_the_problem_says(packed: Packed, index):
    assert_same(sigmoid_varlen_attention, *packed.build(index=index))


@given(caches(), indices)
def test_cached_tokens_are_where_the_problem_says(cached: Cached, index):
    assert_same(sigmoid_decode, *cached.build(index=index))


CALLS = {
    "packed": (sigmoid_varlen_attention, packed.RAGGED),
    "packed-alone": (sigmoid_varlen_attention, Packed((3,), (4,), 2, packed.RAGGED.call)),
    "cached": (sigmoid_decode, cached.RAGGED),
    "cached-alone": (sigmoid_decode, Cached((5,), 0, cached.GROUPED)),
    "paged": (sigmoid_decode, cached.PAGED),
}
each_call = pytest.mark.parametrize("function, call", CALLS.values(), ids=CALLS.keys())


@each_call
def test_nothing_is_copied_for_an_implementation(function, call, seen):
    positional, arguments = call.build()
    function(*positional, **arguments, impl="listening")
    (problem,) = seen
    for given_, handed in zip(
        positional[:3], (problem.query, problem.key, problem.value), strict=True
    ):
        assert handed.dim() == 4
        assert handed.data_ptr() == given_.data_ptr()
        assert handed.untyped_storage().data_ptr() == given_.untyped_storage().data_ptr()


def scattered(argument):
    """Indices with gaps between them, a table with its columns one behind the other."""
    if not isinstance(argument, Tensor) or argument.is_floating_point():
        return argument
    if argument.dim() == 2:
        return argument.mT.contiguous().mT
    return torch.stack([argument, argument + 1], -1)[:, 0]


@each_call
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_indices_are_contiguous_int64_for_all_inputs(function, call, index, seen):
    positional, arguments = call.build(index=index)
    positional = [scattered(argument) for argument in positional]
    arguments = {name: scattered(argument) for name, argument in arguments.items()}
    function(*positional, **arguments, impl="listening")
    sequences = seen[0].sequences
    indices = [sequences.start_q_B, sequences.length_q_B, sequences.start_k_B, sequences.length_k_B]
    if "block_table" in arguments:
        indices.append(sequences.block_table_BM)
    for tensor in indices:
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()


@each_call
def test_padding_is_undone(function, call, seen):
    positional, arguments = call.build()
    function(*positional, **arguments, impl="listening")
    (problem,) = seen
    dense = problem.padded()
    batch, heads, queries, keys = problem.shape
    assert dense.shape == problem.shape
    assert dense.query.shape[:3] == (batch, heads, queries)
    assert dense.key.shape[::2] == dense.value.shape[::2] == (batch, keys)
    assert torch.equal(problem.unpadded(dense.query), problem.query)
    assert torch.equal(problem.unpadded(dense.query[..., 0]), problem.query[..., 0])
    for s, length in enumerate(problem.sequences.length_k_B.tolist()):
        assert torch.equal(dense.key[s : s + 1, :, :length], keys_of(problem.key, problem, s))
        assert not dense.key[s, :, length:].any()
        assert not dense.value[s, :, length:].any()


@each_call
def test_a_padded_problem_asks_the_same(function, call, seen):
    positional, arguments = call.build()
    function(*positional, **arguments, impl="listening")
    (problem,) = seen
    expected = reference_blocks.attend(problem)
    answer = reference_blocks.attend(problem.padded())
    assert torch.equal(problem.unpadded(answer), expected)


def test_a_dense_problem_is_padded_already(seen):
    query = torch.randn(1, 2, 3, 4)
    sigmoid_attention(query, query, query, impl="listening")
    assert seen[0].sequences is None
    assert seen[0].padded() is seen[0]
    assert seen[0].unpadded(query) is query


@each_call
def test_counting_visible_keys_pads_nothing(function, call, seen, monkeypatch):
    positional, arguments = call.build()
    function(*positional, **arguments | {"bias": NegLogVisible()}, impl="listening")
    (problem,) = seen
    batch, _, queries, _ = problem.shape
    assert problem.bias.shape == (batch, 1, queries, 1)

    def refuse(self):
        raise AssertionError("padded")

    monkeypatch.setattr(Problem, "padded", refuse)
    function(*positional, **arguments | {"bias": NegLogVisible()}, impl="by sequence")


def test_the_table_says_0_where_no_token_is(seen):
    (query, key, value), arguments = cached.PAGED.build()
    arguments["block_table"][1, 2:], arguments["block_table"][2, 1:] = -1, 999
    before = arguments["block_table"].clone()
    sigmoid_decode(query, key, value, **arguments, impl="listening")
    assert torch.equal(arguments["block_table"], before)
    table = seen[0].sequences.block_table_BM
    assert torch.equal(table[0], before[0])
    assert table[1].tolist() == [*before[1, :2].tolist(), 0]
    assert table[2].tolist() == [int(before[2, 0]), 0, 0]


class Operations(TorchDispatchMode):
    """Names of the tensor operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("bias", [-3.0, Constant(-3.0), NegLogLength(64)], ids=repr)
def test_checks_stay_off_the_tensors(bias, monkeypatch):
    """A decoding step lasts some 100 microseconds, and every operation about one of them."""
    backend = Backend(lambda problem: problem.query, no_refusal)
    monkeypatch.setitem(dispatch.BACKENDS, "no-op", backend)
    query, key, value = torch.randn(3, 2, 4, 8, 16).unbind(0)
    last = query[:, :, -1:]
    used = torch.tensor([8, 5])
    mask, slopes = torch.ones(8, 8, dtype=torch.bool), torch.rand(4)
    with Operations() as dense:
        sigmoid_attention(
            query, key, value, mask, bias=bias, is_causal=True, alibi_slopes=slopes, impl="no-op"
        )
    assert dense.names == []
    with Operations() as watched:
        sigmoid_decode(last, key, value, seqused_k=used, bias=bias, impl="no-op", is_causal=True)
    assert watched.names == ["cached_places"]  # what a mode sees whole
    monkeypatch.setattr(torch_state, "is_eager", lambda: True)
    with Operations() as decoding:
        sigmoid_decode(last, key, value, seqused_k=used, bias=bias, impl="no-op", is_causal=True)
    assert decoding.names == ["lift_fresh"]  # a tensor made of numbers
