"""Summaries from rows: pairing, final values, and results of a single arm."""

import math

import pytest

from sigmoid_attention.lab.rows import NONE
from sigmoid_attention.studies.compare.results import Solved
from sigmoid_attention.studies.compare.summary import (
    COURSE,
    EQUAL_TIME,
    NO_BETTER_THAN_PAIRS,
    NOT_LEARNT,
    late_change_of_gap,
    summarise,
    whole_run_peak,
)
from tests.support.studies.row_tables import table


def losses(arm, length, *values):
    return [
        (arm, seed, "validation_bits_per_byte", NONE, length, v) for seed, v in enumerate(values)
    ]


def only(summary, metric, length=NONE):
    (actual,) = [row for row in summary if (row.metric, row.length) == (metric, length)]
    return actual


def test_nothing_measured_gives_nothing():
    assert summarise(table()) == []


def test_losses_are_paired_by_seed_in_any_order():
    rows = [*losses("softmax", 64, 2.0, 3.0, 4.0), *losses("sigmoid", 64, 2.5, 3.5, 4.5)]
    row = only(summarise(table(*rows[::-1])), "validation_bits_per_byte", 64)
    assert (row.softmax.mean, row.sigmoid.mean) == (3.0, 3.5)
    assert row.difference.mean == pytest.approx(0.5)
    assert row.difference.high - row.difference.low == pytest.approx(0)
    assert row.kind == "difference" and row.lower_is_better


def test_a_seed_that_only_one_arm_finished_is_not_paired():
    rows = [*losses("softmax", 64, 2.0, 3.0, 4.0), *losses("sigmoid", 64, 2.5, 3.5)]
    row = only(summarise(table(*rows)), "validation_bits_per_byte", 64)
    assert (row.softmax.n, row.sigmoid.n, row.difference.n) == (3, 2, 2)
    assert not row.difference.bounded


def test_lengths_are_questions_of_their_own_in_order():
    rows = [*losses("softmax", 128, 2.0), *losses("softmax", 32, 2.0), *losses("sigmoid", 32, 1.0)]
    summary = summarise(table(*rows))
    assert [row.length for row in summary] == [32, 128]
    assert "(4 n)" in summary[1].label
    assert summary[1].difference.n == 0 and math.isnan(summary[1].difference.mean)


def test_accuracy_is_the_last_test_and_the_mean_of_all():
    curve = {10: 0.2, 20: 0.4, 30: 0.9}
    rows = [("softmax", 0, "recall_accuracy", step, NONE, v) for step, v in curve.items()]
    rows += [("sigmoid", 0, "recall_accuracy", step, NONE, v / 2) for step, v in curve.items()]
    summary = summarise(table(*rows[::-1]))
    final = only(summary, "recall_accuracy")
    assert (final.softmax.mean, final.sigmoid.mean) == (0.9, 0.45)
    assert not final.lower_is_better
    overall = only(summary, "recall_accuracy_over_training")
    assert overall.difference.mean == pytest.approx(-0.25)


def test_times_are_ratios_by_round_and_their_middle():
    slow = [1.0, 1.0, 50.0, 1.0, 1.0, 1.0]
    rows = [("softmax", NONE, "step_seconds", turn, NONE, v) for turn, v in enumerate(slow)]
    rows += [("sigmoid", NONE, "step_seconds", turn, NONE, 3 * v) for turn, v in enumerate(slow)]
    row = only(summarise(table(*rows)), "step_seconds")
    assert row.kind == "ratio"
    assert (row.softmax.mean, row.sigmoid.mean) == (1.0, 3.0)
    assert (row.difference.low, row.difference.mean, row.difference.high) == (3.0, 3.0, 3.0)


def test_what_is_measured_once_has_a_ratio_without_an_interval():
    rows = [
        ("softmax", NONE, "operator_peak_bytes", NONE, 512, 100.0),
        ("sigmoid", NONE, "operator_peak_bytes", NONE, 512, 250.0),
    ]
    row = only(summarise(table(*rows)), "operator_peak_bytes", 512)
    assert row.difference.mean == 2.5 and not row.difference.bounded


def test_the_run_held_what_its_largest_process_held():
    rows = [("both", NONE, "process_peak_bytes", NONE, NONE, v) for v in (5.0, 9.0, 7.0)]
    assert whole_run_peak(table(*rows)) == 9.0
    assert math.isnan(whole_run_peak(table()))


def course(arm, step_of, *values, seed=0):
    return [(arm, seed, COURSE, step_of * (i + 1), 64, value) for i, value in enumerate(values)]


def steps_of(arm, seconds):
    return [(arm, NONE, "step_seconds", turn, NONE, seconds) for turn in range(6)]


