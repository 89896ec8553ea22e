"""Decoding from contiguous and paged caches, against the definition and against full calls."""

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
    sigmoid_decode,
)
from tests.support.attention.cached import GROUPED, PAGED, RAGGED, Cached, caches
from tests.support.attention.definition import Expected, define_cached, to_nearest


def answer(positional, arguments) -> Expected:
    statistics = attention_statistics(*positional, **arguments)
    return Expected(sigmoid_decode(*positional, **arguments), *statistics)


@given(caches(), st.sampled_from((torch.int32, torch.int64)))
def test_equals_the_definition_in_float64(cached: Cached, index):
    positional, arguments = cached.build(index=index)
    actual, expected = answer(positional, arguments), define_cached(*positional, **arguments)
    torch.testing.assert_close(actual.out, expected.out, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(actual.mass, expected.mass, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(actual.largest, expected.largest, rtol=1e-11, atol=1e-13)
    assert torch.equal(actual.visible, expected.visible)


def cut(positional, arguments, s: int) -> Tensor:
    """Sequence s as a call of its own over the keys in use."""
    query, key, value = (tensor[s : s + 1] for tensor in positional)
    rest = {name: argument for name, argument in arguments.items() if name != "seqused_k"}
    used = int(arguments["seqused_k"][s])
    rest["alibi_slopes"] = rest["alibi_slopes"][s : s + 1]
    if isinstance(rest["bias"], Tensor):
        rest["bias"] = rest["bias"][s : s + 1, :, :, :used]
    return sigmoid_attention(query, key[:, :, :used], value[:, :, :used], **rest)


@pytest.mark.parametrize("bias", ["-2.5", "visible", "lse", "learned", "tensor BHQK"])
def test_gradients_equal_those_of_each_sequence_by_itself(bias):
    cached = Cached(RAGGED.used, 0, RAGGED.call.but(bias=bias, is_causal=True))
    positional, arguments = cached.build()
    inputs = [*positional, arguments["alibi_slopes"]]
    if isinstance(arguments["bias"], Tensor):
        inputs.append(arguments["bias"])
    inputs = [tensor.requires_grad_() for tensor in inputs]
    if bias == "learned":
        inputs.append(arguments["bias"].double().value)
    actual = sigmoid_decode(*positional, **arguments)
    expected = torch.cat([cut(positional, arguments, s) for s in range(3)])
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
    )


@pytest.mark.parametrize("page_size", [0, 2])
@pytest.mark.parametrize("bias", ["-2.5", "lse"])
def test_derivatives_of_ragged_caches(bias, page_size):
    call = GROUPED.but(key_heads=1, keys=4, bias=bias, slopes=None, value_dim=1)
    positional, arguments = Cached((3, 1), page_size, call).build()

    def function(query, key, value):
        return sigmoid_decode(query, key, value, **arguments)

    inputs = tuple(tensor.requires_grad_() for tensor in positional)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def contiguous(pages: Tensor, block_table: Tensor) -> Tensor:
    """The same cache laid out (batch, key_heads, capacity, dim)."""
    rows = [torch.cat([pages[page] for page in row], 0) for row in block_table.tolist()]
    return torch.stack(rows).transpose(1, 2)


@pytest.mark.parametrize("page_size", [1, 3, 4, 16])
@pytest.mark.parametrize("queries", [1, 3])
def test_paged_equals_contiguous(page_size, queries):
    call = GROUPED.but(queries=queries, bias="visible", window_size=(6, -1))
    (query, *pages), arguments = Cached((9, 5, 0), page_size, call).build(torch.float32)
    paged = sigmoid_decode(query, *pages, **arguments)
    block_table = arguments.pop("block_table")
    laid_out = [contiguous(cache, block_table) for cache in pages]
    assert torch.equal(paged, sigmoid_decode(query, *laid_out, **arguments))


def test_sequences_may_share_the_pages_of_a_common_beginning():
    (query, key, value), arguments = PAGED.build()
    arguments["block_table"] = torch.tensor([[0, 1, 2], [0, 1, 3], [0, 4, 5]])
    actual = sigmoid_decode(query, key, value, **arguments)
    expected = define_cached(query, key, value, **arguments)
    torch.testing.assert_close(actual, expected.out)
    inputs = [key.requires_grad_(), value.requires_grad_()]
    shared = torch.autograd.grad(sigmoid_decode(query, key, value, **arguments).sum(), inputs)
    block_table = arguments.pop("block_table")
    copies = [contiguous(cache, block_table) for cache in (key, value)]
    apart = torch.autograd.grad(sigmoid_decode(query, *copies, **arguments).sum(), inputs)
    torch.testing.assert_close(shared, apart)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("cached", [RAGGED, PAGED], ids=["contiguous", "paged"])
def test_error_stays_below_that_of_a_straightforward_computation(cached, dtype):
    positional, arguments = cached.build(dtype)
    exact = define_cached(*positional, **arguments).out
    rough = define_cached(*positional, **arguments, rounded=to_nearest(dtype)).out
    actual = sigmoid_decode(*positional, **arguments)
    assert actual.dtype == dtype
    budget = (rough - exact).abs().max() + 2 * torch.finfo(dtype).eps * exact.abs().max()
    assert (actual.double() - exact).abs().max() <= budget


@pytest.mark.parametrize("bias", [0.0, NegLogVisible(), RowLSE()], ids=repr)
@pytest.mark.parametrize("page_size", [0, 4], ids=["contiguous", "paged"])
def test_an_empty_cache_gives_exact_zeros(page_size, bias):
    positional, arguments = Cached((3, 0, 9), page_size, GROUPED).build()
    for part in answer(positional, arguments | {"bias": bias}):
        assert not part[1].any()
        assert part[[0, 2]].all()


def test_queries_before_the_first_token_see_nothing_when_causal():
    positional, arguments = Cached((1, 9), 0, GROUPED.but(queries=3)).build()
    for part in answer(positional, arguments | {"is_causal": True}):
        assert not part[0, :, :2].any()
        assert part[0, :, 2].all()
        assert part[1].all()


def test_causality_has_no_default():
    positional, arguments = Cached((9, 5), 0, GROUPED.but(queries=3)).build()
    del arguments["is_causal"]
    with pytest.raises(TypeError, match="is_causal"):
        sigmoid_decode(*positional, **arguments)
    causal, full = (sigmoid_decode(*positional, **arguments, is_causal=x) for x in (True, False))
    assert torch.equal(causal[:, :, -1], full[:, :, -1])
    assert not torch.equal(causal[:, :, :-1], full[:, :, :-1])


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bias", ["-2.5", "visible", "lse"])
def test_tokens_behind_those_in_use_do_not_matter(bias, poison):
    cached = Cached(RAGGED.used, 0, RAGGED.call.but(bias=bias))
    (query, key, value), arguments = cached.build()
    clean = sigmoid_decode(query, key, value, **arguments)
    beyond = torch.arange(9) >= arguments["seqused_k"][:, None]
    spoilt = [cache.masked_fill(beyond[:, None, :, None], poison) for cache in (key, value)]
    inputs = [tensor.requires_grad_() for tensor in (query, *spoilt)]
    out = sigmoid_decode(*inputs, **arguments)
    assert torch.equal(out, clean)
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), inputs))


