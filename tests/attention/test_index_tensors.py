"""Index tensors (ends, lengths, page tables): read once, checked on every path, and copied.

Their values become addresses. A graph is traced without values; if it runs with wrong ones, it
raises the error of the plain call, and reads nothing outside of a tensor.
"""

import struct
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from sigmoid_attention import NegLogVisible
from sigmoid_attention.attention import index_tensors, sigmoid_decode, sigmoid_varlen_attention
from sigmoid_attention.attention.impl.cpu import abi
from sigmoid_attention.attention.impl.cpu.ops import available
from tests.support.attention.complaints import longs

needs_kernel = pytest.mark.skipif(not available(), reason="there is no CPU kernel on this machine")


@pytest.fixture(autouse=True)
def forgotten_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def normal(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed + sum(sizes)))


def cached(impl: str, query: Tensor, key: Tensor, used: Tensor) -> Tensor:
    return sigmoid_decode(query, key, key, seqused_k=used, bias=-1.0, impl=impl, is_causal=True)


def paged(impl: str, query: Tensor, key: Tensor, used: Tensor, table: Tensor) -> Tensor:
    return sigmoid_decode(
        query, key, key, seqused_k=used, block_table=table, bias=-1.0, impl=impl, is_causal=True
    )


def packed(impl: str, query: Tensor, ends_q: Tensor, ends_k: Tensor) -> Tensor:
    return sigmoid_varlen_attention(query, query, query, ends_q, ends_k, 9, 9, bias=-1.0, impl=impl)


# Function, tensors, good numbers, other good numbers, and bad ones with what the sentence begins
# with. Each has int32 numbers once.
CACHE = (normal(2, 1, 1, 8), normal(2, 1, 16, 8))
PAGES = (normal(1, 1, 1, 8), normal(4, 4, 1, 8))
TOKENS = (normal(16, 1, 8),)
ENDS = longs(0, 8, 16)
CALLS = {
    "cached": (cached, CACHE, (longs(16, 9),), (longs(3, 16),)),
    "paged": (
        paged,
        PAGES,
        (longs(16), longs(0, 1, 2, 3)[None]),
        (longs(9), longs(3, 1, 0, 99)[None]),
    ),
    "packed": (packed, TOKENS, (ENDS, ENDS), (longs(0, 7, 16), longs(0, 9, 16))),
}
WRONG = {
    "one-beyond-the-cache": ("cached", (longs(17, 9),), "seqused_k must lie in 0 to"),
    "far-beyond-the-cache": ("cached", (longs(10**7, 9),), "seqused_k must lie in 0 to"),
    "beyond-all-memory": ("cached", (longs(9, 2**62),), "seqused_k must lie in 0 to"),
    "below-nothing": ("cached", (longs(9, -1),), "seqused_k must lie in 0 to"),
    "beyond-the-pages": (
        "paged",
        (longs(17), longs(0, 1, 2, 3)[None]),
        "seqused_k must lie in 0 to",
    ),
    "one-page-too-far": (
        "paged",
        (longs(16), longs(0, 1, 2, 4)[None]),
        "block_table: pages must lie in 0 to 3, got 0 to 4",
    ),
    "a-far-page": ("paged", (longs(16), longs(0, 10**9, 2, 3)[None]), "block_table: pages must"),
    "a-page-below-nothing": ("paged", (longs(16), longs(0, 1, 2, -1)[None]), "block_table: pages"),
    "ends-beyond-the-tokens": ("packed", (longs(0, 8, 40), ENDS), "cu_seq_q must rise from 0"),
    "ends-before-the-tokens": ("packed", (ENDS, longs(0, 8, 15)), "cu_seq_k must rise from 0"),
    "ends-that-fall": ("packed", (ENDS, longs(0, 20, 16)), "cu_seq_k must rise from 0"),
    "ends-not-from-nothing": ("packed", (longs(-4, 8, 16), ENDS), "cu_seq_q must rise from 0"),
    "ends-that-overflow": ("packed", (longs(0, -(2**63), 16), ENDS), "cu_seq_q must rise from 0"),
    "longer-than-declared": ("packed", (longs(0, 6, 16), ENDS), "max_q must be at least the"),
}


def exported(function, tensors: tuple):
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return function(*tensors)

    return torch.export.export(Module(), tensors).module()


