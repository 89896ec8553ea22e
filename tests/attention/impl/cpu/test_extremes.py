"""The fused operator at extremes: empty sizes, no visible keys, NaN and infinity.

A hidden pair has weight exactly 0. A NaN in a hidden key, or in a hidden place of a bias or mask,
does not reach the output. A hidden *value* is multiplied by its weight of 0 where its tile is
visited, so its NaN may reach the output, as in the reference, which visits all tiles. The same
holds for a NaN in a hidden key and the gradient of a query. Elements outside of a packed sequence
or a cache are never read: test_sequences.py.
"""

import math

import pytest
import torch
from torch import Tensor

from sigmoid_attention.attention import sigmoid_attention, sigmoid_varlen_attention
from sigmoid_attention.attention.impl.cpu import abi
from tests.support.attention.calls import Call
from tests.support.cpu.calls import PLAIN, cut, each_dtype, fused
from tests.support.cpu.oracle import differentiated

pytestmark = pytest.mark.usefixtures("kernel")


def by_reference(*tensors, **arguments) -> Tensor:
    return sigmoid_attention(*tensors, **arguments, impl="reference")


EMPTY = {
    "no-sequence": (0, 2, 3, 3, 4, 5),
    "no-query": (2, 2, 0, 3, 4, 5),
    "no-key": (2, 2, 3, 0, 4, 5),
    "no-query-and-no-key": (2, 2, 0, 0, 4, 5),
    "no-value-dim": (2, 2, 3, 130, 4, 0),
    "no-head-dim": (2, 2, 3, 130, 0, 5),
    "nothing": (0, 1, 0, 0, 0, 0),
}


@each_dtype
@pytest.mark.parametrize("grouped", [1, 3], ids=["heads", "shared-keys"])
@pytest.mark.parametrize("sizes", EMPTY.values(), ids=EMPTY.keys())
def test_empty_calls_have_the_results_of_the_reference(dtype, sizes, grouped):
    batch, heads, queries, keys, head_dim, value_dim = sizes
    tensors = (
        torch.ones(batch, heads * grouped, queries, head_dim, dtype=dtype),
        torch.ones(batch, heads, keys, head_dim, dtype=dtype),
        torch.ones(batch, heads, keys, value_dim, dtype=dtype),
    )
    for more in (
        {"bias": -1.0},
        {"bias": torch.full((queries, keys), -1.0)},
        {"bias": torch.full((heads * grouped, 1, 1), -1.0), "is_causal": True},
        {"bias": -1.0, "alibi_slopes": torch.ones(heads * grouped), "softcap": 2.0},
        {"bias": torch.full((1, 1, 1, keys), -1.0)},
        {"bias": -1.0, "attn_mask": torch.ones(batch, 1, 1, keys, dtype=torch.bool)},
        {"bias": torch.full((queries, 1), -1.0), "attn_mask": torch.ones(keys)},
    ):
        arguments = {"scale": 0.5, "enable_gqa": True, **more}
        actual = differentiated(fused, tensors, arguments)
        expected = differentiated(by_reference, tensors, arguments)
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(actual, expected, rtol=8 * unit, atol=8 * unit)


def twice(operator, positional, arguments: dict) -> list[Tensor]:
    """The gradients of a function of the gradients."""
    leaves = [x.clone().requires_grad_() for x in positional[:3]]
    out = operator(*leaves, *positional[3:], **arguments)
    grads = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    return list(torch.autograd.grad(sum(grad.square().sum() for grad in grads), leaves))


@pytest.mark.parametrize("impl", ["cpu", "tiled"])
@pytest.mark.parametrize("sizes", EMPTY.values(), ids=EMPTY.keys())
def test_second_derivatives_of_empty_calls_are_those_of_the_reference(sizes, impl):
    batch, heads, queries, keys, head_dim, value_dim = sizes
    tensors = (
        torch.ones(batch, heads, queries, head_dim),
        torch.ones(batch, heads, keys, head_dim),
        torch.ones(batch, heads, keys, value_dim),
    )
    for more in ({}, {"attn_mask": torch.ones(1, 1, 1, keys, dtype=torch.bool)}):
        actual = [
            twice(sigmoid_attention, tensors, {"bias": -1.0, "scale": 0.5, "impl": by, **more})
            for by in (impl, "reference")
        ]
        torch.testing.assert_close(*actual)