def test_unused_pages_may_hold_anything():
    (query, key, value), arguments = PAGED.build()
    clean = sigmoid_decode(query, key, value, **arguments)
    used_pages = {
        int(page)
        for row, used in zip(arguments["block_table"], PAGED.used, strict=True)
        for page in row[: -(-used // 4)]
    }
    unused = [page for page in range(key.shape[0]) if page not in used_pages]
    assert unused
    key[unused], value[unused] = math.nan, math.nan
    assert torch.equal(sigmoid_decode(query, key, value, **arguments), clean)


def test_parts_of_a_cache_add_up():
    call = GROUPED.but(slopes=None, queries=1, bias="constant")
    (query, key, value), arguments = Cached((9, 9), 0, call).build()
    expected = sigmoid_decode(query, key, value, **arguments)
    parts = []
    for part in (slice(0, 4), slice(4, 9)):
        held = torch.full((2,), part.stop - part.start)
        parts.append(
            sigmoid_decode(
                query, key[:, :, part], value[:, :, part], **(arguments | {"seqused_k": held})
            )
        )
    torch.testing.assert_close(parts[0] + parts[1], expected)


def test_entries_of_the_table_beyond_the_used_tokens_are_not_read():
    key, value = torch.randn(2, 6, 4, 2, 5).unbind(0)
    query = torch.randn(2, 2, 1, 5)
    used = torch.tensor([9, 4])
    tidy = torch.tensor([[3, 1, 2], [5, 0, 0]])
    padded = torch.tensor([[3, 1, 2], [5, -1, 999]])
    answers = [
        sigmoid_decode(
            query, key, value, seqused_k=used, block_table=table, bias=-2.0, is_causal=True
        )
        for table in (tidy, padded)
    ]
    torch.testing.assert_close(answers[0], answers[1])
