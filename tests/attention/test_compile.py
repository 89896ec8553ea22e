"""torch.compile without graph breaks, forward and backward, with one graph for varying lengths.

"eager" runs dynamo alone, "aot_eager" also traces the backward pass; both take a fraction of the
time of inductor, which one test at the end runs.
"""

import math
import shutil

import pytest
import torch
from torch import Tensor

from sigmoid_attention.attention import (
    CentredKeys,
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
from tests.support.attention.compiled import changing, compiled, normal, one_graph_only
from tests.support.tiers import sampled


@pytest.fixture(autouse=True)
def forgotten_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_same(function, graph, inputs: list, **tolerance) -> None:
    """Outputs, and the gradients of every floating input."""
    tensors = [each for each in inputs if isinstance(each, Tensor)]
    trained = [tensor.requires_grad_() for tensor in tensors if tensor.is_floating_point()]
    expected, actual = function(*inputs), graph(*inputs)
    torch.testing.assert_close(actual, expected, **tolerance)
    torch.testing.assert_close(
        torch.autograd.grad(actual.square().sum(), trained),
        torch.autograd.grad(expected.square().sum(), trained),
        **tolerance,
    )


SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0])
STRENGTHS = torch.linspace(0.5, 1.25, 4)
LEARNED = Learned(-2.0, num_heads=4)


def causal(query, key, value):
    return sigmoid_attention(query, key, value, is_causal=True)


def row_lse(query, key, value):
    return sigmoid_attention(query, key, value, bias=RowLSE(), is_causal=True)


def visible_and_mask(query, key, value, mask):
    return sigmoid_attention(query, key, value, mask, bias=NegLogVisible(), is_causal=True)


def effective_length_and_mask(query, key, value, mask):
    bias = NegLogEffectiveLength((0.5, 0.25, 0.125, 0.0), 16)
    return sigmoid_attention(query, key, value, mask, bias=bias, alibi_slopes=SLOPES[:4])


def everything(query, key, value, slopes):
    return sigmoid_attention(
        query,
        key[:, :2],
        value[:, :2],
        bias=LEARNED,
        alibi_slopes=slopes,
        window_size=(4, 1),
        softcap=3.0,
        enable_gqa=True,
    )


def centred(query, key, value, strength):
    bias = CentredKeys(NegLogVisible(), strength)
    return sigmoid_attention(query, key, value, bias=bias, is_causal=True)


def centred_in_a_window(query, key, value, strength):
    return sigmoid_attention(
        query,
        key[:, :2],
        value[:, :2],
        bias=CentredKeys(-2.0, strength),
        window_size=(4, 1),
        enable_gqa=True,
    )


def centred_under_masks(query, key, value, mask, strength):
    """A mask of pairs, and one of keys."""
    bias = CentredKeys(NegLogVisible(), strength)
    of_pairs = sigmoid_attention(query, key, value, mask, bias=bias)
    return of_pairs + sigmoid_attention(query, key, value, mask[-1:], bias=bias, is_causal=True)


def tensor_bias(query, key, value, bias):
    return sigmoid_attention(query, key, value, bias=bias, is_causal=True)


def made_inside(query, key, value):
    n = query.shape[2]
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    return sigmoid_attention(query, key, value, mask, bias=NegLogLength(n))


def qkv(length: int) -> list[Tensor]:
    return [normal(2, 4, length, 8, seed=seed) for seed in range(3)]


def hiding(length: int) -> Tensor:
    return normal(length, length).masked_fill(normal(length, length) > 1, -math.inf)


CALLS = {
    "causal": (causal, qkv),
    "row-lse": (row_lse, qkv),
    "visible-and-float-mask": (visible_and_mask, lambda n: [*qkv(n), hiding(n)]),
    "effective-length-and-bool-mask": (
        effective_length_and_mask,
        lambda n: [*qkv(n), normal(2, 1, 1, n) > 0],
    ),
    "learned-shared-keys-slopes-window-softcap": (
        everything,
        lambda n: [*qkv(n), SLOPES.expand(2, 4).clone()],
    ),
    "centred-causal": (centred, lambda n: [*qkv(n), STRENGTHS.clone()]),
    "centred-window-shared-keys": (
        centred_in_a_window,
        lambda n: [*qkv(n), STRENGTHS.clone()],
    ),
    "centred-masks": (
        centred_under_masks,
        lambda n: [*qkv(n), normal(n, n).exp() > 0.5, STRENGTHS.clone()],
    ),
    "tensor-bias": (tensor_bias, lambda n: [*qkv(n), normal(4, n, 1)]),
    "mask-and-policy-made-inside": (made_inside, qkv),
}
each_call = pytest.mark.parametrize(
    "function, inputs", sampled(CALLS, "causal", "learned-shared-keys-slopes-window-softcap")
)


@each_call
def test_one_graph_serves_any_length(function, inputs):
    graph = compiled(function)
    with one_graph_only:
        for length in (7, 13):
            assert_same(function, graph, changing(inputs(length), length))


@pytest.mark.slow
@each_call
def test_one_graph_serves_any_size_of_all_dimensions(function, inputs):
    graph = compiled(function, dynamic=True, backend="eager")
    with one_graph_only:
        for length in (7, 13, 32):
            torch.testing.assert_close(graph(*inputs(length)), function(*inputs(length)))


@pytest.mark.slow
@pytest.mark.parametrize("function", [centred, centred_in_a_window], ids=["causal", "window"])
def test_one_graph_serves_any_length_under_deterministic_algorithms(function):
    """From one block of sums to two."""
    graph = compiled(function)
    torch.use_deterministic_algorithms(True)
    try:
        with one_graph_only:
            for length in (7, 300):
                tensors = changing([*qkv(length), STRENGTHS.clone()], length)
                assert_same(function, graph, tensors, rtol=1e-4, atol=1e-4)
    finally:
        torch.use_deterministic_algorithms(False)