def with_gradients(function, tensors: tuple):
    graph = torch.compile(function, backend="aot_eager", fullgraph=True)
    return lambda *arguments: graph(
        *(x.requires_grad_() if x.is_floating_point() else x for x in arguments)
    )


WAYS = {
    "eager": lambda function, tensors: function,
    "compiled": lambda function, _: torch.compile(function, backend="eager", fullgraph=True),
    "compiled-with-gradients": with_gradients,
    "exported": exported,
    "traced": lambda function, tensors: make_fx(function)(*tensors),
    "traced-with-symbols": lambda function, tensors: make_fx(function, tracing_mode="symbolic")(
        *tensors
    ),
}
each_way = pytest.mark.parametrize(
    "way, impl",
    [(way, "auto") for way in WAYS] + [("compiled", "reference"), ("traced", "reference")],
)


@pytest.mark.parametrize("kind", CALLS)
@each_way
def test_wrong_numbers_get_their_sentence_on_every_way(way, impl, kind):
    function, tensors, good, other = CALLS[kind]
    learning = [x.clone() for x in tensors]
    # Ends are given twice: a trace takes one tensor for both only where they are one.
    mine = tuple(x.clone() for x in good)
    graph = WAYS[way](lambda *arguments: function(impl, *arguments), (*learning, *mine))
    for numbers in (mine, other, *([tuple(x.int() for x in good)] if way == "eager" else [])):
        expected = function("reference", *tensors, *numbers)
        torch.testing.assert_close(graph(*learning, *numbers), expected)
    for of, numbers, sentence in WRONG.values():
        if of == kind:
            with pytest.raises(ValueError) as caught:
                graph(*learning, *numbers)
            assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_scripted_trace_reads_the_numbers_of_each_run(kind):
    function, tensors, good, other = CALLS[kind]
    mine = tuple(x.clone() for x in good)
    graph = torch.jit.trace(lambda *arguments: function("auto", *arguments), (*tensors, *mine))
    torch.testing.assert_close(graph(*tensors, *other), function("auto", *tensors, *other))
    for of, numbers, sentence in WRONG.values():
        if of == kind:
            with pytest.raises(RuntimeError, match=sentence):
                graph(*tensors, *numbers)


def test_lengths_may_differ_under_vmap():
    query, key = normal(3, 2, 1, 1, 8), normal(3, 2, 1, 16, 8)
    used = torch.tensor([[16, 9], [3, 0], [1, 16]])
    out = vmap(lambda *arguments: cached("auto", *arguments))(query, key, used)
    for index in range(3):
        expected = cached("auto", query[index], key[index], used[index])
        torch.testing.assert_close(out[index], expected)
    with pytest.raises(ValueError, match=r"^seqused_k must lie in 0 to"):
        vmap(lambda *arguments: cached("auto", *arguments))(query, key, used + 1)


@pytest.mark.parametrize("kind", CALLS)
def test_numbers_that_change_after_they_were_checked_do_not_matter(kind):
    """As if another thread wrote to them as soon as the call has read them."""
    function, tensors, good, _ = CALLS[kind]
    expected = function("auto", *tensors, *good)
    live = tuple(x.clone() for x in good)
    read = Tensor.tolist

    def then_change(tensor: Tensor):
        actual = read(tensor)
        for numbers in live[: 1 if kind == "paged" else 2]:
            numbers.fill_(10**9)
        return actual

    # A call that is made for the first time, and one that was made before.
    for _ in range(2):
        for numbers, right in zip(live, good, strict=True):
            numbers.copy_(right)
        with mock.patch.object(Tensor, "tolist", then_change):
            out = function("auto", *tensors, *live)
        torch.testing.assert_close(out, expected)


@needs_kernel
@pytest.mark.parametrize("kind", CALLS)
def test_the_kernel_gets_no_address_of_the_callers_numbers(kind, monkeypatch):
    function, tensors, good, _ = CALLS[kind]
    structs = []
    kernel = abi.kernel

    def listening(name: str):
        compute = kernel(name)
        return lambda fields: structs.append(fields) or compute(fields)

    monkeypatch.setattr(abi, "kernel", listening)
    tensors = tuple(x[..., :7].clone() for x in tensors)  # of a shape that nothing has remembered
    for _ in range(3):
        function("cpu", *tensors, *good)
    assert len(structs) == 3
    theirs = {x.data_ptr() for x in good}
    for fields in structs:
        assert theirs.isdisjoint(struct.unpack_from("=55q", fields))


