"""Compiler output of the shipped Triton configurations: registers, spills and instructions.

The tests measure no times. A kernel that spills, loses its warp-group products or needs another
instruction for each score is slower on any GPU, and this is detected here without a GPU.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

from sigmoid_attention.attention.impl.triton import configs, ops
from sigmoid_attention.attention.impl.triton.configs import Device
from tests.support.attention.cross_compile import Code, Compiled
from tests.support.triton.shipped import A100, B200, H200, L40S, Launch, launches

KEYS = 2048
SLOPES = torch.tensor([0.5, 0.25])
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


@dataclass(frozen=True)
class Shipped:
    """A configuration: the GPU it is for, what it computes with, and the head dim."""

    device: Device
    dtype: torch.dtype
    dim: int

    def __str__(self) -> str:
        name = {BF16: "bf16", FP16: "fp16", FP32: "fp32"}[self.dtype]
        return f"{self.device.name.split()[-1]}-{name}-{self.dim}"


# A call's kernels: a causal call with slopes is planned, and its backward sums the slopes' gradient
# up; a backward in order computes the queries' gradient in a kernel of its own. Masks and biases of
# every pair have to be read many keys at a time.
FORWARD, PLANNED, BACKWARD, SUMS, IN_ORDER, QUERIES, FLAGS, PAIRS = (
    "forward", "planned", "backward", "sums", "in-order", "queries", "flags", "pairs-backward"
)  # fmt: skip
# The mass takes one addition more for each score.
MASS, MASS_BACKWARD = "mass", "mass-backward"
PRODUCTS = {
    FORWARD: 2, PLANNED: 2, FLAGS: 2, BACKWARD: 5, SUMS: 5, PAIRS: 5, IN_ORDER: 4, QUERIES: 3,
    MASS: 2, MASS_BACKWARD: 5,
}  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """At most so many registers, and for each score so many instructions and special functions.

    Counted is the inner loop, which has no mask; where a plan decides between both forms of the
    sigmoid, it holds both. ``spills`` are those within loops, ``outside`` those before and behind.
    ``narrow``: of a Hopper GPU whose tile has too few rows for a product of warp groups.
    """

    registers: int
    instructions: float
    special: float = 2.0
    spills: int = 0
    outside: int = 0
    narrow: bool = False


BUDGETS: dict[Shipped, dict[str, Budget]] = {
    Shipped(H200, BF16, 64): {
        FORWARD: Budget(155, 6.6),
        PLANNED: Budget(240, 11.9, 3.0),
        BACKWARD: Budget(244, 13.5),
        SUMS: Budget(255, 22.3, 3.0, outside=61),
        IN_ORDER: Budget(255, 11.1),
        QUERIES: Budget(128, 10.3),
        MASS: Budget(192, 7.7),
        MASS_BACKWARD: Budget(255, 15.6, outside=18),
    },
    # Rows of 9 times 16 bytes, in tiles of 128.
    Shipped(H200, BF16, 72): {
        FORWARD: Budget(190, 6.5),
        BACKWARD: Budget(255, 19.3, outside=37),
    },
    Shipped(H200, BF16, 128): {
        FORWARD: Budget(193, 6.6),
        PLANNED: Budget(255, 12.0, 3.0),
        BACKWARD: Budget(255, 18.6, spills=2, outside=41),
        SUMS: Budget(255, 34.9, 3.0, spills=15, outside=86),
        IN_ORDER: Budget(255, 12.8, outside=46),
        QUERIES: Budget(227, 11.5),
        FLAGS: Budget(254, 12.4),
        PAIRS: Budget(255, 20.9, spills=14, outside=139),
        MASS: Budget(252, 7.7),
        MASS_BACKWARD: Budget(255, 22.2, spills=25, outside=112),
    },
    Shipped(H200, BF16, 256): {
        FORWARD: Budget(235, 9.5),
        PLANNED: Budget(255, 14.8, 3.0),
        BACKWARD: Budget(255, 51.8, 4.0, outside=57),
        SUMS: Budget(255, 66.5, 3.0, spills=14, outside=88),
        IN_ORDER: Budget(255, 35.4, 4.0, outside=4),
        QUERIES: Budget(255, 15.2, spills=19, outside=23),
    },
    Shipped(H200, FP16, 128): {
        FORWARD: Budget(193, 6.6),
        BACKWARD: Budget(255, 20.8, spills=10, outside=75),
    },
    Shipped(H200, FP32, 64): {
        FORWARD: Budget(229, 33.2),
        BACKWARD: Budget(255, 104.5, 3.0, spills=10, outside=48),
        SUMS: Budget(255, 113.9, 4.0, spills=126, outside=96),
        IN_ORDER: Budget(246, 70.8, 3.0),
        QUERIES: Budget(222, 59.0, 3.0),
    },
    Shipped(H200, FP32, 128): {
        FORWARD: Budget(255, 49.1, spills=39, outside=39),
        BACKWARD: Budget(255, 290.7, 3.0, spills=172, outside=75),
        SUMS: Budget(255, 321.9, 4.0, spills=290, outside=90),
        IN_ORDER: Budget(255, 234.0, 3.0, spills=64, outside=44, narrow=True),
        QUERIES: Budget(255, 108.2, 3.0, spills=296, outside=233),
    },
    Shipped(A100, BF16, 64): {
        FORWARD: Budget(255, 8.7),
        BACKWARD: Budget(255, 24.9, outside=85),
        SUMS: Budget(255, 36.0, 3.0, spills=115, outside=99),
        IN_ORDER: Budget(255, 16.4, outside=49),
        QUERIES: Budget(139, 14.0),
    },
    Shipped(A100, BF16, 128): {
        FORWARD: Budget(202, 14.0),
        BACKWARD: Budget(255, 35.4, outside=9),
        SUMS: Budget(255, 57.9, 3.0, spills=116, outside=73),
        IN_ORDER: Budget(255, 32.8, spills=360, outside=323),
        QUERIES: Budget(170, 23.5),
    },
    Shipped(A100, BF16, 256): {
        FORWARD: Budget(236, 25.3),
        BACKWARD: Budget(255, 104.0, 4.0, outside=9),
        SUMS: Budget(255, 152.2, 6.0, spills=10, outside=22),
        IN_ORDER: Budget(255, 73.0, 4.0, outside=3),
        QUERIES: Budget(175, 63.5, 4.0),
    },
    Shipped(A100, FP32, 64): {
        FORWARD: Budget(253, 61.5),
        BACKWARD: Budget(255, 165.9, 3.0, outside=29),
    },
    Shipped(A100, FP32, 128): {
        FORWARD: Budget(255, 136.5, spills=2, outside=8),
        BACKWARD: Budget(255, 330.1, 3.0, spills=120, outside=76),
    },
    Shipped(L40S, BF16, 64): {
        FORWARD: Budget(255, 8.8, outside=3),
        BACKWARD: Budget(255, 22.4, outside=14),
        SUMS: Budget(242, 36.0, 3.0),
        IN_ORDER: Budget(255, 15.7),
        QUERIES: Budget(197, 14.0),
    },
    Shipped(L40S, BF16, 128): {
        FORWARD: Budget(254, 15.1),
        BACKWARD: Budget(255, 41.5, spills=12, outside=9),
        SUMS: Budget(255, 58.6, 3.0, spills=51, outside=20),
        IN_ORDER: Budget(251, 28.2),
        QUERIES: Budget(174, 23.8),
    },
    Shipped(L40S, BF16, 256): {
        FORWARD: Budget(146, 42.6, 4.0),
        BACKWARD: Budget(255, 136.3, spills=2, outside=3),
        SUMS: Budget(242, 150.0, 6.0),
        IN_ORDER: Budget(255, 56.1),
        QUERIES: Budget(198, 48.9),
    },
    Shipped(L40S, FP32, 64): {
        FORWARD: Budget(255, 95.1, outside=9),
        BACKWARD: Budget(255, 167.6, 3.0, outside=19),
    },
}


def launched(shipped: Shipped, kind: str) -> dict[str, Launch]:
    """What a dense call with 2 heads launches."""
    query = torch.zeros(1, 2, KEYS, shipped.dim, dtype=shipped.dtype)
    planned = kind in (PLANNED, SUMS)
    slopes, right = (SLOPES, 0) if planned else (None, -1)
    flags = torch.ones(KEYS, KEYS, dtype=torch.bool) if kind == FLAGS else None
    bias = torch.zeros(KEYS, KEYS) if kind == PAIRS else None
    arguments = (
        query, query, query, bias, flags, slopes, None,
        (KEYS, KEYS, False, -1, right, True), (shipped.dim**-0.5, 0.0, -7.6, 2.0**-9),
    )  # fmt: skip

    mass = torch.zeros(1, 2, KEYS, 1) if kind in (MASS, MASS_BACKWARD) else None

    def function() -> Any:
        if kind in (FORWARD, PLANNED, FLAGS, MASS):
            return ops._forward(*arguments, mass=mass)
        return ops._backward(query, False, False, planned, *arguments, grad_mass=mass)

    with in_order(kind in (IN_ORDER, QUERIES)):
        return launches(shipped.device, function)


@contextmanager
def in_order(enabled: bool):
    torch.use_deterministic_algorithms(enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@cache
def compiled(shipped: Shipped, kind: str) -> tuple[Launch, Compiled]:
    forward: tuple[str, ...] = (FORWARD, PLANNED, FLAGS, MASS)
    names = dict.fromkeys(forward, "forward") | {QUERIES: "backward_queries"}
    launch = launched(shipped, kind)[names.get(kind, "backward")]
    return launch, launch.compiled(shipped.device)


def product(shipped: Shipped, kind: str) -> str:
    """The tensor cores' instruction: a warp group's on Hopper, where a tile has rows enough."""
    wide = shipped.device is H200 and not BUDGETS[shipped][kind].narrow
    return "HGMMA" if wide else "HMMA"


each = pytest.mark.parametrize(
    "shipped, kind",
    [(shipped, kind) for shipped, budgets in BUDGETS.items() for kind in budgets],
    ids=lambda part: str(part),
)


@each
def test_kernels_stay_within_their_budgets(shipped: Shipped, kind: str):
    budget, (launch, kernel) = BUDGETS[shipped][kind], compiled(shipped, kind)
    loops = kernel.inner(product(shipped, kind))
    loop, scores, warps = innermost(loops), launch.scores(), kernel.num_warps
    in_loops = sum(each.spills for each in loops)
    assert kernel.registers <= budget.registers
    assert in_loops <= budget.spills
    assert kernel.spills - in_loops <= budget.outside
    assert kernel.shared <= shipped.device.shared
    assert loop.per_score(scores, warps) <= budget.instructions
    assert loop.per_score(scores, warps, "MUFU") <= budget.special


@each
def test_loads_are_wide_and_products_are_the_tensor_cores(shipped: Shipped, kind: str):
    name, (_, kernel) = product(shipped, kind), compiled(shipped, kind)
    loops = kernel.inner(name)
    assert loops and all(loop.count(name) >= PRODUCTS[kind] for loop in loops)
    if kind != MASS_BACKWARD:  # which loads one number for each query
        assert all(loop.count("LDG") == 0 for loop in loops if loop.count("LDGSTS"))


def innermost(loops: tuple[Code, ...]) -> Code:
    """The loop without masks, which is the shortest."""
    return min(loops, key=len)


def test_every_configuration_has_its_budgets():
    """A head dim or a GPU without a budget would not be measured."""
    for device in (H200, A100, L40S):
        for dtype in (BF16, FP32):
            dims = [dim for dim in (64, 128, 256) if dim <= configs.widest(device, dtype)]
            for dim in dims:
                passes = {FORWARD, BACKWARD}
                # In fp32 off Hopper only those: the others compile for seconds each.
                if dtype == BF16 or device is H200:
                    passes |= {SUMS, IN_ORDER, QUERIES}
                assert BUDGETS[Shipped(device, dtype, dim)].keys() >= passes


@pytest.mark.parametrize(
    "device, dim, kernel, types",
    [
        (H200, 128, "forward", (FP32, None)),
        (H200, 128, "forward", (FP64, FP64)),
        (H200, 128, "backward", (FP64, FP64)),
        (A100, 64, "forward", (FP64, FP64)),
        (A100, 64, "backward", (FP64, FP64)),
        (L40S, 64, "forward", (FP64, FP64)),
    ],
)
def test_a_bias_and_a_mask_of_pairs_fit_into_shared_memory(device, dim, kernel, types):
    """The pipeliner keeps them in shared memory: these are the kernels that come nearest to it."""
    query = torch.zeros(1, 1, KEYS, dim, dtype=BF16)
    bias, mask = (
        None if dtype is None else torch.zeros(KEYS, KEYS, dtype=dtype) for dtype in types
    )
    arguments = (
        query, query, query, bias, mask, None, None, (KEYS, KEYS, False, -1, -1, True),
        (1.0, 0.0, -7.6, 0.0),
    )  # fmt: skip

    def function() -> Any:
        if kernel == "forward":
            return ops._forward(*arguments)
        return ops._backward(query, False, False, False, *arguments)

    compiled = launches(device, function)[kernel].compiled(device)
    assert 64 * 1024 < compiled.shared <= device.shared


@pytest.mark.parametrize(
    "dim, kind",
    [(64, SUMS), (128, FORWARD), (128, BACKWARD), (128, SUMS), (256, FORWARD), (256, SUMS)],
)
def test_a_blackwell_gpu_has_room_for_every_product(dim, kind):
    """No budget: its entries were chosen for nothing but that they fit."""
    _, kernel = compiled(Shipped(B200, BF16, dim), kind)
    assert kernel.shared <= B200.shared
    assert kernel.columns <= 512
    assert kernel.columns > 0 or (dim, kind) == (256, SUMS)


def test_a_plan_spills_nothing():
    kernels = launched(Shipped(H200, BF16, 128), SUMS)
    for name in ("norms", "bound_tiles", "make_ranges_monotone"):
        kernel = kernels[name].compiled(H200)
        assert kernel.spills == 0, name
        assert kernel.registers <= 128, name
