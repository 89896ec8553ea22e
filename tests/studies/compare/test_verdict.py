"""The rule for the verdict, branch by branch, on hand-made summaries."""

import math

import pyarrow as pa
import pytest

from sigmoid_attention.lab.rows import ROW_SCHEMA, SIGMOID, SOFTMAX
from sigmoid_attention.studies.compare.standing import RULE
from sigmoid_attention.studies.compare.summary import COURSE
from sigmoid_attention.studies.compare.verdict import ORDER, judge
from tests.support.studies.summary_rows import (
    SAME,
    SAME_COST,
    around,
    cost,
    solved,
    task,
    text,
    unbounded,
)

LEVEL = "Sigmoid attention is level here, within 1% of softmax's loss"
NO_ROWS = ROW_SCHEMA.empty_table()


def rows(**values):
    table = [
        {**dict.fromkeys(ROW_SCHEMA.names, ""), "arm": "both", "metric": name, "value": value,
         "seed": -1, "step": 100, "length": -1, "layer": -1}
        for name, value in values.items()
    ]  # fmt: skip
    return pa.Table.from_pylist(table, schema=ROW_SCHEMA)


def good():
    return [text(SAME), text(SAME, 512), *task("recall", SAME), *task("copy", SAME)]


@pytest.mark.parametrize(
    ("summary", "headline"),
    [
        ([], "No verdict: no run on text has finished in both arms"),
        ([text(unbounded(math.nan, 0))], "No verdict: no run on text has finished in both arms"),
        ([text(unbounded(0.3, 1))], "No verdict: 1 seed gives no interval, 3 would"),
        ([text(unbounded(0.3, 2))], "No verdict: 2 seeds give no interval, 3 would"),
        ([text(SAME, silent="neither arm beats a table of byte pairs")],
         "No verdict: neither arm has learnt more of the text than its byte pairs; "
         "train longer (--steps 400)"),
        ([*good(), cost(SAME_COST)],
         LEVEL + "; a training step takes as long"),
        (good(), LEVEL + "; its cost was not measured"),
        ([*good(), cost(around(1.5, 0.1))],
         LEVEL + "; a training step is 50% slower"),
        ([*good(), cost(around(0.92, 0.02))],
         LEVEL + "; a training step is 8% faster"),
        ([*good(), cost(around(3.4, 0.1))],
         LEVEL + "; a training step takes 3.4 times as long"),
        ([*good(), cost(around(1.1, 0.2))],
         LEVEL + "; whether a training step takes longer is not decided"),
        ([text(around(0.2, 0.1)), *good()[2:], cost(SAME_COST)],
         "Keep softmax here: sigmoid attention is behind at text; a training step takes as long"),
        ([text(around(0.2, 0.1)), *task("recall", around(-0.3, 0.1)), cost(SAME_COST)],
         "Keep softmax here: sigmoid attention is behind at text and associative recall; "
         "a training step takes as long"),
        # A loss outweighs what is open elsewhere, and what is open outweighs a gain.
        ([text(around(0.1, 0.3)), *task("recall", around(-0.3, 0.1))],
         "Keep softmax here: sigmoid attention is behind at associative recall; "
         "its cost was not measured"),
        ([text(around(-0.2, 0.1)), *task("copy", around(0.1, 0.3), overall=around(0.1, 0.3))],
         "Not decided: too few seeds to tell the arms apart at copying; "
         "its cost was not measured"),
        ([text(SAME), *solved("recall", 2, 2, 2, 4)],
         "Not decided: too few seeds to tell the arms apart at associative recall; "
         "its cost was not measured"),
        ([text(SAME), *solved("recall", 7, 1, 1, 8)],
         "Keep softmax here: sigmoid attention is behind at associative recall; "
         "its cost was not measured"),
        # What the end leaves open is judged by the whole of training.
        ([text(SAME), *task("recall", around(-0.6, 0.7), overall=around(-0.4, 0.1))],
         "Keep softmax here: sigmoid attention is behind at associative recall; "
         "its cost was not measured"),
        # Learnt later but as well in the end is level.
        ([text(SAME), *task("recall", SAME, overall=around(-0.4, 0.1))],
         LEVEL + "; its cost was not measured"),
        ([text(SAME), text(around(0.3, 0.1), 512)],
         "Sigmoid attention is level up to the training length, and behind beyond it; "
         "its cost was not measured"),
        ([text(around(-0.2, 0.1)), text(SAME, 512)],
         "Sigmoid attention is ahead here at text; its cost was not measured"),
        # What neither arm learnt is no evidence of anything.
        ([text(SAME), *task("recall", around(-0.3, 0.1), silent="neither arm learnt it")],
         LEVEL + "; its cost was not measured"),
    ],
)  # fmt: skip
def test_headline(summary, headline):
    assert judge(summary, rows(train_loss=1.0, bigram_bits_per_byte=3.5)).headline == headline