FAR, BIASES = 2**40, ("number", "by-head", "visible", "slopes")


@pytest.mark.slow
@needs_kernel
@pytest.mark.parametrize(
    "impl, bias, compiled",
    [
        *((impl, bias, False) for impl in ("cpu", "reference") for bias in BIASES),
        ("cpu", "by-head", True),
        ("reference", "visible", True),
    ],
)
def test_a_declared_length_beyond_the_longest_costs_nothing(impl, bias, compiled):
    terms = {
        "number": {"bias": -1.0},
        "by-head": {"bias": torch.randn(2, 1, 1, requires_grad=True)},
        "visible": {"bias": NegLogVisible()},
        "slopes": {"bias": -1.0, "alibi_slopes": torch.rand(2, requires_grad=True)},
    }[bias]
    learned = [x for x in terms.values() if isinstance(x, Tensor)]

    def function(query, longest: int):
        ends = torch.tensor([0, 8, 8, 16])
        return sigmoid_varlen_attention(
            query, query, query, ends, ends, longest, longest, **terms, impl=impl
        )

    graph = torch.compile(function, backend="eager") if compiled else function
    query = normal(16, 2, 8).requires_grad_()
    collected = []
    for longest in (8, FAR):
        out = graph(query, longest)
        collected.append((out, *torch.autograd.grad(out.square().sum(), [query, *learned])))
    torch.testing.assert_close(collected[1], collected[0])


def test_a_bias_may_be_given_for_more_than_the_longest():
    ends, query = torch.tensor([0, 5, 8]), normal(8, 2, 4)
    for shape in ((2, 2, 9, 7), (1, 2, 9, 1), (1, 1, 1, 7), (9, 7), (9, 1)):
        bias = torch.randn(shape, requires_grad=True)
        outs, grads = [], []
        for values in (bias, bias[..., :5, :5]):
            for impl in ("auto", "reference"):
                longest = (9, 7) if values is bias else (5, 5)
                out = sigmoid_varlen_attention(
                    query, query, query, ends, ends, *longest, bias=values, impl=impl
                )
                outs.append(out)
                grads += torch.autograd.grad(out.square().sum(), [bias])
        for out, grad in zip(outs[1:], grads[1:], strict=True):
            torch.testing.assert_close(out, outs[0])
            torch.testing.assert_close(grad, grads[0])


@pytest.mark.parametrize("longest", [8.5, -1, 2**63, 2**70, None, "8", torch.tensor(8.0)], ids=repr)
@pytest.mark.parametrize("side", ["q", "k"])
def test_a_longest_length_that_is_no_integer_is_refused(side, longest):
    declared = {"max_q": 16, "max_k": 16, f"max_{side}": longest}
    error = ValueError if isinstance(longest, int) else TypeError
    with pytest.raises(error, match=f"^max_{side} must be a whole number, the longest"):
        sigmoid_varlen_attention(*TOKENS * 3, ENDS, ENDS, **declared, bias=-1.0)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_no_pages_hold_no_tokens(impl):
    query, pages = normal(2, 1, 3, 8).requires_grad_(), torch.empty(0, 4, 1, 8)
    table, bias = torch.full((2, 3), 99), torch.zeros(12)[None]
    arguments = {"block_table": table, "bias": bias, "is_causal": True, "impl": impl}
    out = sigmoid_decode(query, pages, pages, seqused_k=longs(0, 0), **arguments)
    assert not out.any()
    (grad,) = torch.autograd.grad(out.sum(), query, create_graph=True)
    assert not grad.any()
    assert not torch.autograd.grad(grad.sum(), query)[0].any()
    with pytest.raises(ValueError, match=r"^seqused_k must lie in 0 to the cache's capacity 0"):
        sigmoid_decode(query, pages, pages, seqused_k=longs(0, 1), **arguments)


def test_numbers_without_values_pass_through():
    """Fake tensors, as torch uses them to learn shapes, have no numbers to look at."""
    with torch._subclasses.FakeTensorMode():
        query, key = torch.empty(2, 1, 1, 8), torch.empty(2, 1, 16, 8)
        assert cached("auto", query, key, torch.empty(2, dtype=torch.int64)).shape == (2, 1, 1, 8)
        tokens, ends = torch.empty(16, 1, 8), torch.empty(3, dtype=torch.int32)
        assert packed("auto", tokens, ends, ends).shape == (16, 1, 8)
    assert index_tensors.values_are_readable(torch.device("cpu"))
