"""The Triton operator against the definition in float64: every feature, forward and backward.

The kernels are interpreted, in fp32 and fp16. In bf16 the interpreter truncates where a GPU rounds,
which doubles the error; the budget there is twice as wide.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim, E value dim.
"""

import pytest
import torch

from tests.support.tiers import sampled
from tests.support.triton.calls import BLOCKS, FEATURES, check, qkv
from tests.support.triton.interpreter import Blocks, under_autocast, with_gradients

# Each feature once; those of DESCRIBED below run in `make test` as well.
SAMPLE = (
    "everything", "causal", "window-left", "three-heads-a-key-head-two-batches", "softcap",
    "bias-of-heads", "bias-of-rows-shared", "flags-of-pairs", "mask-and-bias-of-pairs",
)  # fmt: skip


@pytest.mark.parametrize("positional, arguments", sampled(FEATURES, *SAMPLE))
def test_output_and_gradients_in_fp32(interpreted, positional, arguments):
    check(interpreted, positional, **arguments)


IN_ORDER = ("window", "all-at-once", "bias-of-rows", "bias-of-pairs-shared", "slopes")


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_ORDER)
def test_gradients_in_a_fixed_order(interpreted, name):
    positional, arguments = FEATURES[name]
    check(interpreted, positional, in_order=True, **arguments)


DESCRIBED = (
    "window", "slopes-causal-of-each-batch", "causal-more-queries", "head-dim-40-value-dim-24"
)  # fmt: skip


@pytest.mark.parametrize("name", DESCRIBED)
def test_keys_and_values_by_descriptors(interpreted, name):
    positional, arguments = FEATURES[name]
    check(interpreted, positional, Blocks(described=True), **arguments)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_casts_inputs_of_mixed_dtype_alone(interpreted, half):
    positional, arguments = qkv(20, 33), {"bias": -2.0, "enable_gqa": True, "is_causal": True}
    plain, same, mixed = interpreted(under_autocast, BLOCKS, positional, arguments, half)
    low = tuple(tensor.to(half) for tensor in positional)
    cast = interpreted(with_gradients, BLOCKS, low, arguments)
    for name, expected in plain.items():
        assert torch.equal(same[name], expected)
        assert torch.equal(mixed[name].to(half), cast[name])
    assert mixed["query"].dtype == torch.float32
