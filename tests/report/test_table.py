"""How a row of the summary is read: by its interval, the direction that is better, and its kind."""

import math

import pytest

from sigmoid_attention.report.table import gain_reading, reading, summary_table
from sigmoid_attention.studies.results import Fusion, Gain, Interval, SummaryRow

ARM = Interval(0.8, 0.7, 0.9, 3)
LOW = Interval(0.2, 0.1, 0.3, 3)
NOTHING = Interval(math.nan, math.nan, math.nan, 0)


def row(apart: Interval, *, lower=True, kind="difference", sigmoid=ARM, softmax=ARM) -> SummaryRow:
    metric, unit = (
        ("validation_bits_per_byte", "bits/byte") if lower else ("recall_accuracy", "fraction")
    )
    return SummaryRow(metric, "A metric", unit, -1, lower, softmax, sigmoid, apart, kind)


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
            row(Interval(0.0, -0.1, 0.1, 3), lower=False, sigmoid=LOW, softmax=LOW),
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
    ],
)
def test_reading(summary, arm, words, why):
    found = reading(summary)
    assert found[:2] == (arm, words)
    assert why in found[2]


def test_text_that_byte_pairs_explain_tells_nothing():
    summary = row(Interval(0.2, 0.1, 0.3, 3))
    assert reading(summary, baseline=0.7)[:2] == ("", "Tells nothing")
    assert reading(summary, baseline=0.9)[:2] == ("softmax", "Softmax better")


def test_a_label_is_only_text():
    apart = Interval(0.2, 0.1, 0.3, 3)
    labelled = SummaryRow("m", "<i>a</i>", "<u>", -1, True, ARM, ARM, apart, "difference")
    table = summary_table([labelled])
    assert "&lt;i&gt;a&lt;/i&gt;" in table
    assert "<i>" not in table and "<u>" not in table


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
    assert gain_reading(Gain("m", "M", -1, ARM, ARM, ratio)) == (words, why)


@pytest.mark.parametrize("gained", [True, False])
def test_the_operators_words_and_labels_are_only_text(gained):
    gains = [Gain("m", "<i>m</i>", -1, ARM, ARM, LOW)] if gained else []
    summary = [row(Interval(0.2, 0.1, 0.3, 3))]
    table = summary_table(summary, Fusion("<i>a kernel</i>", gains))
    assert "&lt;i&gt;" in table and "<i>" not in table
