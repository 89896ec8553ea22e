"""Inputs of different dtypes are cast under autocast, as by torch's own operator, else refused."""

import contextlib
import itertools
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F

from sigmoid_attention.attention import (
    RowLSE,
    call_cache,
    sigmoid_attention,
    sigmoid_decode,
    sigmoid_varlen_attention,
)
from tests.support.attention.autocast import (
    FLOATS,
    assert_same_bits,
    autocast,
    both_halves,
    implementations,
    normal,
    qkv,
)


def sdpa_dtype(dtypes: Sequence[torch.dtype], half: torch.dtype) -> torch.dtype | None:
    """What torch's own operator answers in; None where it refuses."""
    with autocast(half), contextlib.suppress(RuntimeError):
        return F.scaled_dot_product_attention(
            *(torch.ones(1, 1, 2, 8, dtype=d) for d in dtypes)
        ).dtype
    return None


MIXED = list(itertools.product((*FLOATS, torch.float64), repeat=3))


@both_halves
def test_mixed_inputs_are_cast_as_torchs_operator_casts_them(half):
    for dtypes in MIXED:
        tensors = [tensor.to(dtype) for tensor, dtype in zip(qkv(), dtypes, strict=True)]
        agree = len(set(dtypes)) == 1
        expected = dtypes[0] if agree else sdpa_dtype(dtypes, half)
        with autocast(half):
            if expected is None:
                with pytest.raises(ValueError, match="dtype must equal query's"):
                    sigmoid_attention(*tensors, bias=-2.0, enable_gqa=True)
                continue
            out = sigmoid_attention(*tensors, bias=-2.0, enable_gqa=True)
        alone = sigmoid_attention(*(t.to(expected) for t in tensors), bias=-2.0, enable_gqa=True)
        assert_same_bits([out], [alone])


@both_halves
@implementations("reference", "tiled", "cpu", "auto")
def test_mixed_inputs_get_gradients_in_their_own_dtypes(impl, half):
    """A rotation that left queries and keys in fp32, beside values from a layer."""
    query, key, value = qkv()
    leaves = [query.requires_grad_(), key.requires_grad_(), value.to(half).requires_grad_()]
    with autocast(half):
        out = sigmoid_attention(*leaves, bias=-2.0, enable_gqa=True, impl=impl)
    grads = torch.autograd.grad(out.float().square().sum(), leaves)
    cast = [leaf.detach().to(half).requires_grad_() for leaf in leaves]
    alone = sigmoid_attention(*cast, bias=-2.0, enable_gqa=True, impl=impl)
    expected = torch.autograd.grad(alone.float().square().sum(), cast)
    assert [each.dtype for each in grads] == [torch.float32, torch.float32, half]
    assert_same_bits([out, *(each.to(half) for each in grads)], [alone, *expected])


def test_mixed_caches_and_packed_sequences_are_cast_too():
    query, key, value = qkv(queries=1)
    used, half = torch.tensor([23, 9]), torch.bfloat16
    ends = torch.tensor([0, 5])
    packed = [normal(5, 2, 8, seed=seed) for seed in range(3)]
    with autocast(half):
        step = sigmoid_decode(
            query.to(half), key, value, seqused_k=used, bias=-2.0, enable_gqa=True, is_causal=True
        )
        row = sigmoid_varlen_attention(
            packed[0], packed[1], packed[2].half(), ends, ends, 5, 5, bias=-2.0
        )
    query, key, value = (each.to(half) for each in (query, key, value))
    packed = [each.to(half) for each in (packed[0], packed[1], packed[2].half())]
    assert_same_bits(
        [step, row],  # pyright: ignore[reportArgumentType]
        [
            sigmoid_decode(
                query, key, value, seqused_k=used, bias=-2.0, enable_gqa=True, is_causal=True
            ),
            sigmoid_varlen_attention(*packed, ends, ends, 5, 5, bias=-2.0),
        ],  # pyright: ignore[reportArgumentType]
    )


@contextlib.contextmanager
def autocast_on_gpus():
    """As ``torch.autocast("cuda")`` is where there is a GPU; a CPU has no part in it."""
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


@contextlib.contextmanager
def autocast_switched_off():
    with autocast(torch.bfloat16), autocast(torch.bfloat16, on=False):
        yield


@pytest.mark.parametrize(
    "region", [contextlib.nullcontext, autocast_switched_off, autocast_on_gpus]
)
def test_mixed_inputs_are_refused_without_autocast(region):
    query, key, value = qkv()
    with region(), pytest.raises(ValueError, match=r"value: dtype must equal query's, got"):
        sigmoid_attention(query, key, value.bfloat16(), bias=-2.0, enable_gqa=True)
    expected = sigmoid_attention(query, key, value, bias=RowLSE(), enable_gqa=True)
    with region():
        actual = sigmoid_attention(query, key, value, bias=RowLSE(), enable_gqa=True)
    assert_same_bits([actual], [expected])


def test_remembered_calls_follow_autocast(monkeypatch):
    monkeypatch.setattr(call_cache, "_prepared", {})
    monkeypatch.setattr(call_cache, "_counts", {})
    query, key, value = qkv()
    others = {"bias": -2.0, "enable_gqa": True}
    plain = sigmoid_attention(query, key, value, **others)
    half = sigmoid_attention(*(t.bfloat16() for t in (query, key, value)), **others)
    for _ in range(3):
        with autocast(torch.bfloat16):
            assert_same_bits([sigmoid_attention(query, key, value, **others)], [plain])
            mixed = sigmoid_attention(query, key, value.bfloat16(), **others)
        assert_same_bits([mixed], [half])
        with pytest.raises(ValueError, match="value: dtype"):
            sigmoid_attention(query, key, value.bfloat16(), **others)
        assert_same_bits([sigmoid_attention(query, key, value, **others)], [plain])


def test_compiled_with_mixed_inputs():
    torch._dynamo.reset()
    query, key, value = qkv()
    function = lambda *tensors: sigmoid_attention(*tensors, bias=-2.0, enable_gqa=True)  # noqa: E731
    graph = torch.compile(function, fullgraph=True, backend="aot_eager")
    with autocast(torch.bfloat16):
        assert_same_bits(
            [graph(query, key, value.bfloat16())], [function(query, key, value.bfloat16())]
        )
