"""Calls of the Triton kernels at sizes that the interpreter runs quickly."""

import math

import torch
from torch import Tensor

from sigmoid_attention.attention import sigmoid_attention
from tests.support.cpu.budgets import normal
from tests.support.cpu.oracle import assert_within_rounding, exactly, sizes
from tests.support.triton.interpreter import Blocks, with_gradients

BLOCKS = Blocks()
SLOPES = torch.tensor([0.5, 0.0625])


def qkv(
    queries: int, keys: int, *, batch=1, heads=2, key_heads=1, dim=16, value_dim=16, dtype=None
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (
        normal(batch, heads, queries, dim),
        normal(batch, key_heads, keys, dim, seed=1),
        normal(batch, key_heads, keys, value_dim, seed=2),
    )
    return tuple(tensor.to(dtype or torch.float32) for tensor in tensors)


def hiding(*shape: int) -> Tensor:
    return normal(*shape).masked_fill(normal(*shape, seed=3) > 1, -math.inf).float()


def check(interpreted, positional, blocks=BLOCKS, *, in_order=False, **arguments) -> None:
    arguments = {"bias": -2.0, "enable_gqa": True} | arguments
    dtype = positional[0].dtype
    actual = interpreted(with_gradients, blocks, positional, arguments, in_order=in_order)
    exact = exactly(sigmoid_attention, positional, arguments)
    assert_within_rounding(actual, exact, sizes(positional, arguments), dtype)


FEATURES = {
    "everything": (qkv(37, 37), {}),
    "causal": (qkv(40, 40), {"is_causal": True}),
    "causal-fewer-queries": (qkv(19, 43), {"is_causal": True}),
    "causal-more-queries": (qkv(43, 19), {"is_causal": True}),
    "causal-one-key-of-the-last-block": (qkv(20, 37), {"is_causal": True}),
    "window": (qkv(43, 50), {"window_size": (18, 5)}),
    "window-left": (qkv(50, 43), {"window_size": (3, -1)}),
    "window-of-one": (qkv(35, 35), {"window_size": (0, 0)}),
    "window-left-without-an-end": (qkv(35, 35), {"window_size": (2**31 - 1, 0)}),
    "window-right-without-an-end": (qkv(35, 35), {"window_size": (5, 2**31 - 1)}),
    "one-head": (qkv(20, 33, heads=1), {}),
    "three-heads-a-key-head-two-batches": (
        qkv(18, 20, batch=2, heads=6, key_heads=2),
        {"is_causal": True},
    ),
    "head-dim-40-value-dim-24": (qkv(33, 21, dim=40, value_dim=24), {}),
    "head-dim-3-value-dim-64": (qkv(17, 34, dim=3, value_dim=64), {"scale": -0.4}),
    "slopes": (qkv(40, 47), {"alibi_slopes": SLOPES}),
    "slopes-causal-of-each-batch": (
        qkv(40, 40, batch=2),
        {"alibi_slopes": torch.stack((SLOPES, SLOPES.flip(0))), "is_causal": True},
    ),
    "slopes-below-zero": (qkv(33, 33), {"alibi_slopes": -SLOPES, "bias": -9.0}),
    "softcap": (qkv(33, 35), {"softcap": 0.8}),
    "softcap-wide": (qkv(20, 35), {"softcap": 30.0}),
    "bias-of-heads": (qkv(20, 33), {"bias": normal(2, 1, 1).float()}),
    "bias-of-rows": (qkv(20, 33, batch=2), {"bias": normal(2, 2, 20, 1).float()}),
    "bias-of-rows-shared": (qkv(20, 33, batch=2), {"bias": normal(20, 1).float()}),
    "bias-of-keys": (qkv(20, 33, batch=2), {"bias": normal(2, 1, 1, 33).float()}),
    "bias-of-pairs": (qkv(20, 33, batch=2), {"bias": normal(2, 2, 20, 33).float()}),
    "bias-of-pairs-shared": (qkv(20, 33, batch=2), {"bias": normal(20, 33).float()}),
    "bias-of-all": (qkv(20, 17), {"bias": torch.tensor(-1.5)}),
    "bias-in-float64": (qkv(20, 17), {"bias": normal(2, 1, 17)}),
    "flags-of-pairs": (qkv(20, 33), {"attn_mask": normal(2, 20, 33) > -0.5}),
    "flags-of-keys": (qkv(20, 33, batch=2), {"attn_mask": normal(2, 1, 1, 33) > 0}),
    "mask-of-pairs-that-hides": (qkv(20, 33), {"attn_mask": hiding(2, 20, 33)}),
    "mask-of-keys-that-hides": (qkv(20, 33, batch=2), {"attn_mask": hiding(2, 1, 1, 33)}),
    "mask-of-rows": (qkv(20, 33), {"attn_mask": normal(20, 1).float()}),
    "mask-and-bias-of-pairs": (
        qkv(20, 33),
        {"attn_mask": hiding(20, 33), "bias": normal(2, 20, 33).float()},
    ),
    "flags-and-bias-of-pairs-K48": (
        qkv(20, 48),
        {"attn_mask": normal(20, 48) > -0.5, "bias": normal(2, 20, 48).float()},
    ),
    "all-at-once": (
        qkv(35, 43, batch=2, heads=4, key_heads=2, dim=24),
        {
            "attn_mask": hiding(2, 1, 35, 43),
            "bias": normal(4, 35, 1).float(),
            "alibi_slopes": SLOPES.repeat(2),
            "window_size": (21, 4),
            "softcap": 3.0,
            "scale": 0.3,
        },
    ),
}
