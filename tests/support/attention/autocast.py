"""The dtypes, implementations and inputs that the tests of autocast share."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sigmoid_attention.attention.impl.cpu import ops as cpu_operator

HALVES = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *HALVES)
both_halves = pytest.mark.parametrize("half", HALVES, ids=["bf16", "fp16"])


def implementations(*names: str):
    """Those of ``names`` that this machine has."""
    missing = pytest.mark.skipif(not cpu_operator.available(), reason="no CPU kernel here")
    return pytest.mark.parametrize(
        "impl", [pytest.param(name, marks=[missing] if name == "cpu" else []) for name in names]
    )


def autocast(half: torch.dtype, on: bool = True) -> torch.autocast:
    return torch.autocast("cpu", half, enabled=on)


def normal(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    chance = torch.Generator().manual_seed(seed + sum(sizes))
    return torch.randn(sizes, generator=chance, dtype=torch.float64).to(dtype)


def qkv(dtype: torch.dtype = torch.float32, *, queries: int = 19, keys: int = 23) -> list[Tensor]:
    shapes = ((2, 4, queries, 8), (2, 2, keys, 8), (2, 2, keys, 5))
    return [2 * normal(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]


def assert_same_bits(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for left, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