def test_statistics_and_dropout_compile():
    def function(query, key, value):
        out = sigmoid_attention(query, key, value, dropout_p=0.5)
        aux = attention_statistics(query, key, value)
        return out, aux.mass, aux.largest, aux.visible

    graph = compiled(function)
    torch.manual_seed(0)
    expected = function(*qkv(9))
    torch.manual_seed(0)
    torch.testing.assert_close(graph(*qkv(9)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True, False], ids=["automatic", "dynamic", "static"])
def test_no_bias_means_the_length_of_this_call(dynamic):
    """Neutral keys show the bias: n sigmoid(-log n) = n / (1 + n), for the n of now."""

    def mass(query, key, value):
        return attention_statistics(query, key, value).mass

    graph = compiled(mass, dynamic=dynamic, backend="eager")
    for n in (5, 9, 33):
        zeros = torch.zeros(1, 2, n, 4, dtype=torch.float64)
        expected = torch.full((1, 2, n), n / (1 + n), dtype=torch.float64)
        torch.testing.assert_close(graph(zeros, zeros, zeros), expected)


def test_a_training_length_that_changes_changes_the_answer():
    def function(query, key, value, n: int):
        return sigmoid_attention(query, key, value, bias=NegLogLength(n))

    graph = compiled(function, backend="eager")
    for n in (6, 60, 600):
        torch.testing.assert_close(graph(*qkv(6), n), function(*qkv(6), n))


@pytest.mark.slow
def test_an_effective_length_that_changes_changes_the_answer():
    def function(query, key, value, bias):
        return sigmoid_attention(query, key, value, bias=bias)

    graph = compiled(function, backend="eager")
    for first in (0.5, 0.75, 1.0):
        bias = NegLogEffectiveLength((first, 0.25, 0.125, 0.0), 16)
        with torch.inference_mode():
            torch.testing.assert_close(graph(*qkv(6), bias), function(*qkv(6), bias))
        assert_same(function, graph, [*qkv(6), bias])


def packed_visible(query, key, value, ends_q, ends_k):
    return sigmoid_varlen_attention(
        query, key, value, ends_q, ends_k, 8, 9, bias=NegLogVisible(), is_causal=True
    )


def packed_centred(query, key, value, ends_q, ends_k):
    return sigmoid_varlen_attention(
        query, key, value, ends_q, ends_k, 8, 9, bias=CentredKeys(-2.0), window_size=(3, 1)
    )


@pytest.mark.parametrize("packed", [packed_visible, packed_centred], ids=["visible", "centred"])
def test_packed_sequences_of_any_lengths_share_a_graph(packed):
    graph = compiled(packed)
    with one_graph_only:
        for (q1, q2), (k1, k2) in (((3, 2), (3, 7)), ((5, 8), (9, 5)), ((0, 6), (5, 6))):
            tensors = [normal(q1 + q2, 4, 8), normal(k1 + k2, 4, 8), normal(k1 + k2, 4, 8, seed=1)]
            ends = [torch.tensor([0, q1, q1 + q2]), torch.tensor([0, k1, k1 + k2])]
            assert_same(packed, graph, [*changing(tensors, q1 + q2, k1 + k2), *ends])


def test_packed_sequences_with_a_longest_length_that_changes():
    def function(query, ends, longest: int):
        return sigmoid_varlen_attention(
            query, query, query, ends, ends, longest, longest, bias=NegLogLength(longest)
        )

    graph = compiled(function, dynamic=True, backend="eager")
    with one_graph_only:
        for longest in (4, 7):
            ends = torch.tensor([0, longest, longest + 3])
            query = normal(longest + 3, 4, 8)
            torch.testing.assert_close(graph(query, ends, longest), function(query, ends, longest))


@pytest.mark.parametrize("bias", [NegLogVisible(), CentredKeys(-2.0)], ids=["visible", "centred"])
def test_decoding_as_the_cache_fills_shares_a_graph(bias):
    def function(query, key_cache, value_cache, used):
        return sigmoid_decode(
            query,
            key_cache,
            value_cache,
            seqused_k=used,
            bias=bias,
            enable_gqa=True,
            is_causal=True,
        )

    graph = compiled(function)
    with one_graph_only:
        for capacity in (9, 16):
            for used in (1, 5, capacity):
                cache = [normal(2, 2, capacity, 8, seed=seed) for seed in (1, 2)]
                tensors = [normal(2, 4, 1, 8), *changing(cache, capacity)]
                assert_same(function, graph, [*tensors, torch.tensor([used, used - 1])])


def test_paged_decoding_shares_a_graph():
    def function(query, key, value, used, block_table):
        return sigmoid_decode(
            query,
            key,
            value,
            seqused_k=used,
            block_table=block_table,
            bias=NegLogLength(64),
            is_causal=True,
        )

    graph = compiled(function)
    with one_graph_only:
        for pages in (3, 5):
            cache = [normal(2 * pages, 4, 2, 8, seed=seed) for seed in (1, 2)]
            block_table = torch.arange(2 * pages).flip(0).view(2, pages)
            used = torch.tensor([4 * pages, 2])
            changing([*cache, block_table], pages, 2 * pages)
            assert_same(function, graph, [normal(2, 2, 1, 8), *cache, used, block_table])


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="inductor needs a C++ compiler, and this machine has none",
)
def test_inductor_computes_the_same():
    function, inputs = CALLS["learned-shared-keys-slopes-window-softcap"]
    graph = compiled(function, backend="inductor")
    assert_same(function, graph, inputs(13), rtol=1e-5, atol=1e-5)
