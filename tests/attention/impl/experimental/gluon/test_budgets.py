"""Compiler output of the shipped Gluon configurations: a regression here is a slower kernel.

The tests check that no inner loop spills, that a loop has as many waits for products as its source
(the assembler adds a wait to each product if it gives up on asynchronous products), and that the
numbers of special functions and instructions per score stay in their budgets.

Every loop body is compiled, in the kernels that hold most of them. The forward pass has a loop for
each class of tiles, so a kernel with all three classes contains the loops of kernels with fewer.
The backward pass has one loop with a branch for each class. A bias per head is read once an item;
it is tested together with the slopes, whose terms are in the loops.
"""

from dataclasses import dataclass, replace

import pytest

from sigmoid_attention.attention.impl.experimental.gluon import configs
from sigmoid_attention.attention.impl.experimental.gluon.configs import (
    ROWS,
    Backward,
    Features,
    Forward,
)
from tests.support.gluon.kernels import EVERYTHING, PLAIN, compiled

WINDOW, TAILS = replace(PLAIN, window=True), replace(PLAIN, tails=True)


def with_terms(features: Features) -> Features:
    return replace(features, bias=True, slopes=True)


def in_half(features: Features) -> Features:
    return replace(features, shift=15)


@dataclass(frozen=True)
class Loop:
    """At most so many instructions for a score, exactly so many special functions."""

    instructions: float
    special: float


MASKED, FULL, TAIL = Loop(10.7, 2.0), Loop(8.4, 1.5), Loop(6.5, 1.0)
# A distance costs two instructions, the shift of a tail's weights one.
MASKED_FAR, FULL_FAR, TAIL_FAR = Loop(12.6, 2.0), Loop(10.6, 1.5), Loop(8.7, 1.0)
TAIL_FAR_SHIFTED = Loop(9.7, 1.0)


def scores(config: Forward | Backward) -> int:
    """Of a warp group's tile."""
    return ROWS * (config.block_k if isinstance(config, Forward) else config.block_q)


def named(each: int | Features) -> str:
    if isinstance(each, int):
        return f"D{each}"
    return "-".join(name for name, on in vars(each).items() if on) or "plain"


LOOPS = {
    (128, PLAIN): (FULL,),
    (128, WINDOW): (MASKED, FULL),
    (128, EVERYTHING): (MASKED, FULL, TAIL),
    (128, with_terms(EVERYTHING)): (MASKED_FAR, FULL_FAR, TAIL_FAR),
    (128, in_half(with_terms(EVERYTHING))): (MASKED_FAR, FULL_FAR, TAIL_FAR_SHIFTED),
    (64, PLAIN): (FULL,),
    (64, WINDOW): (MASKED, FULL),
    (64, with_terms(WINDOW)): (MASKED_FAR, FULL_FAR),
    (64, EVERYTHING): (MASKED, FULL, TAIL),
    (64, with_terms(EVERYTHING)): (MASKED_FAR, FULL_FAR, TAIL_FAR),
    (64, in_half(with_terms(EVERYTHING))): (MASKED_FAR, FULL_FAR, TAIL_FAR_SHIFTED),
}


@pytest.mark.parametrize(("head_dim", "features"), LOOPS, ids=named)
def test_forward_keeps_its_budget(head_dim: int, features: Features):
    loops = LOOPS[head_dim, features]
    config = configs.forward(head_dim, features)
    kernel = compiled(config, "fp16" if features.shift else "bf16")
    assert kernel.registers == (128 if config.consumers == 3 else 168)
    assert kernel.stack == kernel.spills == 0
    assert kernel.shared <= (177 if head_dim == 64 else 193) * 1024
    # Keys in steps of 16 along the head dim, values in steps of 16 keys.
    products = head_dim // 16 + config.block_k // 16
    actual = kernel.inner("HGMMA")
    assert len(actual) == len(loops) * config.consumers
    for loop, budget in zip(actual, loops * config.consumers, strict=True):
        assert loop.count("HGMMA") == products
        assert loop.count("WARPGROUP.DEPBAR") == 2
        assert loop.per_score(scores(config), 4, "MUFU") == budget.special
        assert loop.per_score(scores(config), 4) <= budget.instructions


@dataclass(frozen=True)
class Branches:
    """Of a loop with a branch for each class: bounds of them all together.

    An item's numbers may wait on the ``stack`` (bytes), and some be ``read`` there in every tile.
    """

    instructions: float
    special: float
    stack: int
    read: int = 0


BRANCHES = {
    (128, PLAIN): Branches(16.9, 1.5, 8),
    (128, with_terms(PLAIN)): Branches(18.9, 1.5, 8),
    (128, TAILS): Branches(20.8, 2.5, 16),
    (128, with_terms(TAILS)): Branches(23.0, 2.5, 24),
    (128, WINDOW): Branches(24.6, 3.5, 16),
    (128, with_terms(WINDOW)): Branches(26.6, 3.5, 40),
    (128, EVERYTHING): Branches(28.3, 4.5, 8),
    (128, with_terms(EVERYTHING)): Branches(33.9, 4.5, 24),
    (64, PLAIN): Branches(13.1, 1.5, 64),
    # configs.py gives slopes without a window a tail, here too.
    (64, with_terms(PLAIN)): Branches(18.8, 2.5, 64),
    (64, TAILS): Branches(16.8, 2.5, 48, 3),
    (64, WINDOW): Branches(20.9, 3.5, 48),
    (64, with_terms(WINDOW)): Branches(22.7, 3.5, 48),
    (64, EVERYTHING): Branches(24.1, 4.5, 40),
    (64, with_terms(EVERYTHING)): Branches(29.1, 4.5, 64, 2),
}


@pytest.mark.parametrize(("head_dim", "features"), BRANCHES, ids=named)
def test_backward_keeps_its_budget(head_dim: int, features: Features):
    config = configs.backward(head_dim, features)
    budget = BRANCHES[head_dim, features]
    kernel = compiled(config)
    assert kernel.registers == 168
    assert kernel.shared <= 193 * 1024
    assert kernel.stack <= budget.stack
    loops = kernel.inner("HGMMA")
    assert len(loops) == 2
    for loop in loops:
        assert loop.spills <= budget.read
        assert loop.count("HGMMA") == 32
        assert loop.count("WARPGROUP.DEPBAR") == 4
        assert loop.count("UTMAREDG.4D.ADD") == 1
        assert loop.per_score(scores(config), 4, "MUFU") == budget.special
        assert loop.per_score(scores(config), 4) <= budget.instructions


def test_slopes_alone_share_the_loop_of_slopes_with_tails():
    for bias in (False, True):
        features = replace(PLAIN, slopes=True, bias=bias)
        planned = replace(features, tails=True)
        assert configs.backward(64, features) == configs.backward(64, planned)
