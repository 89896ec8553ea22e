"""Rows to questions: pairing, final values, and what only one arm has."""

import math

import pyarrow as pa
import pytest

from sigmoid_attention.studies.results import NONE, ROW_SCHEMA
from sigmoid_attention.studies.summary import summarise, whole_run_peak


def table(*rows):
    names = ("arm", "seed", "metric", "step", "length", "value")
    blank = {**dict.fromkeys(ROW_SCHEMA.names, ""), "layer": NONE}
    listed = [{**blank, **dict(zip(names, row, strict=True))} for row in rows]
    return pa.Table.from_pylist(listed, schema=ROW_SCHEMA)


def losses(arm, length, *values):
    return [
        (arm, seed, "validation_bits_per_byte", NONE, length, v) for seed, v in enumerate(values)
    ]


def only(summary, metric, length=NONE):
    (found,) = [row for row in summary if (row.metric, row.length) == (metric, length)]
    return found


def test_nothing_measured_gives_nothing():
    assert summarise(table()) == []


def test_losses_are_paired_by_seed_whatever_their_order():
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
