"""The product of queries with the mean of their visible keys: the CPU kernel against float64."""

import pytest
import torch
from torch import Tensor

from sigmoid_attention.attention.impl.cpu.key_means import (
    mean_gradients,
    mean_products,
    next_bias,
)

pytestmark = pytest.mark.usefixtures("kernel")

SCALE = 0.3
# B, H, G, Q, K, D, and the window.
SHAPES = {
    "causal-B2H4G2Q7K7D5": (2, 4, 2, 7, 7, 5, -1, 0),
    "window-H2G1Q5K9D20": (1, 2, 1, 5, 9, 20, 3, 0),
    "more-queries-than-keys": (1, 2, 2, 9, 5, 16, -1, 0),
    "both-sides-D33": (1, 1, 1, 6, 6, 33, 2, 1),
    "no-limit": (1, 1, 1, 6, 6, 33, -1, -1),
    "left-only": (1, 1, 1, 4, 9, 3, 1, -1),
    "right-only": (2, 1, 1, 9, 4, 1, -1, 2),
    "long": (1, 2, 1, 300, 300, 17, 70, 3),
    "no-queries": (1, 2, 1, 0, 3, 4, -1, 0),
    "no-keys": (1, 2, 1, 3, 0, 4, -1, 0),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def drawn(shape, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """Query and key; their memory is in the order of tokens, as layers have it."""
    batch, heads, key_heads, queries, keys, dim, *_ = shape
    chance = torch.Generator().manual_seed(5)
    query = torch.randn(batch, queries, heads, dim, generator=chance)
    key = torch.randn(batch, keys, key_heads, dim, generator=chance) + 1
    return query.transpose(1, 2).to(dtype), key.transpose(1, 2).to(dtype)


def visible(shape) -> Tensor:
    _, _, _, queries, keys, _, left, right = shape
    distance = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if left >= 0:
        seen &= distance <= left
    if right >= 0:
        seen &= distance >= -right
    return seen


def definition(query: Tensor, key: Tensor, shape) -> Tensor:
    seen = visible(shape).to(query.dtype)
    means = seen / seen.sum(-1, keepdim=True).clamp(min=1) @ key
    return SCALE * (query * means.repeat_interleave(shape[1] // shape[2], 1)).sum(-1)


@each_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_and_gradients_equal_the_definition(shape, dtype):
    query, key = (x.requires_grad_() for x in drawn(shape, dtype))
    exact_query, exact_key = (x.detach().double().requires_grad_() for x in (query, key))
    products = mean_products(query, key, SCALE, *shape[6:])
    expected = definition(exact_query, exact_key, shape)
    torch.testing.assert_close(products.double(), expected, rtol=1e-6, atol=1e-6)
    upstream = torch.randn(products.shape, generator=torch.Generator().manual_seed(6))
    gradients = torch.autograd.grad(products, (query, key), upstream)
    exact = torch.autograd.grad(expected, (exact_query, exact_key), upstream.double())
    for gradient, wanted, tensor in zip(gradients, exact, (query, key), strict=True):
        assert gradient.dtype == dtype and gradient.shape == tensor.shape
        tolerance = max(2e-6, torch.finfo(dtype).eps)
        torch.testing.assert_close(gradient.double(), wanted, rtol=tolerance, atol=tolerance)


@each_shape
def test_second_derivatives_equal_those_of_the_definition(shape):
    query, key = (x.requires_grad_() for x in drawn(shape))
    exact_query, exact_key = (x.detach().double().requires_grad_() for x in (query, key))

    def second(products: Tensor, tensors) -> list[Tensor]:
        chance = torch.Generator().manual_seed(7)
        upstream = torch.randn(products.shape, generator=chance).to(products.dtype)
        upstream.requires_grad_()
        first = torch.autograd.grad(products, tensors, upstream, create_graph=True)
        along = [torch.randn(x.shape, generator=chance).to(x.dtype) for x in first]
        return torch.autograd.grad(first, (*tensors, upstream), along)

    actual = second(mean_products(query, key, SCALE, *shape[6:]), (query, key))
    exact = second(definition(exact_query, exact_key, shape), (exact_query, exact_key))
    for gradient, wanted in zip(actual, exact, strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("window", [(-1, 0), (2, 0), (1, 1)], ids=str)
def test_a_key_reaches_only_the_queries_that_see_it(bad, window):
    shape = (1, 1, 1, 9, 9, 4, *window)
    query, key = drawn(shape)
    wrong = key.clone()
    wrong[0, 0, 4, 1] = bad
    products = mean_products(query, wrong, SCALE, *window)
    clean = mean_products(query, key, SCALE, *window)
    sees = visible(shape)[:, 4]
    assert products[0, 0, sees].isnan().all()
    assert products[0, 0, ~sees].equal(clean[0, 0, ~sees])


@pytest.mark.parametrize("window", [(-1, 0), (2, 0), (1, 1)], ids=str)
def test_a_query_reaches_only_the_gradients_of_the_keys_that_it_sees(window):
    shape = (1, 1, 1, 9, 9, 4, *window)
    query, key = drawn(shape)
    upstream = torch.ones(1, 1, 9)
    wrong = query.clone()
    wrong[0, 0, 4, 1] = torch.nan
    _, on_key = mean_gradients(upstream, wrong, key, SCALE, *window)
    _, clean = mean_gradients(upstream, query, key, SCALE, *window)
    seen = visible(shape)[4]
    assert on_key[0, 0, seen].isnan().all()
    torch.testing.assert_close(on_key[0, 0, ~seen], clean[0, 0, ~seen])


def test_a_sliding_sum_keeps_its_digits_behind_large_keys():
    shape = (1, 1, 1, 20_000, 20_000, 8, 31, 0)
    query, key = drawn(shape)
    key[:, :, :100] = 1e6
    products = mean_products(query, key, SCALE, 31, 0)
    sums = torch.nn.functional.pad(key.double().cumsum(-2), (0, 0, 1, 0))
    place = torch.arange(20_000)
    first, stop = (place - 31).clamp(min=0), place + 1
    means = (sums[:, :, stop] - sums[:, :, first]) / (stop - first)[:, None]
    expected = SCALE * (query * means).sum(-1)
    behind = slice(131, None)
    torch.testing.assert_close(
        products[..., behind].double(), expected[..., behind], rtol=1e-6, atol=1e-6
    )


def test_threads_give_the_same_bits():
    query, key = drawn((2, 6, 3, 50, 50, 12, -1, 0))
    threads = torch.get_num_threads()
    try:
        answers = []
        for count in (1, 3):
            torch.set_num_threads(count)
            answers.append(mean_products(query, key, SCALE, -1, 0))
    finally:
        torch.set_num_threads(threads)
    assert answers[0].equal(answers[1])


@pytest.mark.parametrize("leaving", [-1, 0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "sizes", [(2, 4, 2, 5), (1, 3, 1, 33), (3, 1, 1, 16), (0, 2, 2, 4)], ids="BHGD{}".format
)
def test_the_bias_of_a_step_is_its_formula(sizes, dtype, leaving):
    batch, heads, key_heads, dim = sizes
    query, key = drawn((batch, heads, key_heads, 1, 6, dim), dtype)
    # Rows of a larger cache, the last of which ends where its memory ends.
    cache = torch.zeros(batch, key_heads, 7, dim, dtype=dtype)[:, :, 1:]
    cache.copy_(key)
    sums = torch.randn(batch, key_heads, 1, dim, dtype=torch.float64)
    strength, offset = torch.rand(heads), torch.randn(heads)
    before = sums.clone()
    bias = next_bias(query, cache, 5, leaving, sums, strength, offset, SCALE)
    assert bias is not None
    expected = before + key[:, :, 5:].double()
    if leaving >= 0:
        expected = expected - key[:, :, leaving : leaving + 1].double()
    torch.testing.assert_close(sums, expected, atol=1e-12, rtol=0)
    shared = expected.repeat_interleave(heads // key_heads, 1)
    products = SCALE * (query.double() * shared).sum(-1, keepdim=True)
    wanted = offset[:, None, None] - strength[:, None, None] * products
    torch.testing.assert_close(bias, wanted.float(), atol=1e-5, rtol=1e-5)