def test_at_equal_time_the_slower_arm_is_read_where_it_was():
    rows = [*steps_of("softmax", 0.5), *steps_of("sigmoid", 0.4)]
    for seed in range(3):
        rows += course("softmax", 10, 4.0, 3.0, 2.0, seed=seed)
        rows += course("sigmoid", 10, 4.0, 3.5, 2.5, seed=seed)
    row = only(summarise(table(*rows)), EQUAL_TIME)
    # All 30 steps of sigmoid take 12 s, in which softmax takes 24: between 3.0 and 2.0.
    assert row.label == "Text, at equal training time (12 s each)"
    assert row.softmax.mean == pytest.approx(2.6)
    assert row.sigmoid.mean == pytest.approx(2.5)
    assert row.difference.mean == pytest.approx(-0.1)


@pytest.mark.parametrize("missing", ["step_seconds", COURSE])
def test_without_times_or_tests_on_the_way_nothing_is_compared_at_equal_time(missing):
    rows = [*steps_of("softmax", 0.5), *steps_of("sigmoid", 0.4)]
    rows += course("softmax", 10, 4.0, 3.0) + course("sigmoid", 10, 4.0, 3.5)
    rows = [row for row in rows if row[2] != missing]
    assert EQUAL_TIME not in {row.metric for row in summarise(table(*rows))}


def test_an_arm_that_had_no_test_yet_is_read_at_its_first():
    rows = [*steps_of("softmax", 0.1), *steps_of("sigmoid", 9.0)]
    rows += course("softmax", 10, 4.0, 3.0) + course("sigmoid", 10, 4.5, 3.5)
    assert only(summarise(table(*rows)), EQUAL_TIME).sigmoid.mean == 4.5


def test_the_late_change_of_the_gap_is_paired_by_seed():
    rows = []
    for seed in range(3):
        rows += course("softmax", 10, 4.0, 3.0, 2.5, 2.0, seed=seed)
        rows += course("sigmoid", 10, 5.0, 3.5, 2.8, 2.1 + 0.01 * seed, seed=seed)
    rows += course("sigmoid", 10, 9.0, seed=7)
    change = late_change_of_gap(table(*rows))
    assert change.mean == pytest.approx(-0.39) and change.n == 3
    assert late_change_of_gap(table()).n == 0


def accuracies(arm, *values):
    return [(arm, seed, "recall_accuracy", 30, NONE, v) for seed, v in enumerate(values)]


@pytest.mark.parametrize(
    ("softmax", "sigmoid", "expected"),
    [
        # The outcome of a real run: the same two of four seeds solve it under both arms.
        ((0.23, 1.0, 0.20, 1.0), (0.26, 1.0, 0.25, 1.0), Solved(2, 2, 2, 4)),
        ((1.0, 1.0, 0.95, 1.0), (0.26, 1.0, 0.25, 1.0), Solved(4, 2, 2, 4)),
        ((0.9, 0.49), (0.2, 0.9), Solved(1, 1, 0, 2)),
        # One arm solves it always and the other never: the mean describes both.
        ((1.0, 1.0, 0.95), (0.2, 0.3, 0.2), None),
        # Between half and solved no run fails.
        ((0.95, 0.5, 0.6), (0.95, 0.89, 0.7), None),
        ((0.89, 0.2, 0.6), (0.3, 0.2, 0.1), None),
    ],
    ids=str,
)
def test_all_or_nothing(softmax, sigmoid, expected):
    rows = table(*accuracies("softmax", *softmax), *accuracies("sigmoid", *sigmoid))
    summary = summarise(rows)
    assert only(summary, "recall_accuracy").solved == expected
    over = [row for row in summary if row.metric == "recall_accuracy_over_training"]
    assert bool(over) == (expected is None)


def test_a_task_that_neither_arm_learnt_is_silent():
    rows = table(*accuracies("softmax", 0.2, 0.4), *accuracies("sigmoid", 0.1, 0.3))
    assert {row.silent for row in summarise(rows)} == {NOT_LEARNT}
    rows = table(*accuracies("softmax", 0.5, 0.6), *accuracies("sigmoid", 0.1, 0.3))
    assert {row.silent for row in summarise(rows)} == {""}


def test_text_that_byte_pairs_explain_is_silent():
    losses_of = [*losses("softmax", 64, 2.0, 3.0), *losses("sigmoid", 64, 2.5, 3.5)]
    pairs = ("both", NONE, "bigram_bits_per_byte", NONE, NONE, 2.5)
    (row,) = summarise(table(*losses_of, pairs))
    assert row.silent == NO_BETTER_THAN_PAIRS
    (row,) = summarise(table(*losses_of, (*pairs[:-1], 2.6)))
    assert row.silent == ""
