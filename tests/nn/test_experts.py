"""Experts against token-by-token loops in float64: values, gradients, and uneven loads."""

import pytest
import torch

from sigmoid_attention.nn import Experts
from tests.support.moe_oracle import expert, mixture

# (tokens, experts, top_k, dim, hidden): odd sizes, more experts than visits, one of everything.
SHAPES = [(5, 4, 2, 3, 7), (3, 11, 2, 5, 2), (1, 2, 1, 1, 1), (9, 3, 3, 4, 5)]
each_shape = pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda s: "T{}-E{}-K{}-C{}-F{}".format(*s)
)
each_kind = pytest.mark.parametrize("kind", ["swiglu", "gelu"])


def drawn(shape, kind, dtype=torch.float64):
    tokens, count, top_k, dim, hidden = shape
    experts = Experts(count, dim, hidden, kind=kind).to(dtype)
    x = torch.randn(tokens, dim, dtype=dtype)
    visits = torch.rand(tokens, count).topk(top_k).indices
    return experts, x, visits, torch.randn(tokens, top_k, dtype=dtype)


@each_shape
@each_kind
def test_values_and_gradients_are_those_of_loops(shape, kind):
    experts, x, visits, weights = drawn(shape, kind)
    x.requires_grad_(), weights.requires_grad_()
    leaves = [x, weights, *experts.parameters()]
    y, expected = experts(x, visits, weights), mixture(experts, x, visits, weights)
    torch.testing.assert_close(y, expected)
    direction = torch.randn_like(y)
    gradients = torch.autograd.grad(y, leaves, direction)
    theirs = torch.autograd.grad(expected, leaves, direction)
    torch.testing.assert_close(gradients, theirs)


@each_shape
@each_kind
def test_dense_visits_all_with_a_weight_each(shape, kind):
    experts, x, _, _ = drawn(shape, kind)
    weights = torch.randn(len(x), shape[1], dtype=torch.float64)
    all_of_them = torch.arange(shape[1]).expand(len(x), -1)
    torch.testing.assert_close(experts.dense(x, weights), mixture(experts, x, all_of_them, weights))
    torch.testing.assert_close(experts(x, all_of_them, weights), experts.dense(x, weights))
    torch.testing.assert_close(experts.each(x)[-1, 0], expert(experts, shape[1] - 1, x[0]))


def test_no_token_is_dropped_when_all_go_to_one_expert():
    experts, x, _, _ = drawn((50, 4, 1, 3, 5), "swiglu")
    visits = torch.full((50, 1), 2)
    y = experts(x, visits, torch.ones(50, 1, dtype=torch.float64))
    torch.testing.assert_close(y, experts.each(x)[2])
    y.sum().backward()
    empty = [experts.down.grad[e].abs().sum().item() for e in (0, 1, 3)]
    assert empty == [0, 0, 0] and experts.down.grad[2].abs().sum() > 0


def test_no_tokens_at_all():
    experts = Experts(3, 4, 5)
    y = experts(torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2))
    assert y.shape == (0, 4)


def test_low_precision_is_summed_over_experts_in_float32():
    """Thirty-two experts of nearly cancelling weights: a sum in bfloat16 would lose most digits."""
    experts, x, _, _ = drawn((6, 32, 32, 8, 4), "swiglu", torch.bfloat16)
    visits = torch.arange(32).expand(6, -1)
    weights = torch.linspace(-1, 1, 32).expand(6, -1)
    y = experts(x, visits, weights)
    rounded = experts.each(x).double()
    expected = torch.einsum("te,etc->tc", weights.double(), rounded)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-6)


def test_autocast_multiplies_in_its_dtype_and_returns_the_tokens_own():
    experts, x, visits, weights = drawn((5, 4, 2, 3, 7), "swiglu", torch.float32)
    exact = experts(x, visits, weights)
    with torch.autocast("cpu", torch.bfloat16):
        y = experts(x, visits, weights)
    assert y.dtype == torch.float32
    assert not torch.equal(y, exact)
    torch.testing.assert_close(y, exact, rtol=0.05, atol=0.05)


@pytest.mark.compile
def test_compiled_for_any_number_of_tokens():
    experts, x, visits, weights = drawn((6, 4, 2, 3, 5), "swiglu", torch.float32)
    compiled = torch.compile(experts, fullgraph=True, backend="aot_eager")
    for tokens in (6, 5, 4):
        y = compiled(x[:tokens], visits[:tokens], weights[:tokens])
        torch.testing.assert_close(y, experts(x[:tokens], visits[:tokens], weights[:tokens]))
    y.square().sum().backward()
    gradient = experts.down.grad.clone()
    experts.zero_grad()
    experts(x[:4], visits[:4], weights[:4]).square().sum().backward()
    torch.testing.assert_close(gradient, experts.down.grad)


def test_the_same_bits_every_time():
    experts, x, visits, weights = drawn((40, 5, 3, 8, 16), "swiglu", torch.float32)

    def run():
        leaf = x.clone().requires_grad_()
        y = experts(leaf, visits, weights)
        return [y, *torch.autograd.grad(y.square().sum(), [leaf, *experts.parameters()])]

    first = run()
    assert all(torch.equal(a, b) for _ in range(3) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize(
    "x, experts, weights, sentence",
    [
        ((5, 4), (5, 2), (5, 2), r"x must be \(tokens, 3\), got \(5, 4\)"),
        ((1, 5, 3), (5, 2), (5, 2), r"x must be \(tokens, 3\), got \(1, 5, 3\)"),
        ((5, 3), (4, 2), (4, 2), r"must both be \(5, visits\), got \(4, 2\) and \(4, 2\)"),
        ((5, 3), (5, 2), (5, 1), r"must both be \(5, visits\), got \(5, 2\) and \(5, 1\)"),
        ((5, 3), (5,), (5,), r"must both be \(5, visits\), got \(5,\) and \(5,\)"),
    ],
    ids=str,
)
def test_other_shapes_are_refused(x, experts, weights, sentence):
    with pytest.raises(ValueError, match=sentence):
        Experts(4, 3, 5)(torch.zeros(x), torch.zeros(experts).long(), torch.zeros(weights))


def test_visits_to_experts_that_are_not_there_are_refused():
    visits = torch.tensor([[0, 4], [3, 5]])
    with pytest.raises(ValueError, match="2 visits are to experts beyond the last, 3"):
        Experts(4, 3, 5)(torch.zeros(2, 3), visits, torch.zeros(2, 2))


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(experts=0), "experts must be positive, got 0"),
        (dict(dim=-1), "dim must be positive, got -1"),
        (dict(hidden=0), "hidden must be positive, got 0"),
        (dict(kind="relu"), r"kind must be one of \('swiglu', 'gelu'\), got 'relu'"),
    ],
    ids=str,
)
def test_bad_sizes_and_kinds_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Experts(**{"experts": 2, "dim": 3, "hidden": 4, **change})
