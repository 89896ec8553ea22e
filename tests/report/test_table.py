"""The tables: the cells of a row, and labels as plain text."""

import dataclasses
import math
import re

import pytest

from sigmoid_attention.lab.statistics import Interval
from sigmoid_attention.report.table import cells, fused_table, summary_table
from sigmoid_attention.studies.compare.results import Gain, Solved, SummaryRow

ARM = Interval(0.8, 0.7, 0.9, 3)
APART = Interval(0.2, 0.1, 0.3, 3)


def row(**changes) -> SummaryRow:
    plain = SummaryRow(
        "recall_accuracy", "A metric", "fraction", -1, False, ARM, ARM, APART, "difference"
    )
    return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        (row(), ("80.0%", "80.0%", "+20 points", "+10 to +30")),
        (row(solved=Solved(2, 2, 2, 4)), ("2 of 4", "2 of 4", "0 seeds", "")),
        (row(solved=Solved(3, 1, 1, 4)), ("3 of 4", "1 of 4", "−2 seeds", "")),
        (row(solved=Solved(0, 1, 0, 1)), ("0 of 1", "1 of 1", "+1 seeds", "")),
        (
            row(unit="seconds", kind="ratio", difference=Interval(0.92, 0.85, 1.0, 9)),
            ("800 ms", "800 ms", "8% faster", "0.920×, 0.850 to 1.000"),
        ),
        (
            row(unit="bytes", kind="ratio", difference=Interval(1.2, math.nan, math.nan, 1)),
            ("1 B", "1 B", "20% more", "1.20×"),
        ),
    ],
)
def test_cells(summary, expected):
    assert cells(summary)[2:] == expected[2:]
    if summary.unit != "bytes":
        assert cells(summary)[:2] == expected[:2]


def test_a_label_is_only_text():
    table = summary_table([row(label="<i>a</i>", silent="<u>")])
    assert "&lt;i&gt;a&lt;/i&gt;" in table
    assert "<i>" not in table and "<u>" not in table
    table = fused_table([Gain("m", "<i>m</i>", -1, ARM, ARM, APART)])
    assert "&lt;i&gt;" in table and "<i>" not in table


def test_a_row_has_its_verdict_in_the_same_cell_as_its_question():
    heads = re.findall(r"<th scope=\"row\">(.*?)</th>", summary_table([row()]), re.DOTALL)
    (head,) = heads
    assert "A metric" in head and "Sigmoid better" in head


@pytest.mark.parametrize(
    ("metric", "group"),
    [
        ("validation_bits_per_byte", "Language modelling"),
        ("bits_after_seen", "Language modelling"),
        ("bits_after_new", "Language modelling"),
        ("copy_accuracy", "Retrieval"),
        ("peak_memory_bytes", "Cost of training"),
        ("operator_forward_seconds", "Cost of the operator alone"),
    ],
)
def test_each_row_stands_in_the_group_of_its_metric(metric, group):
    assert group in summary_table([row(metric=metric)])
