"""What the compiler makes of the shipped configurations: registers, spills, instructions.

These are no timings. But a kernel that spills, loses its warp-group products or takes an
instruction more for each score is slower on any GPU, and that is caught here, without one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from sigmoid_attention.attention.triton import operator
from tests.attention.cross_compile import Code, Compiled
from tests.attention.triton.shipped import A100, H200, L40S, Launch, launches

KEYS = 2048
SLOPES = torch.tensor([0.5, 0.25])


def call(
    dim: int, dtype: torch.dtype = torch.bfloat16, *, causal_slopes: bool = False
) -> Callable[[], None]:
    """Forward and backward of a dense call with 2 heads."""
    query = torch.zeros(1, 2, KEYS, dim, dtype=dtype)
    slopes, right = (SLOPES, 0) if causal_slopes else (None, -1)
    arguments = (
        query, query, query, None, None, slopes, None,
        (KEYS, KEYS, False, -1, right, True), (dim**-0.5, 0.0, -7.6, 2.0**-9),
    )  # fmt: skip

    def both() -> None:
        operator._forward(*arguments)
        operator._backward(query, False, False, causal_slopes, *arguments)

    return both


@dataclass(frozen=True)
class Budget:
    """At most so many registers, and for each score so many instructions and special functions.

    Counted is the inner loop, which has no mask; where a plan decides between both forms of the
    sigmoid, it holds both. ``spills`` are those within loops, ``outside`` those before and behind.
    """

    registers: int
    instructions: float
    special: float = 2.0
    spills: int = 0
    outside: int = 0


BUDGETS = {
    "H200-bf16-64": (H200, call(64), Budget(160, 6.6), Budget(255, 13.2)),
    "H200-bf16-128": (H200, call(128), Budget(200, 6.5), Budget(255, 17.5, outside=50)),
    "H200-bf16-64-causal-slopes": (
        H200,
        call(64, causal_slopes=True),
        Budget(240, 11.8, 3.0),
        Budget(255, 22.0, 3.0, outside=80),
    ),
    "H200-bf16-128-causal-slopes": (
        H200,
        call(128, causal_slopes=True),
        Budget(255, 12.0, 3.0),
        Budget(255, 33.0, 3.0, spills=14, outside=150),
    ),
    "H200-bf16-256": (
        H200,
        call(256),
        Budget(240, 9.5),
        Budget(255, 52.0, 4.0, outside=60),
    ),
    "H200-fp16-128": (
        H200,
        call(128, torch.float16),
        Budget(200, 6.5),
        Budget(255, 19.5, outside=50),
    ),
    "H200-fp32-64": (
        H200,
        call(64, torch.float32),
        Budget(232, 33.5),
        Budget(255, 108.0, 3.0, spills=64, outside=96),
    ),
    "A100-bf16-128": (A100, call(128), Budget(208, 13.1), Budget(255, 35.5, outside=12)),
    "L40S-bf16-128": (
        L40S,
        call(128),
        Budget(255, 14.6),
        Budget(255, 41.5, spills=14, outside=12),
    ),
}
each_call = pytest.mark.parametrize(
    "device, function, forward, backward", BUDGETS.values(), ids=BUDGETS.keys()
)


@cache
def compiled(device, function) -> dict[str, tuple[Launch, Compiled]]:
    """Every kernel of a call; what has no tile of scores, and so no loop to count, included."""
    return {
        name: (launch, launch.compiled(device))
        for name, launch in launches(device, function).items()
    }


def innermost(launch: Launch, kernel: Compiled, product: str) -> Code:
    """The loop without masks, which is the shortest."""
    return min(kernel.inner(product), key=len)


@each_call
def test_kernels_stay_within_their_budgets(device, function, forward, backward):
    product = "HGMMA" if device is H200 else "HMMA"
    for name, budget in (("forward", forward), ("backward", backward)):
        launch, kernel = compiled(device, function)[name]
        scores, warps = launch.scores(), kernel.num_warps
        loop = innermost(launch, kernel, product)
        in_loops = sum(each.spills for each in kernel.inner(product))
        assert kernel.registers <= budget.registers, name
        assert in_loops <= budget.spills, name
        assert kernel.spills - in_loops <= budget.outside, name
        assert kernel.shared <= device.shared, name
        assert loop.per_score(scores, warps) <= budget.instructions, name
        assert loop.per_score(scores, warps, "MUFU") <= budget.special, name


@each_call
def test_loads_are_wide_and_products_are_the_tensor_cores(device, function, forward, backward):
    product = "HGMMA" if device is H200 else "HMMA"
    for name, products in (("forward", 2), ("backward", 5)):
        _, kernel = compiled(device, function)[name]
        loops = kernel.inner(product)
        assert loops and all(loop.count(product) >= products for loop in loops), name
        assert all(loop.count("LDG") == 0 for loop in loops if loop.count("LDGSTS")), name


def test_a_plan_spills_nothing():
    kernels = compiled(H200, BUDGETS["H200-bf16-128-causal-slopes"][1])
    for name in ("norms", "bound", "settle"):
        assert kernels[name][1].spills == 0, name
        assert kernels[name][1].registers <= 128, name