def test_packed_sequences_without_a_head_dim_have_second_derivatives():
    ends = torch.tensor([0, 3, 3, 5])
    tokens = torch.ones(5, 2, 0), torch.ones(5, 2, 0), torch.randn(5, 2, 3)
    actual = [
        twice(
            sigmoid_varlen_attention,
            (*tokens, ends, ends, 3, 3),
            {"bias": -1.0, "scale": 0.5, "impl": impl},
        )
        for impl in ("cpu", "reference")
    ]
    torch.testing.assert_close(*actual)


HIDING = {
    "bool-mask": {"attn_mask": torch.ones(130, 200, dtype=torch.bool)},
    "float-mask": {"attn_mask": torch.zeros(130, 200)},
    "bias": {"bias": torch.zeros(130, 200)},
}


@each_dtype
@pytest.mark.parametrize("name", HIDING)
def test_rows_and_keys_that_are_hidden_get_exact_zeros(dtype, name):
    call = PLAIN.but(queries=130, keys=200, softcap=3.0)
    tensors, arguments = call.build(dtype)
    hiding = {key: term.clone() for key, term in HIDING[name].items()}
    for term in hiding.values():
        hidden = False if term.dtype == torch.bool else -math.inf
        term[40:101] = hidden
        term[:, 7:140] = hidden
    actual = differentiated(fused, tensors, arguments | hiding)
    assert not actual["out"][:, :, 40:101].any()
    assert not actual["query"][:, :, 40:101].any()
    assert not actual["key"][:, :, 7:140].any()
    assert not actual["value"][:, :, 7:140].any()
    assert actual["out"][:, :, 101:].any(-1).all()
    assert actual["key"][:, :, 140:].any(-1).all()


@each_dtype
@pytest.mark.parametrize("mask", [torch.tensor(False), torch.tensor(-math.inf)], ids=repr)
def test_a_mask_that_hides_all_leaves_zeros(dtype, mask):
    tensors, arguments = PLAIN.build(dtype)
    for actual in differentiated(fused, tensors, arguments | {"attn_mask": mask}).values():
        assert not actual.any()


SPOILED = ("query", "key", "value", "bias", "row-bias", "mask", "key-mask", "slopes")
ROW, KEY, N = 131, 70, 300


def spoil(what: str, call: Call, by: float):
    """The call with one number replaced: of query ROW, of key KEY, or of that pair of them."""
    tensors, arguments = call.build(torch.float32)
    query, key, value = tensors
    match what:
        case "query":
            query[:, :, ROW, 1] = by
        case "key":
            key[:, :, KEY, 1] = by
        case "value":
            value[:, :, KEY, 1] = by
        case "bias":
            arguments["bias"] = torch.full((N, N), -1.0)
            arguments["bias"][ROW, KEY] = by
        case "row-bias":
            arguments["bias"] = torch.full((N, 1), -1.0)
            arguments["bias"][ROW] = by
        case "mask":
            arguments["attn_mask"] = torch.zeros(N, N)
            arguments["attn_mask"][ROW, KEY] = by
        case "key-mask":
            arguments["attn_mask"] = torch.zeros(N)
            arguments["attn_mask"][KEY] = by
        case "slopes":
            arguments["alibi_slopes"] = torch.tensor([0.5, by])
    return tensors, arguments


def pairs_of(what: str) -> Tensor:
    """Where the replaced number takes part, (H, Q, K)."""
    pairs = torch.zeros(2, N, N, dtype=torch.bool)
    if what == "slopes":
        pairs[1] = True
    elif what in ("query", "row-bias"):
        pairs[:, ROW] = True
    elif what in ("key", "value", "key-mask"):
        pairs[:, :, KEY] = True
    else:
        pairs[:, ROW, KEY] = True
    return pairs


SQUARE = PLAIN.but(queries=N, keys=N, head_dim=4, value_dim=4, bias="-1.0")
SEEN = {
    "all": (SQUARE, torch.ones(N, N, dtype=torch.bool)),
    "causal": (SQUARE.but(is_causal=True), torch.ones(N, N, dtype=torch.bool).tril()),
    "window": (
        SQUARE.but(window_size=(20, 30)),
        torch.ones(N, N, dtype=torch.bool).tril(30).triu(-20),
    ),
}


