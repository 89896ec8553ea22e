"""The advice of the comparison, branch by branch, on hand-made summaries."""

import shlex
from pathlib import Path

import pytest

from sigmoid_attention.cli.arguments import CompareOptions, parse
from sigmoid_attention.lab.rows import ROW_SCHEMA
from sigmoid_attention.studies.compare.advice import OTHER_MODELS, advise, seeds_to_decide
from sigmoid_attention.studies.compare.results import Fusion, Gain
from sigmoid_attention.studies.compare.settings import compare_setting
from sigmoid_attention.studies.compare.summary import COURSE
from tests.support.studies.row_tables import table
from tests.support.studies.summary_rows import SAME, around, solved, task, text, unbounded

NO_ROWS = ROW_SCHEMA.empty_table()
FUSED = Fusion("a kernel", [Gain("m", "M", -1, SAME, SAME, SAME)])
OUT = Path("my runs/out")


def course(change):
    """Held-out tests of three seeds whose gap changes by `change` in the second half."""
    rows = []
    for seed in range(3):
        rows += [("softmax", seed, COURSE, step, 256, 3.0) for step in (10, 20)]
        gap = 0.2 + change + 0.001 * seed
        rows += [
            ("sigmoid", seed, COURSE, 10, 256, 3.2),
            ("sigmoid", seed, COURSE, 20, 256, 3 + gap),
        ]
    return table(*rows)


def advised(summary, rows=NO_ROWS, preset="small", fusion=FUSED, **setting):
    return advise(summary, rows, fusion, compare_setting(preset, **setting), OUT)


@pytest.mark.parametrize(
    ("summary", "words", "option"),
    [
        ([], "Train more seeds: 3 are the fewest", "--seeds 4"),
        ([text(unbounded(0.3, 2))], "Train more seeds: 3 are the fewest", "--resume"),
        ([text(SAME, silent="no")], "Train longer, until at least one arm", "--steps 300"),
        ([text(unbounded(0.3, 1), silent="no")], "Train longer, until at least", "--seeds 4"),
        ([text(around(0.02, 0.03))], "about 4 would decide it", "--seeds 4"),
        ([text(around(0.001, 0.3))], "more than 16 seeds would be needed", "--preset medium"),
        ([text(SAME), *solved("recall", 2, 2, 2, 4)], "the same seeds solve it", "--preset medium"),
        ([text(SAME), *solved("recall", 4, 2, 2, 4)], "about 12 would decide it", "--seeds 12"),
        ([text(SAME), *solved("copy", 2, 2, 1, 4)], "Copying is undecided, and more", "medium"),
        ([text(around(0.2, 0.1))], "such as half of it", "--lr 0.005 --softmax-lr 0.01"),
        ([text(around(0.2, 0.1))], "Try ALiBi positions", "--position alibi"),
        ([text(SAME), text(around(0.2, 0.1), 512)], "Try ALiBi positions", "--position alibi"),
        ([text(SAME), *task("copy", SAME, silent="no")], "Neither arm learnt copying", "medium"),
        ([text(SAME)], "Nothing here speaks against sigmoid attention", "--data YOUR_TEXT"),
    ],
)  # fmt: skip
def test_advice(summary, words, option):
    (match,) = [advice for advice in advised(summary) if words in advice.words]
    assert option in match.command


def test_a_gap_that_closes_is_followed_up():
    worse = [text(around(0.2, 0.1))]
    (match,) = [a for a in advised(worse, course(-0.05)) if "closed by 0.049" in a.words]
    assert "--steps" in match.command
    assert not any("closed" in a.words for a in advised(worse, course(+0.05)))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"preset": "tiny"}, "Take the preset small"),
        ({"fusion": Fusion("PyTorch alone", [])}, "without its fused kernel"),
        ({"lr": 0.004, "softmax_lr": 0.01}, "half of it"),
        ({"position": "alibi"}, "ALiBi"),
    ],
)
def test_advice_depends_on_the_setting(case, message):
    summary = (
        [text(SAME, silent="no")] if case.get("preset") == "tiny" else [text(around(0.2, 0.1))]
    )
    given_advice = any(message in advice.words for advice in advised(summary, **case))
    assert given_advice == (message not in ("half of it", "ALiBi"))


def test_advice_ends_with_the_models_that_were_not_compared():
    assert advised([text(SAME)])[-1] == OTHER_MODELS


def test_seeds_to_decide_is_what_the_interval_needs():
    row = text(around(0.05, 0.051))
    assert seeds_to_decide(row) == 4
    # Inside the margin, 0.02, once the interval is narrow enough.
    assert seeds_to_decide(text(around(0.0, 0.03))) == 4
    assert seeds_to_decide(text(around(0.021, 0.5))) is None


@pytest.mark.parametrize(
    "summary", [[text(around(0.2, 0.1))], [text(SAME)], [text(SAME, silent="no")], []]
)
def test_every_command_is_one(summary):
    for advice in advised(summary, course(-0.05), data="my text"):
        if advice.command:
            name, *words = shlex.split(advice.command)
            assert name == "sigmoid-attention"
            options = parse(words)
            assert isinstance(options, CompareOptions)
            assert str(options.out).startswith("my runs/out")
