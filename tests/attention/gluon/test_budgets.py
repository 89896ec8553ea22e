"""What the compiler makes of the shipped configurations: a regression here is a slower kernel.

No spill in any inner loop; as many waits for products as the source has, since the assembler that
gives up on asynchronous products waits after each; special functions and instructions for a score.
"""

from dataclasses import dataclass, replace

import pytest

from sigmoid_attention.attention.gluon import configs
from sigmoid_attention.attention.gluon.configs import ROWS, Backward, Features, Forward
from tests.attention.gluon.kernels import EVERYTHING, PLAIN, compiled


@dataclass(frozen=True)
class Loop:
    """At most so many instructions for a score, exactly so many special functions."""

    instructions: float
    special: float


MASKED, FULL, TAIL = Loop(10.7, 2.0), Loop(8.4, 1.5), Loop(6.5, 1.0)
WINDOW = replace(PLAIN, window=True)


def scores(config: Forward | Backward) -> int:
    """Of a warp group's tile."""
    return ROWS * (config.block_k if isinstance(config, Forward) else config.block_q)


@pytest.mark.parametrize(
    ("head_dim", "features", "registers", "loops"),
    [
        (128, EVERYTHING, 168, (MASKED, FULL, TAIL)),
        (64, WINDOW, 128, (MASKED, FULL)),
    ],
    ids=["D128-window-planned", "D64-window"],
)
def test_forward_keeps_its_budget(
    head_dim: int, features: Features, registers: int, loops: tuple[Loop, ...]
):
    config = configs.forward(head_dim, features)
    kernel = compiled(config)
    assert kernel.registers == registers
    assert kernel.stack == kernel.spills == 0
    assert kernel.shared <= 227 * 1024
    # Keys in steps of 16 along the head dim, values in steps of 16 keys.
    products = head_dim // 16 + config.block_k // 16
    found = kernel.inner("HGMMA")
    assert len(found) == len(loops) * config.consumers
    for loop, budget in zip(found, loops * config.consumers, strict=True):
        assert loop.count("HGMMA") == products
        assert loop.count("WARPGROUP.DEPBAR") == 2
        assert loop.per_score(scores(config), 4, "MUFU") == budget.special
        assert loop.per_score(scores(config), 4) <= budget.instructions


@pytest.mark.parametrize(("head_dim", "instructions"), [(128, 18.0), (64, 13.8)])
def test_backward_keeps_its_budget(head_dim: int, instructions: float):
    config = configs.backward(head_dim, PLAIN)
    kernel = compiled(config)
    assert kernel.registers == 168
    assert kernel.shared <= 227 * 1024
    # An item's numbers may wait on the stack, a tile's may not.
    assert kernel.spills <= 64
    for loop in kernel.inner("HGMMA"):
        assert loop.spills <= 1
        assert loop.count("HGMMA") == 32
        assert loop.count("WARPGROUP.DEPBAR") == 4
        assert loop.count("UTMAREDG") == 1
        assert loop.per_score(scores(config), 4, "MUFU") == 1.5
        assert loop.per_score(scores(config), 4) <= instructions
    assert len(kernel.inner("HGMMA")) == 2
