"""Hand-made rows of a summary, for tests of their evaluation."""

import math
from dataclasses import replace

from sigmoid_attention.lab.statistics import Interval
from sigmoid_attention.studies.compare.results import Solved, SummaryRow

STEPS = "step_seconds"


def around(mean, half, n=3):
    return Interval(mean, mean - half, mean + half, n)


def unbounded(mean, n):
    return Interval(mean, math.nan, math.nan, n)


def text(difference, length=256, silent=""):
    arm = around(2.0, 0.01)
    return SummaryRow(
        "validation_bits_per_byte", "text", "bits/byte", length, True, arm, arm, difference,
        "difference", silent,
    )  # fmt: skip


def task(name, difference, softmax=0.9, sigmoid=0.9, overall=None, silent=""):
    def row(metric, apart):
        return SummaryRow(
            metric, name, "fraction", -1, False, around(softmax, 0.01), around(sigmoid, 0.01),
            apart, "difference", silent,
        )  # fmt: skip

    return [
        row(f"{name}_accuracy", difference),
        row(f"{name}_accuracy_over_training", overall or around(-0.2, 0.01)),
    ]


def solved(name, *counts):
    """An all-or-nothing task: seeds that solved it under softmax, sigmoid, both, and all seeds."""
    return [replace(task(name, around(0.0, 0.9))[0], solved=Solved(*counts))]


def cost(ratio, metric=STEPS, length=-1):
    arm = around(0.1, 0.01, 9)
    return SummaryRow(metric, "step", "seconds", length, True, arm, arm, ratio, "ratio")


SAME = around(0.0, 0.001)
SAME_COST = around(1.0, 0.01, 9)
