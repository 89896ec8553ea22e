"""Triton kernels with packed sequences, caches, second derivatives, compilation and checkpoints."""

from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sigmoid_attention.attention import (
    sigmoid_attention,
    sigmoid_decode,
    sigmoid_varlen_attention,
)
from tests.support.cpu.budgets import normal
from tests.support.cpu.oracle import assert_close_in_norm, differentiated, exactly
from tests.support.tiers import sampled
from tests.support.triton.calls import BLOCKS, SLOPES, qkv
from tests.support.triton.interpreter import Blocks

LENGTHS_Q, LENGTHS_K = (0, 21, 1, 34, 0), (5, 21, 18, 20, 0)


def ends(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor((0, *lengths)).cumsum(0)


def packed_by(impl: str, positional: tuple, arguments: dict) -> dict[str, Tensor]:
    return differentiated(sigmoid_varlen_attention, positional, arguments | {"impl": impl})


PACKED = {
    "causal": {"is_causal": True},
    "window-slopes": {"window_size": (9, 3), "alibi_slopes": SLOPES},
    "bias-of-rows-slopes-of-each": {
        "bias": normal(5, 2, 34, 1).float() - 1,
        "alibi_slopes": SLOPES.expand(5, 2) * torch.arange(1, 6)[:, None],
        "is_causal": True,
    },
    "bias-of-pairs": {"bias": normal(2, 34, 21).float()},
}


EACH_PACKED = {name: (arguments,) for name, arguments in PACKED.items()}


@pytest.mark.parametrize("arguments", sampled(EACH_PACKED, "causal", "bias-of-pairs"))
@pytest.mark.parametrize("in_order", [False, True], ids=["added", "in-order"])
def test_packed_sequences(interpreted, arguments, in_order):
    tokens_q, tokens_k = sum(LENGTHS_Q), sum(LENGTHS_K)
    tensors = (normal(tokens_q, 2, 16), normal(tokens_k, 1, 16), normal(tokens_k, 1, 24))
    positional = (*(x.float() for x in tensors), ends(LENGTHS_Q), ends(LENGTHS_K), 34, 21)
    arguments = {"bias": -2.0, "enable_gqa": True} | arguments
    blocks = Blocks(16, 16, 16)
    actual = interpreted(packed_by, blocks, "triton", positional, arguments, in_order=in_order)
    exact = exactly(sigmoid_varlen_attention, positional, arguments)
    assert_close_in_norm(actual, exact, torch.float32)


def packed_with_padding(impl: str, positional: tuple, arguments: dict) -> dict[str, Tensor]:
    """The lengths are not validated, and allocated memory is not zero by chance."""
    from sigmoid_attention.attention.impl.triton import ops

    unvalidated = mock.patch(
        "sigmoid_attention.attention.index_tensors.values_are_readable", lambda *_: False
    )
    empty = ops.empty_output
    filled = mock.patch.object(ops, "empty_output", lambda *inputs: empty(*inputs).fill_(torch.nan))
    with unvalidated, filled:
        return packed_by(impl, positional, arguments)


PADDING = 70


def without_padding(query: Tensor, key: Tensor, value: Tensor, *lengths, **arguments) -> Tensor:
    tokens = (each[:-PADDING] for each in (query, key, value))
    out = sigmoid_varlen_attention(*tokens, *lengths, **arguments)
    return torch.nn.functional.pad(out, (0, 0, 0, 0, 0, PADDING))


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("in_order", [False, True], ids=["added", "in-order"])
def test_tokens_behind_the_last_sequence_get_zeros(interpreted, impl, in_order):
    tokens_q, tokens_k = sum(LENGTHS_Q) + PADDING, sum(LENGTHS_K) + PADDING
    tensors = (normal(tokens_q, 2, 16), normal(tokens_k, 1, 16), normal(tokens_k, 1, 24))
    positional = (*(x.float() for x in tensors), ends(LENGTHS_Q), ends(LENGTHS_K), 34, 21)
    arguments = {"bias": -2.0, "enable_gqa": True}
    actual = interpreted(
        packed_with_padding, BLOCKS, impl, positional, arguments, in_order=in_order
    )
    for tensor in actual.values():
        assert torch.equal(tensor[-PADDING:], torch.zeros_like(tensor[-PADDING:]))
    assert_close_in_norm(actual, exactly(without_padding, positional, arguments), torch.float32)


def cached_by(impl: str, positional: tuple, arguments: dict) -> dict[str, Tensor]:
    return differentiated(sigmoid_decode, positional, arguments | {"impl": impl})


def test_a_cache_whose_end_holds_anything(interpreted):
    query, key, value = qkv(19, 50, batch=3)
    used = torch.tensor([50, 30, 7])
    for s, length in enumerate(used.tolist()):
        key[s, :, length:] = value[s, :, length:] = torch.nan
    arguments = {"seqused_k": used, "bias": -2.0, "alibi_slopes": SLOPES, "enable_gqa": True}
    arguments["is_causal"] = True
    actual = interpreted(cached_by, BLOCKS, "triton", (query, key, value), arguments)
    exact = exactly(sigmoid_decode, (query, key, value), arguments)
    assert_close_in_norm(actual, exact, torch.float32)


def paged_by(impl: str, positional: tuple, arguments: dict) -> dict[str, Tensor]:
    """As on a GPU, where the lengths are not validated."""
    with mock.patch("sigmoid_attention.attention.decode.values_are_readable", lambda *_: False):
        return cached_by(impl, positional, arguments)


def test_pages_for_many_queries_or_with_gradients(interpreted):
    query, _, _ = qkv(19, 1, batch=2)
    pages = [normal(9, 8, 1, dim, seed=dim).float() for dim in (16, 24)]
    table = torch.tensor([[4, 0, 7, 2], [5, 1, 10**6, 10**6]])
    arguments = {"seqused_k": torch.tensor([30, 16]), "bias": -2.0, "enable_gqa": True}
    arguments |= {"block_table": table, "alibi_slopes": SLOPES, "is_causal": True}
    positional = (query, *pages)
    actual = interpreted(paged_by, BLOCKS, "triton", positional, arguments)
    exact = exactly(sigmoid_decode, positional, arguments)
    assert_close_in_norm(actual, exact, torch.float32)


def twice(impl: str, positional: tuple, arguments: dict) -> dict[str, Tensor]:
    """Gradients of a function of the gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in positional]
    slopes = arguments["alibi_slopes"].detach().requires_grad_()
    out = sigmoid_attention(*leaves, **arguments | {"alibi_slopes": slopes}, impl=impl)
    grads = torch.autograd.grad(out.square().sum(), [*leaves, slopes], create_graph=True)
    total = sum(grad.square().sum() for grad in grads)
    names = ("query", "key", "value", "slopes")
    actual = torch.autograd.grad(total, [*leaves, slopes])
    return dict(zip(names, actual, strict=True))


def test_second_derivatives(interpreted):
    positional = qkv(20, 24)
    arguments = {"bias": -1.0, "alibi_slopes": SLOPES, "softcap": 2.0} | {"enable_gqa": True}
    actual = interpreted(twice, BLOCKS, "triton", positional, arguments)
    wide = arguments | {"alibi_slopes": SLOPES.double()}
    exact = twice("reference", tuple(x.double() for x in positional), wide)
    assert_close_in_norm(actual, exact, torch.float32)


def compiled(lengths: tuple[int, ...]) -> list[tuple[dict, dict]]:
    """Eager and compiled results for each length, of one graph."""

    def function(query, key, value, slopes):
        return sigmoid_attention(
            query, key, value, is_causal=True, alibi_slopes=slopes, enable_gqa=True, impl="triton"
        )

    graph = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    collected = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in lengths:
            tensors = (*qkv(length, length), SLOPES)
            for tensor in tensors[:3]:
                torch._dynamo.mark_dynamic(tensor, 2)
            collected.append(tuple(differentiated(each, tensors, {}) for each in (function, graph)))
    return collected


@pytest.mark.slow
def test_one_graph_serves_all_lengths(interpreted):
    for eager, graph in interpreted(compiled, BLOCKS, (19, 33)):
        for name, expected in eager.items():
            torch.testing.assert_close(graph[name], expected)


def checkpointed(positional: tuple) -> tuple[dict, dict]:
    def function(query, key, value):
        return sigmoid_attention(query, key, value, bias=-1.0, enable_gqa=True, impl="triton")

    def again(*tensors):
        return checkpoint(function, *tensors, use_reentrant=False)

    return differentiated(function, positional, {}), differentiated(again, positional, {})


def test_checkpoints_compute_the_same_again(interpreted):
    plain, again = interpreted(checkpointed, BLOCKS, qkv(20, 24))
    for name, expected in plain.items():
        assert torch.equal(again[name], expected), name


def saved(positional: tuple) -> list[tuple[int, ...]]:
    """The shapes of what a forward pass keeps for its backward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x), lambda x: x):
        leaves = [tensor.requires_grad_() for tensor in positional]
        out = sigmoid_attention(
            *leaves, bias=-1.0, alibi_slopes=SLOPES, is_causal=True, enable_gqa=True, impl="triton"
        )
    assert out.requires_grad
    inputs = {tensor.data_ptr() for tensor in (*leaves, SLOPES)}
    return [tuple(tensor.shape) for tensor in kept if tensor.data_ptr() not in inputs]


def test_nothing_is_kept_but_the_inputs(interpreted):
    assert interpreted(saved, BLOCKS, qkv(20, 24)) == []
