"""Packed, cached and paged calls of the fused operator, at lengths around the kernel's blocks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sigmoid_attention.attention import sigmoid_decode, sigmoid_varlen_attention
from tests.support.attention.cached import Cached
from tests.support.attention.calls import BIAS_SHAPES, Call
from tests.support.attention.packed import Packed
from tests.support.cpu.calls import FAR_WINDOWS, cut, each_dtype
from tests.support.cpu.oracle import (
    assert_close_in_norm,
    differentiated,
    exactly,
    in_float64,
)
from tests.support.examples import examples

pytestmark = pytest.mark.usefixtures("kernel")

LENGTHS = (0, 1, 5, 7, 48, 65, 129, 200)
BIASES = ("-2.5", "visible", "effective", *(f"tensor {letters}" for letters in BIAS_SHAPES))


@st.composite
def rest_of_calls(draw) -> Call:
    return Call(
        batch=1,
        key_heads=draw(st.integers(1, 2)),
        group=draw(st.sampled_from((1, 2))),
        queries=draw(st.sampled_from((1, 2, 9))),
        keys=draw(st.sampled_from((3, 128, 150))),
        head_dim=draw(st.sampled_from((3, 16, 20))),
        value_dim=draw(st.sampled_from((2, 16, 33))),
        bias=draw(st.sampled_from(BIASES)),
        slopes=draw(st.sampled_from((None, "H", "BH"))),
        is_causal=draw(st.booleans()),
        window_size=draw(st.sampled_from(FAR_WINDOWS)),
        softcap=draw(st.sampled_from((None, 0.7))),
        seed=draw(st.integers(0, 2**16)),
    )


@st.composite
def long_packs(draw) -> Packed:
    count = draw(st.integers(1, 4))
    lengths = st.lists(st.sampled_from(LENGTHS), min_size=count, max_size=count)
    lengths_q = draw(lengths)
    lengths_k = draw(st.just(lengths_q) | lengths)
    return Packed(
        tuple(lengths_q), tuple(lengths_k), draw(st.integers(0, 2)), draw(rest_of_calls())
    )


@st.composite
def long_caches(draw) -> Cached:
    call = draw(rest_of_calls())
    used = draw(st.lists(st.integers(0, call.keys), min_size=1, max_size=3))
    return Cached(tuple(used), draw(st.sampled_from((0, 1, 16, 100))), call)


def fused(operator):
    return lambda *positional, **arguments: operator(*positional, **arguments, impl="cpu")


@each_dtype
@settings(max_examples=examples(20))
@given(pack=long_packs(), blocks=st.sampled_from((192, 48)), splits=st.integers(1, 3))
def test_packed_sequences_equal_the_reference(dtype, pack: Packed, blocks, splits):
    positional, arguments = pack.build(dtype)
    arguments["skip_tolerance"] = 0.0
    with cut(blocks, splits):
        actual = differentiated(fused(sigmoid_varlen_attention), positional, arguments)
    assert_close_in_norm(actual, exactly(sigmoid_varlen_attention, positional, arguments), dtype)


def test_packed_sequences_do_not_see_each_other():
    """Each gets the bits that it gets alone, where both are long enough for the same kernel."""
    pack = Packed((65, 0, 130, 40), (65, 3, 129, 200), 0, Call(1, 2, 2, 1, 1, 16, 8, slopes="H"))
    positional, arguments = pack.build(torch.float32)
    query, key, value, ends_q, ends_k, *_ = positional
    together = sigmoid_varlen_attention(*positional, **arguments, impl="cpu")
    for (q0, q1), (k0, k1) in zip(
        ends_q.unfold(0, 2, 1).tolist(), ends_k.unfold(0, 2, 1).tolist(), strict=True
    ):
        alone = sigmoid_varlen_attention(
            query[q0:q1], key[k0:k1], value[k0:k1],
            torch.tensor([0, q1 - q0]), torch.tensor([0, k1 - k0]), q1 - q0, k1 - k0,
            **arguments, impl="cpu",
        )  # fmt: skip
        assert torch.equal(together[q0:q1], alone)


@each_dtype
@settings(max_examples=examples(20))
@given(cached=long_caches(), splits=st.integers(1, 3))
def test_caches_equal_the_reference(dtype, cached: Cached, splits):
    positional, arguments = cached.build(dtype)
    arguments["skip_tolerance"] = 0.0
    if cached.page_size:
        out = sigmoid_decode(*positional, **arguments, impl="cpu")
        wide = {name: in_float64(argument) for name, argument in arguments.items()}
        exact = sigmoid_decode(*(x.double() for x in positional), **wide, impl="reference")
        assert_close_in_norm({"out": out}, {"out": exact}, dtype)
    else:
        with cut(192, splits):
            actual = differentiated(fused(sigmoid_decode), positional, arguments)
        assert_close_in_norm(actual, exactly(sigmoid_decode, positional, arguments), dtype)


@each_dtype
@pytest.mark.parametrize("page_size", [0, 16], ids=["contiguous", "paged"])
def test_memory_behind_a_cache_is_not_read(dtype, page_size):
    cached = Cached((130, 7, 0, 64), page_size, Call(1, 2, 2, 3, 160, 16, 20))
    (query, key, value), arguments = cached.build(dtype)
    written = torch.zeros(key.shape[:-1], dtype=torch.bool)
    if page_size:
        table = torch.arange(written.shape[0]).view(4, -1)
        arguments["block_table"] = table
        for page, used in zip(table.tolist(), cached.used, strict=True):
            for token in range(used):
                written[page[token // page_size], token % page_size] = True
    else:
        written[:] = torch.arange(160) < torch.tensor(cached.used)[:, None, None]
    outs = [
        sigmoid_decode(
            query.requires_grad_(),
            key.masked_fill(~written[..., None], hole),
            value.masked_fill(~written[..., None], hole),
            **arguments,
            impl="cpu",
        )
        for hole in (0.0, math.nan)
    ]
    assert torch.equal(*outs)
    grads = [torch.autograd.grad(out.float().square().sum(), query)[0] for out in outs]
    assert torch.equal(*grads)


def test_unused_places_of_a_cache_get_a_gradient_of_zero():
    (query, key, value), arguments = Cached((130, 7), 0, Call(1, 2, 2, 3, 160, 16, 20)).build(
        torch.float32
    )
    leaves = [key.requires_grad_(), value.requires_grad_()]
    out = sigmoid_decode(query, *leaves, **arguments, impl="cpu")
    for grad in torch.autograd.grad(out.sum(), leaves):
        assert grad[0, :, :130].any(-1).all()
        assert not grad[0, :, 130:].any()
        assert not grad[1, :, 7:].any()


def test_a_paged_cache_has_a_gradient_for_queries_and_refuses_one_for_itself():
    cached = Cached((130, 7), 16, Call(1, 2, 2, 3, 160, 16, 20))
    (query, key, value), arguments = cached.build(torch.float32)

    def gradient(impl: str, query, key, value):
        out = sigmoid_decode(query, key, value, **arguments, impl=impl)
        return torch.autograd.grad(out.square().sum(), query)[0]

    grad = gradient("cpu", query.requires_grad_(), key, value)
    exact = gradient("reference", query, key, value).double()
    assert_close_in_norm({"query": grad}, {"query": exact}, torch.float32)
    with pytest.raises(NotImplementedError, match="key_cache"):
        sigmoid_decode(query, key.requires_grad_(), value, **arguments, impl="cpu")
    with torch.no_grad():
        assert sigmoid_decode(query, key, value, **arguments, impl="cpu").any()
    assert gradient("auto", query, key, value).any()
