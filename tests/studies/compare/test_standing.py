"""The judgement of one question and its wording: interval, direction, kind, and solved seeds."""

import math

import pytest

from sigmoid_attention.lab.statistics import Interval
from sigmoid_attention.studies.compare.results import Gain, Solved, SummaryRow
from sigmoid_attention.studies.compare.standing import gain_reading, reading, standing
from tests.support.studies.summary_rows import around, cost, task, text, unbounded

ARM = Interval(0.8, 0.7, 0.9, 3)
APART = Interval(0.2, 0.1, 0.3, 3)
NOTHING = Interval(math.nan, math.nan, math.nan, 0)


def row(
    apart: Interval, *, lower=True, kind="difference", sigmoid=ARM, silent="", solved=None
) -> SummaryRow:
    metric, unit = (
        ("validation_bits_per_byte", "bits/byte") if lower else ("recall_accuracy", "fraction")
    )
    return SummaryRow(
        metric, "A metric", unit, -1, lower, ARM, sigmoid, apart, kind, silent, solved
    )


@pytest.mark.parametrize(
    ("summary", "arm", "words", "why"),
    [
        (
            row(Interval(0.2, 0.1, 0.3, 3)),
            "softmax",
            "Softmax better",
            "interval excludes 0, n = 3",
        ),
        (row(Interval(-0.2, -0.3, -0.1, 5)), "sigmoid", "Sigmoid better", "excludes 0, n = 5"),
        (row(Interval(0.2, 0.1, 0.3, 3), lower=False), "sigmoid", "Sigmoid better", "excludes 0"),
        (row(Interval(0.1, -0.1, 0.3, 3)), "", "Undecided", "includes 0"),
        (row(Interval(0.004, 0.001, 0.007, 3)), "", "Equal within the margin", "excludes 0"),
        (row(Interval(0.0, 0.0, 0.0, 3)), "", "Equal within the margin", "n = 3"),
        (row(Interval(0.2, math.nan, math.nan, 1)), "", "Undecided", "measured once"),
        (row(Interval(0.2, math.nan, math.nan, 2)), "", "Undecided", "no interval from n = 2"),
        (row(NOTHING, sigmoid=NOTHING), "", "Cannot be compared", "sigmoid not measured"),
        (row(NOTHING), "", "Cannot be compared", "no seed is in both arms"),
        (
            row(Interval(0.2, 0.1, 0.3, 3), silent="neither arm learnt it"),
            "",
            "Tells nothing",
            "neither arm learnt it",
        ),
        (row(Interval(0.8, 0.7, 0.9, 7), kind="ratio"), "sigmoid", "Sigmoid cheaper", "excludes 1"),
        (row(Interval(1.2, 1.1, 1.3, 7), kind="ratio"), "softmax", "Softmax cheaper", "excludes 1"),
        (row(Interval(1.0, 0.9, 1.3, 7), kind="ratio"), "", "Undecided", "includes 1"),
        (
            row(Interval(1.2, math.nan, math.nan, 1), kind="ratio"),
            "softmax",
            "Softmax cheaper",
            "once",
        ),
        (row(Interval(1.0, math.nan, math.nan, 3), kind="ratio"), "", "Equal", "from n = 3"),
        (row(Interval(1.0, 1.0, 1.0, 6), kind="ratio"), "", "Equal", "n = 6"),
        # Seeds that solved a task: softmax, sigmoid, both, of all.
        (row(APART, solved=Solved(2, 2, 2, 4)), "", "Undecided", "solved by the same 2 of 4 seeds"),
        (
            row(APART, solved=Solved(5, 0, 0, 9)),
            "",
            "Undecided",
            "solved by 5 seeds under softmax alone",
        ),
        (
            row(APART, solved=Solved(8, 2, 2, 9)),
            "softmax",
            "Softmax better",
            "solved by 6 seeds under softmax alone",
        ),
        (
            row(APART, solved=Solved(1, 7, 0, 9)),
            "",
            "Undecided",
            "solved by 1 seed under softmax alone, by 7 seeds under sigmoid alone",
        ),
        (
            row(APART, solved=Solved(0, 6, 0, 6)),
            "sigmoid",
            "Sigmoid better",
            "solved by 6 seeds under sigmoid alone",
        ),
    ],
)
def test_reading(summary, arm, words, why):
    actual = reading(summary)
    assert actual[:2] == (arm, words)
    assert why in actual[2]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # The margin on text is 1% of softmax's 2.0.
        (text(around(0.0, 0.019)), "equal"),
        (text(around(0.01, 0.005)), "equal"),
        (text(around(0.03, 0.02)), "worse"),
        (text(around(-0.03, 0.02)), "better"),
        (text(around(0.01, 0.03)), "undecided"),
        (text(unbounded(0.3, 2)), "undecided"),
        (text(unbounded(math.nan, 0)), "undecided"),
        # Accuracy: 0.05, and more is better.
        (task("recall", around(0.0, 0.04))[0], "equal"),
        (task("recall", around(-0.2, 0.1))[0], "worse"),
        (task("recall", around(0.2, 0.1))[0], "better"),
        (task("recall", around(-0.2, 0.3))[0], "undecided"),
        # Ratios: 5% around one, and a single count is exact.
        (cost(around(1.02, 0.02)), "equal"),
        (cost(around(1.3, 0.1)), "worse"),
        (cost(around(0.7, 0.1)), "better"),
        (cost(around(1.1, 0.2)), "undecided"),
        (cost(unbounded(1.4, 1)), "worse"),
        (cost(unbounded(1.0, 1)), "equal"),
        (cost(unbounded(1.4, 2)), "undecided"),
    ],
)
def test_standing(row, expected):
    assert standing(row) == expected


@pytest.mark.parametrize(
    ("ratio", "words", "why"),
    [
        (Interval(0.6, 0.5, 0.7, 9), "Fused faster", "interval excludes 1, n = 9"),
        (Interval(1.2, 1.1, 1.3, 9), "Fused slower", "interval excludes 1, n = 9"),
        (Interval(0.98, 0.96, 0.99, 9), "Equal within the margin", "interval excludes 1, n = 9"),
        (Interval(0.9, 0.8, 1.2, 9), "Undecided", "interval includes 1, n = 9"),
        (Interval(0.6, math.nan, math.nan, 4), "Undecided", "no interval from n = 4"),
    ],
)
def test_a_gain_is_read_by_the_same_rule(ratio, words, why):
    assert gain_reading(Gain("m", "M", -1, ARM, ARM, ratio))[1:] == (words, why)
