"""16-bit masks and biases are read without a copy: results equal those of their float32 copies.

Shape letters: B batch, H heads, Q queries, K keys.
"""

import math

import pytest
import torch

from sigmoid_attention import sigmoid_attention, sigmoid_decode

pytestmark = pytest.mark.usefixtures("kernel")

B, H, Q, K = 2, 3, 201, 333
SHAPES = {
    "QK": (Q, K),
    "BHQK": (B, H, Q, K),
    "B1QK": (B, 1, Q, K),
    "K": (1, 1, 1, K),
    "BHQ1": (B, H, Q, 1),
    "scalar": (1, 1, 1, 1),
}
each_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def random(*sizes: int) -> torch.Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(sum(sizes)))


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Of either sign and any size: subnormal, large, some minus infinity."""
    drawn = (random(*shape) * torch.pow(2.0, random(*shape, 2)[..., 0] * 8 - 6)).to(dtype)
    return drawn.masked_fill(random(*shape, 3)[..., 0] > 1, -math.inf)


def answers(term: torch.Tensor, name: str, dtype: torch.dtype = torch.float32, **settings):
    """Output and gradients of query, key and value."""
    inputs = [x.to(dtype).requires_grad_() for x in (random(B, H, Q, 8), *random(2, B, H, K, 8))]
    arguments = {"bias": -2.0, name: term} | settings
    out = sigmoid_attention(*inputs, impl="cpu", **arguments)
    with torch.no_grad():
        assert sigmoid_attention(*inputs, impl="cpu", **arguments).equal(out)
    return out, *torch.autograd.grad(out.float().square().sum(), inputs)


def assert_equal(some, others):
    for left, right in zip(some, others, strict=True):
        assert left.isfinite().all() and left.equal(right)


@each_dtype
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("name", ["attn_mask", "bias"])
def test_every_number_is_read_as_it_is(name, shape, dtype):
    term = numbers(shape, dtype)
    assert_equal(answers(term, name), answers(term.float(), name))


@each_dtype
@pytest.mark.parametrize("inputs", [torch.float16, torch.bfloat16], ids=str)
def test_beside_inputs_of_16_bits_and_a_window(inputs, dtype):
    mask, settings = numbers((Q, K), dtype), {"is_causal": True, "window_size": (150, 0)}
    assert_equal(
        answers(mask, "attn_mask", inputs, **settings),
        answers(mask.float(), "attn_mask", inputs, **settings),
    )


@each_dtype
def test_a_mask_that_lies_crosswise(dtype):
    mask = numbers((K, Q), dtype).T
    assert_equal(answers(mask, "attn_mask"), answers(mask.float(), "attn_mask"))


@each_dtype
def test_its_own_gradient(dtype):
    mask = numbers((Q, K), dtype)
    grads = []
    for term in (mask, mask.float()):
        term.requires_grad_()
        query, key, value = random(B, H, Q, 8), *random(2, B, H, K, 8)
        out = sigmoid_attention(query, key, value, term, bias=-2.0, impl="cpu")
        grads += torch.autograd.grad(out.square().sum(), term)
    assert grads[0].any() and grads[0].equal(grads[1].to(dtype))


@each_dtype
def test_decoding(dtype):
    bias, used = numbers((B, H, 1, K), dtype), torch.tensor([K, 7])
    query, caches = random(B, H, 1, 8), random(2, B, H, K, 8)
    actual, expected = (
        sigmoid_decode(query, *caches, seqused_k=used, bias=term, impl="cpu", is_causal=True)
        for term in (bias, bias.float())
    )
    assert actual.equal(expected)


@each_dtype
def test_no_copy_of_a_full_mask_is_made(dtype):
    mask = numbers((Q, K), dtype)
    with torch.profiler.profile(profile_memory=True) as profile:
        answers(mask, "attn_mask")
    assert 0 < max(event.cpu_memory_usage for event in profile.events()) < mask.numel() * 4


def test_a_mask_in_double_precision_is_still_read():
    mask = numbers((Q, K), torch.float16)
    assert_equal(answers(mask.double(), "attn_mask"), answers(mask, "attn_mask"))