@pytest.mark.parametrize("skip_tolerance", ["rounding", 0.1], ids=str)
@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("what", SPOILED)
def test_a_nan_reaches_what_it_takes_part_in_and_nothing_else(what, seen, skip_tolerance):
    call, visible = SEEN[seen]
    tensors, arguments = spoil(what, call, math.nan)
    arguments["skip_tolerance"] = skip_tolerance
    actual = differentiated(fused, tensors, arguments)
    touched = (pairs_of(what) & visible).any(-1)
    assert actual["out"][0][touched].isnan().any(-1).all()
    expected = differentiated(by_reference, tensors, arguments)
    for name, exact in expected.items():
        assert actual[name][exact.isfinite()].isfinite().all(), name


@pytest.mark.parametrize("sign", [1, -1], ids=["plus", "minus"])
@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("what", SPOILED)
def test_infinity_does_what_it_does_in_the_reference(what, seen, sign):
    """Open or closed gates, and NaN where an infinity meets a zero or its opposite."""
    call, visible = SEEN[seen]
    tensors, arguments = spoil(what, call, sign * math.inf)
    actual = differentiated(fused, tensors, arguments)
    expected = differentiated(by_reference, tensors, arguments)
    visits_all = what != "value" or seen == "all"
    rows = torch.ones(2, N, dtype=torch.bool) if visits_all else visible[:, KEY].expand(2, N)
    torch.testing.assert_close(
        actual["out"][0][rows], expected["out"][0][rows], equal_nan=True, rtol=1e-4, atol=1e-4
    )
    for name, exact in expected.items():
        assert actual[name][exact.isfinite()].isfinite().all(), name


@each_dtype
@pytest.mark.parametrize("by", [math.nan, math.inf], ids=str)
def test_a_gradient_that_is_not_finite_stays_in_its_row(dtype, by):
    tensors, arguments = SQUARE.but(is_causal=True).build(dtype)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    out = fused(*leaves, **arguments)
    grad_out = torch.ones_like(out)
    grad_out[:, :, ROW] = by
    query, key, value = torch.autograd.grad(out, leaves, grad_out)
    others = torch.arange(N) != ROW
    assert not query[:, :, ROW].isfinite().any()
    assert query[:, :, others].isfinite().all()
    for grad in (key, value):
        assert not grad[:, :, : ROW + 1].isfinite().any()
        assert grad[:, :, ROW + 6 :].isfinite().all()


REFUSED = {
    "dropout_p": ({"dropout_p": 0.5}, torch.float32),
    "query": ({}, torch.float64),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_it_lacks_by_name_and_auto_does_it(name):
    more, dtype = REFUSED[name]
    tensors, arguments = SQUARE.build(dtype)
    with pytest.raises(NotImplementedError, match=name):
        sigmoid_attention(*tensors, **arguments, **more, impl="cpu")
    torch.manual_seed(0)
    chosen = sigmoid_attention(*tensors, **arguments, **more)
    torch.manual_seed(0)
    expected = sigmoid_attention(*tensors, **arguments, **more, impl="reference")
    torch.testing.assert_close(chosen, expected, rtol=0, atol=0)


def test_refuses_where_there_is_no_kernel_and_auto_goes_on(monkeypatch):
    tensors, arguments = SQUARE.build(torch.float32)
    monkeypatch.setattr(abi, "loaded", lambda: None)
    with pytest.raises(NotImplementedError, match="no CPU kernel"):
        fused(*tensors, **arguments)
    assert torch.equal(
        sigmoid_attention(*tensors, **arguments), by_reference(*tensors, **arguments)
    )


@each_dtype
def test_auto_takes_the_kernel(dtype):
    tensors, arguments = SQUARE.build(dtype)
    with cut(48, 1):
        assert torch.equal(sigmoid_attention(*tensors, **arguments), fused(*tensors, **arguments))
    assert not torch.equal(fused(*tensors, **arguments), by_reference(*tensors, **arguments))


@each_dtype
def test_logits_of_ten_thousand_give_open_and_closed_gates(dtype):
    """And gradients that are finite."""
    (_, _, value), arguments = SQUARE.but(scale=1.0, bias="-2.0").build(dtype)
    query = torch.full((1, 2, N, 4), 50.0, dtype=dtype)
    for key, expected in (
        (query, value.float().sum(2, keepdim=True).expand(value.shape)),
        (-query, torch.zeros(value.shape)),
    ):
        actual = differentiated(fused, (query, key, value), arguments)
        torch.testing.assert_close(actual["out"], expected.to(dtype))
        assert all(part.isfinite().all() for part in actual.values())
