"""Study of the operations and the memory traffic of attention, counted by formula.

All counts are of one head with n queries and n keys of d channels, without a mask.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from sigmoid_attention.lab.figure import COLOURS, panels
from sigmoid_attention.lab.study import Finding, Results, Row, Study, Task
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED

KINDS = ("sigmoid", "softmax")
PASSES = ("forward", "backward")
LENGTHS = (1024, 4096, 16384)
SHOWN_LENGTH, SHOWN_DIMS = 4096, (64, 128)
# Queries and keys of a block by head dim, forward and backward, in FlashSigmoid and in
# FlashAttention-2, from which it is derived.
BLOCKS = {
    32: ((128, 128), (128, 128)),
    64: ((128, 128), (128, 128)),
    128: ((128, 64), (64, 128)),
    256: ((128, 64), (64, 64)),
}
DIMS = tuple(BLOCKS)
HALF_BYTES, FULL_BYTES = 2, 4
COUNTED_LENGTH = 48
# "Slightly more" and "less" are at most, and at least, this share.
MARGIN = 0.01
FLOPS, BYTES = "up to 1 % more under sigmoid", "at least 1 % less under sigmoid"
CELLS = {
    "flops, plain": FLOPS,
    "flops, fused": FLOPS,
    "bytes, each tensor once": BYTES,
    "bytes, in blocks": BYTES,
}


@dataclass(frozen=True)
class CostSetting:
    """One kind of attention with one head dim."""

    activation: str
    dim: int


@dataclass(frozen=True)
class Flops:
    """Operations: of matrix products, of each score alone, and of what a row has in common.

    An addition, multiplication, comparison, division, exponential or logarithm counts one.
    """

    products: float
    pointwise: float
    rows: float

    @property
    def total(self) -> float:
        return self.products + self.pointwise + self.rows


def plain_flops(kind: str, n: int, d: int, *, backward: bool) -> Flops:
    """Flops of the formula: scores and weights are stored, and softmax subtracts no maximum.

    Forward, a score is scaled; a sigmoid then takes a bias, an exponential, a sum and a division, a
    softmax an exponential and a division, and a sum over the row. Backward,
    dS = scale P (1 - P) dP under a sigmoid and scale P (dP - rowsum(P dP)) under a softmax.
    """
    scores = float(n * n)
    if not backward:
        products = 4 * d * scores
        return Flops(products, *((5 * scores, 0.0) if kind == "sigmoid" else (3 * scores, scores)))
    products = 8 * d * scores
    return Flops(products, *((4 * scores, 0.0) if kind == "sigmoid" else (3 * scores, 2 * scores)))


def fused_flops(kind: str, n: int, d: int, *, backward: bool) -> Flops:
    """Flops of a fused kernel, which never stores a score.

    Forward, softmax compares and adds each score to its row's maximum and sum. After each block of
    keys it rescales the row's output (d + 3), and at the end it divides by the sum and stores the
    log-sum-exp (d + 2). Backward, both compute the scores again (2 n^2 d more). Softmax subtracts
    the stored log-sum-exp in place of a maximum, and needs D = rowsum(dO O) of each row.
    """
    scores = float(n * n)
    if not backward:
        products = 4 * d * scores
        if kind == "sigmoid":
            return Flops(products, 5 * scores, 0.0)
        blocks = -(-n // BLOCKS[d][0][1])
        return Flops(products, 3 * scores, 2 * scores + n * (blocks * (d + 3) + d + 2))
    # Both scale dQ and dK at the end. A sigmoid takes 5 flops again, then P (1 - P) dP.
    products, at_the_end = 10 * d * scores, 2.0 * n * d
    if kind == "sigmoid":
        return Flops(products, 8 * scores + at_the_end, 0.0)
    return Flops(products, 5 * scores + at_the_end, 2.0 * n * d)


def least_bytes(kind: str, n: int, d: int, *, backward: bool) -> float:
    """Bytes to and from memory if a kernel reads and writes each of its tensors once.

    Tensors have 16 bits, sums of rows 32. The backward pass of a softmax has a first kernel that
    reads O and dO and writes D.
    """
    tensor, of_rows = float(HALF_BYTES * n * d), float(FULL_BYTES * n)
    if not backward:
        return 4 * tensor + (of_rows if kind == "softmax" else 0.0)
    return 7 * tensor + (2 * tensor + 3 * of_rows if kind == "softmax" else 0.0)


def block_bytes(kind: str, n: int, d: int, *, backward: bool) -> float:
    """Bytes if nothing stays on chip between two blocks of queries (forward) or keys (backward).

    Forward, each block of queries reads all keys and values. Backward, each block of keys reads all
    queries, dO and, under a softmax, log-sum-exp and D, and adds to dQ in 32 bits.
    """
    tensor, of_rows = float(HALF_BYTES * n * d), float(FULL_BYTES * n)
    (queries, _), (_, keys) = BLOCKS[d]
    if not backward:
        return least_bytes(kind, n, d, backward=False) + (-(-n // queries) - 1) * 2 * tensor
    sums = float(FULL_BYTES * n * d)
    each_block = 2 * tensor + 2 * sums + (2 * of_rows if kind == "softmax" else 0.0)
    # dQ is cleared before, and read and rounded after.
    around = 5 * tensor + 2 * sums + (2 * tensor + of_rows if kind == "softmax" else 0.0)
    return -(-n // keys) * each_block + around


def torch_products(kind: str, n: int, d: int) -> tuple[float, float]:
    """The flops of the plain formula's matrix products by torch, forward and backward."""
    query, key, value = (torch.randn(n, d, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as forward:
        scores = query @ key.T * d**-0.5
        out = (scores.sigmoid() if kind == "sigmoid" else scores.softmax(-1)) @ value
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    return float(forward.get_total_flops()), float(backward.get_total_flops())


def measure(setting: CostSetting) -> Iterator[Row]:
    """All counts for every length, and torch's own count of the plain products over ours."""
    kind, d = setting.activation, setting.dim
    counted = dict(zip(PASSES, torch_products(kind, COUNTED_LENGTH, d), strict=True))
    for name in PASSES:
        backward = name == "backward"
        ours = plain_flops(kind, COUNTED_LENGTH, d, backward=backward).products
        yield Row(f"{name}: torch's products", counted[name] / ours)
        for n in LENGTHS:
            for way, flops in (
                ("plain", plain_flops(kind, n, d, backward=backward)),
                ("fused", fused_flops(kind, n, d, backward=backward)),
            ):
                yield Row(f"{name}: flops, {way}", flops.total, n=n)
                yield Row(f"{name}: flops, {way}, pointwise", flops.pointwise, n=n)
                yield Row(f"{name}: flops, {way}, rows", flops.rows, n=n)
            for way, count in (("each tensor once", least_bytes), ("in blocks", block_bytes)):
                yield Row(f"{name}: bytes, {way}", count(kind, n, d, backward=backward), n=n)


RULE = f"""Counted by formula for one head without a mask, n = {LENGTHS[0]:,} to {LENGTHS[-1]:,},
head dims {DIMS[0]} to {DIMS[-1]}. An addition, multiplication, comparison, division, exponential or
logarithm is one flop. "plain" is the formula with stored scores, its softmax without a maximum;
"fused" a kernel that never stores a score and computes it again in the backward pass. Bytes are of
a fused kernel on 16-bit tensors, with each tensor moved once, or with nothing kept on chip between
two blocks of the published sizes. Flops are *{REPRODUCED}* if sigmoid takes more by at most
{MARGIN:.0%} at every n and head dim, bytes if it moves less by at least {MARGIN:.0%} at every n and
head dim; *{NOT_REPRODUCED}* otherwise. Counts have no spread, so there are no intervals."""


def judge(results: Results) -> list[Finding]:
    """A line for each pass and each way to count."""
    return [
        _finding(results, f"{name}: {cell}", claim)
        for name in PASSES
        for cell, claim in CELLS.items()
    ]


def verdict_of(claim: str, excess: np.ndarray) -> str:
    """The rule, from sigmoid over softmax, less one, at every n and head dim."""
    if claim == FLOPS:
        holds = (excess > 0).all() and (excess <= MARGIN).all()
    else:
        holds = (excess <= -MARGIN).all()
    return REPRODUCED if holds else NOT_REPRODUCED


def _finding(results: Results, quantity: str, claim: str) -> Finding:
    excess = _counts(results, "sigmoid", quantity) / _counts(results, "softmax", quantity) - 1
    index = LENGTHS.index(SHOWN_LENGTH)
    shown = ", ".join(
        f"d = {d}: sigmoid {_amount(results, 'sigmoid', quantity, d)}, "
        f"softmax {_amount(results, 'softmax', quantity, d)} "
        f"({excess[index, DIMS.index(d)]:+.2%})"
        for d in SHOWN_DIMS
    )
    return Finding(
        quantity,
        claim,
        f"n = {SHOWN_LENGTH:,}, {shown}",
        verdict_of(claim, excess),
        f"from {excess.min():+.2%} to {excess.max():+.2%} over all n and d",
        _parts(results, quantity) if claim == FLOPS else "",
    )


def _amount(results: Results, kind: str, quantity: str, d: int) -> str:
    value = _counts(results, kind, quantity)[LENGTHS.index(SHOWN_LENGTH), DIMS.index(d)]
    return f"{value / 1e9:.3f} Gflop" if "flops" in quantity else f"{value / 2**20:.2f} MiB"


def _parts(results: Results, quantity: str) -> str:
    """Flops beyond the products for each score, and torch's count of the products over ours."""
    scores = SHOWN_LENGTH**2
    parts = [
        f"{kind} {_beyond(results, kind, f'{quantity}, pointwise') / scores:.2f} pointwise and "
        f"{_beyond(results, kind, f'{quantity}, rows') / scores:.2f} for rows"
        for kind in KINDS
    ]
    said = f"flops a score beyond products, d = {SHOWN_DIMS[0]}: {'; '.join(parts)}"
    if "plain" not in quantity:
        return said
    name = quantity.partition(":")[0]
    shares = [
        results[kind, f"d = {d}"][0].values(f"{name}: torch's products")[0]
        for kind in KINDS
        for d in DIMS
    ]
    return f"{said}; torch counts {min(shares):.3f} to {max(shares):.3f} of our products"


def _beyond(results: Results, kind: str, quantity: str) -> float:
    counts = _counts(results, kind, quantity)
    return counts[LENGTHS.index(SHOWN_LENGTH), DIMS.index(SHOWN_DIMS[0])]


def _counts(results: Results, kind: str, quantity: str) -> np.ndarray:
    """Counts (lengths, head dims)."""
    return np.stack([results[kind, f"d = {d}"][0].values(quantity) for d in DIMS], axis=1)


def tasks() -> list[Task]:
    """A task for each kind and head dim."""
    return [Task(kind, f"d = {d}", CostSetting(kind, d), measure) for kind in KINDS for d in DIMS]


def draw(results: Results) -> Figure:
    """The flops of fused kernels beyond the products, and what sigmoid moves beside softmax."""
    figure, (*shares, moved) = panels(3)
    index, places = LENGTHS.index(SHOWN_LENGTH), np.arange(len(DIMS))
    for axis, name in zip(shares, PASSES, strict=True):
        for kind, shift in zip(KINDS, (-0.2, 0.2), strict=True):
            total, pointwise, rows = (
                _counts(results, kind, f"{name}: flops, fused{part}")[index]
                for part in ("", ", pointwise", ", rows")
            )
            per_cent = 100 / (total - pointwise - rows)
            axis.bar(
                places + shift, pointwise * per_cent, 0.36,
                color=COLOURS[kind], label=f"{kind}, each score",
            )  # fmt: skip
            axis.bar(
                places + shift, rows * per_cent, 0.36, bottom=pointwise * per_cent,
                color=COLOURS[kind], alpha=0.5, label=f"{kind}, rows" if rows.any() else None,
            )  # fmt: skip
        axis.set(title=f"{name}, fused", ylabel="% of the products' flops", ylim=(0, 5.5))
        for way, style in (("each tensor once", "o-"), ("in blocks", "o--")):
            sigmoid, softmax = (
                _counts(results, kind, f"{name}: bytes, {way}")[index] for kind in KINDS
            )
            moved.plot(places, 100 * (sigmoid / softmax - 1), style, label=f"{name}, {way}")
    moved.set(title=f"bytes, n = {SHOWN_LENGTH:,}", ylabel="sigmoid less softmax, %")
    for axis in (*shares, moved):
        axis.set_xticks(places, [str(d) for d in DIMS])
        axis.set_xlabel("head dim")
        axis.legend()
    return figure


STUDY = Study(
    "attention_cost",
    "Operations and memory traffic of attention",
    "Sigmoid attention takes slightly more floating-point operations than softmax attention, less "
    "than about 1 % more, since matrix products dominate. Its gain is that it has no reductions "
    "over rows and moves fewer bytes.",
    "Ramapuram et al. 2024, section 3.3; the formulas are counted here",
    RULE,
    tasks,
    judge,
    draw,
)