def course(gaps_by_seed):
    """Held-out losses during the training: the difference at steps 50 and 100, for each seed."""
    table = [
        {**dict.fromkeys(ROW_SCHEMA.names, ""), "arm": arm, "metric": COURSE, "seed": seed,
         "step": step, "length": 256, "layer": -1, "value": 3.0 + (gap if arm == SIGMOID else 0)}
        for seed, gaps in gaps_by_seed.items()
        for step, gap in zip((50, 100), gaps, strict=True)
        for arm in (SOFTMAX, SIGMOID)
    ]  # fmt: skip
    return pa.Table.from_pylist(table, schema=ROW_SCHEMA)


@pytest.mark.parametrize(
    ("gaps", "closing"),
    [
        ({100: (0.3, 0.2), 101: (0.31, 0.2), 102: (0.3, 0.21)}, True),
        ({100: (0.3, 0.2), 101: (0.2, 0.3), 102: (0.3, 0.21)}, False),
        ({100: (0.2, 0.3), 101: (0.2, 0.31), 102: (0.21, 0.3)}, False),
        ({100: (0.3, 0.2)}, False),
    ],
)
def test_sigmoid_that_is_behind_may_be_closing(gaps, closing):
    behind = [text(around(0.2, 0.1)), *good()[2:]]
    headline = judge(behind, course(gaps)).headline
    words = "behind at text, and closing on text; " if closing else "behind at text; "
    assert headline.startswith(f"Keep softmax here: sigmoid attention is {words}")


MEASURED = rows(bigram_bits_per_byte=3.456, parameters=838_144, train_loss=1.0)


def test_the_paragraph_is_three_sentences_read_off_the_rows():
    summary = [
        text(around(0.031, 0.01)),
        text(around(0.05, 0.01), 512),
        text(around(0.25, 0.05), 1024),
        *task("recall", around(-0.2, 0.1), sigmoid=0.7),
        *task("copy", SAME, silent="neither arm learnt it"),
        cost(around(1.4, 0.1)),
        cost(unbounded(1.2, 1), "peak_memory_bytes"),
        cost(around(2.0, 0.1), "operator_training_seconds", 512),
    ]
    verdict = judge(summary, MEASURED)
    assert (verdict.rule, verdict.order) == (RULE, ORDER)
    assert verdict.paragraph == (
        "Softmax is better on held-out text: sigmoid attention needs 2.000 bits per byte, softmax "
        "2.000 (difference +0.031, 95% interval +0.021 to +0.041). "
        "Beyond the training length: at 512 and 1,024 tokens softmax better; associative recall: "
        "softmax better (70.0% right against 90.0%, learnt later); copying: tells nothing (neither "
        "arm learnt it). "
        "In these models of 838,144 parameters after 100 steps, a training step of the sigmoid arm "
        "is 40% slower and needs 20% more memory."
    )


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ([text(around(-0.2, 0.1))], "Sigmoid is better on held-out text: "),
        ([text(SAME)], "On held-out text the arms are equal within the margin: "),
        ([text(around(0.1, 0.3))], "On held-out text it is undecided: "),
        ([text(unbounded(0.1, 2))], "2.000 (difference +0.100)."),
        ([text(unbounded(math.nan, 0))], "On held-out text the arms cannot be compared."),
        (
            [text(SAME, silent="neither arm beats a table of byte pairs")],
            "Held-out text tells nothing: sigmoid attention needs 2.000 bits per byte, softmax "
            "2.000, and a table of byte pairs 3.456.",
        ),
        (
            solved("recall", 2, 2, 2, 4),
            "Associative recall: undecided (solved by the same 2 of 4 seeds under both arms).",
        ),
        (
            solved("copy", 3, 1, 0, 4),
            "Copying: undecided (solved by 1 of 4 seeds under sigmoid attention, by 3 under "
            "softmax).",
        ),
        (
            [text(SAME), text(SAME, 512), text(around(0.3, 0.1), 1024)],
            "Beyond the training length: at 512 tokens equal within the margin, at 1,024 tokens "
            "softmax better.",
        ),
        (
            [text(SAME), text(SAME, 512, silent="neither arm beats a table of byte pairs")],
            "2.000 (difference +0.000, 95% interval −0.001 to +0.001). These are",
        ),
        (
            [],
            "These are models of 838,144 parameters after 100 steps; their cost was not measured.",
        ),
        ([cost(around(1.1, 0.2))], "sigmoid arm is 10% slower (undecided)."),
    ],
)
def test_the_paragraph_says(summary, message):
    assert message in judge(summary, MEASURED).paragraph


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_seeds_say_so(n):
    assert "no interval" in judge([text(unbounded(0.3, n))], NO_ROWS).headline
