"""The verdict's rule, branch by branch, on summaries made by hand."""

import math

import pyarrow as pa
import pytest

from sigmoid_attention.studies.results import ROW_SCHEMA, Interval, SummaryRow
from sigmoid_attention.studies.verdict import RULE, judge, learnt, standing

NO_ROWS = ROW_SCHEMA.empty_table()
STEPS = "step_seconds"


def around(mean, half, n=3):
    return Interval(mean, mean - half, mean + half, n)


def unbounded(mean, n):
    return Interval(mean, math.nan, math.nan, n)


def text(difference, length=256, softmax=2.0):
    arm = around(softmax, 0.01)
    return SummaryRow(
        "validation_bits_per_byte", "text", "bits/byte", length, True, arm, arm, difference,
        "difference",
    )  # fmt: skip


def task(name, difference, softmax=0.9, sigmoid=0.9, overall=None):
    def row(metric, apart):
        return SummaryRow(
            metric, name, "fraction", -1, False, around(softmax, 0.01), around(sigmoid, 0.01),
            apart, "difference",
        )  # fmt: skip

    return [
        row(f"{name}_accuracy", difference),
        row(f"{name}_accuracy_over_training", overall or around(-0.2, 0.01)),
    ]


def cost(ratio, metric=STEPS, length=-1):
    arm = around(0.1, 0.01, 9)
    return SummaryRow(metric, "step", "seconds", length, True, arm, arm, ratio, "ratio")


SAME = around(0.0, 0.001)
SAME_COST = around(1.0, 0.01, 9)


def rows(**values):
    table = [
        {**dict.fromkeys(ROW_SCHEMA.names, ""), "arm": "both", "metric": name, "value": value,
         "seed": -1, "step": 70, "length": -1, "layer": -1}
        for name, value in values.items()
    ]  # fmt: skip
    return pa.Table.from_pylist(table, schema=ROW_SCHEMA)


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


def good():
    return [text(SAME), text(SAME, 512), *task("recall", SAME), *task("copy", SAME)]


@pytest.mark.parametrize(
    ("summary", "headline"),
    [
        ([], "No verdict: no run on text has finished in both arms"),
        ([text(unbounded(math.nan, 0))], "No verdict: no run on text has finished in both arms"),
        ([text(unbounded(0.3, 1))], "No verdict: 1 seed gives no interval, 3 would"),
        ([text(unbounded(0.3, 2))], "No verdict: 2 seeds give no interval, 3 would"),
        ([text(SAME, softmax=4.0)],
         "No verdict: neither arm has learnt more of the text than its byte pairs"),
        ([*good(), cost(SAME_COST)],
         "Sigmoid attention is as good here; a training step takes as long"),
        (good(), "Sigmoid attention is as good here; its cost was not measured"),
        ([*good(), cost(around(1.5, 0.1))],
         "Sigmoid attention is as good here; a training step takes 1.50 times as long"),
        ([*good(), cost(around(1.1, 0.2))],
         "Sigmoid attention is as good here; whether a training step takes longer is not decided"),
        ([text(around(0.2, 0.1)), *good()[2:], cost(SAME_COST)],
         "Keep softmax here: sigmoid attention is worse at text; a training step takes as long"),
        ([text(around(0.2, 0.1)), *task("recall", around(-0.3, 0.1)), cost(SAME_COST)],
         "Keep softmax here: sigmoid attention is worse at text and associative recall; "
         "a training step takes as long"),
        # A loss outweighs what is open elsewhere, and what is open outweighs a gain.
        ([text(around(0.1, 0.3)), *task("recall", around(-0.3, 0.1))],
         "Keep softmax here: sigmoid attention is worse at associative recall; "
         "its cost was not measured"),
        ([text(around(-0.2, 0.1)), *task("copy", around(0.1, 0.3), overall=around(0.1, 0.3))],
         "Not decided: the runs differ too much at copying; its cost was not measured"),
        # What the end leaves open is judged by the whole of training.
        ([text(SAME), *task("recall", around(-0.6, 0.7), overall=around(-0.4, 0.1))],
         "Keep softmax here: sigmoid attention is worse at associative recall; "
         "its cost was not measured"),
        # Learnt later but as well in the end is as good.
        ([text(SAME), *task("recall", SAME, overall=around(-0.4, 0.1))],
         "Sigmoid attention is as good here; its cost was not measured"),
        ([text(SAME), text(around(0.3, 0.1), 512)],
         "Sigmoid attention is as good up to the training length, worse beyond it; "
         "its cost was not measured"),
        ([text(around(-0.2, 0.1)), text(SAME, 512)],
         "Sigmoid attention is better here at text; its cost was not measured"),
        # What neither arm learnt is no evidence of anything.
        ([text(SAME), *task("recall", around(-0.3, 0.1), softmax=0.4, sigmoid=0.1)],
         "Sigmoid attention is as good here; its cost was not measured"),
    ],
)  # fmt: skip
def test_headline(summary, headline):
    assert judge(summary, rows(bigram_bits_per_byte=3.5)).headline == headline


def test_paragraph_is_read_off_the_rows():
    summary = [
        text(around(0.031, 0.01)),
        text(around(-0.25, 0.05), 512),
        *task("recall", around(-0.2, 0.1), sigmoid=0.7),
        *task("copy", SAME, softmax=0.2, sigmoid=0.2),
        cost(around(1.4, 0.1)),
        cost(unbounded(1.2, 1), "peak_memory_bytes"),
        cost(around(2.0, 0.1), "operator_training_seconds", 512),
        cost(around(3.0, 0.1), "operator_training_seconds", 2048),
    ]
    measured = rows(bigram_bits_per_byte=3.456, parameters=838_144, train_loss=1.0)
    verdict = judge(summary, measured)
    assert verdict.rule == RULE
    for said in (
        "+0.031 bits a byte against softmax's 2.000 (a table of byte pairs: 3.456)",
        "95% interval +0.021 to +0.041, 3 seeds",
        "−0.250 at 512 tokens (better)",
        "Associative recall: 70.0% right in the end against softmax's 90.0%, learnt later: worse.",
        "Copying: neither arm learnt it (softmax 20%, sigmoid 20%)",
        "a training step takes 1.40 times (1.30 to 1.50) the time",
        "it holds 1.20 times the memory",
        "at 2048 tokens, takes 3.00 times",
        "838,144 parameters after 70 steps",
    ):
        assert said in verdict.paragraph
    assert "no interval" not in verdict.paragraph


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_seeds_say_so(n):
    verdict = judge([text(unbounded(0.3, n))], NO_ROWS)
    assert "interval" in verdict.headline
    assert "nothing here has an interval" in verdict.paragraph


def test_a_task_counts_as_learnt_if_either_arm_learnt_it():
    assert learnt(task("recall", SAME, softmax=0.2, sigmoid=0.6)[0])
    assert not learnt(task("recall", SAME, softmax=0.4, sigmoid=0.3)[0])
