"""The losses on the way: whole lines, each step once, whatever happened to the process."""

import csv
import os

import pytest

from sigmoid_attention.studies.claims.figure import svg
from sigmoid_attention.studies.loss_figure import POINTS, loss_figure
from sigmoid_attention.training.loss_log import LossLog, LossRow, read_losses


def steps(path):
    return [row.step for row in read_losses(path)]


def logged(path, numbers, *, heldout=None):
    log = LossLog(path, tokens_per_step=32)
    for step in numbers:
        log.add(step, 8.0 / step, heldout, 1e-3)
    return log


def test_lines_are_read_back_by_anything_that_reads_csv(tmp_path):
    path = tmp_path / "loss.csv"
    log = LossLog(path, tokens_per_step=32)
    log.add(1, 5.123456789, None, 0.003)
    log.add(2, 4.5, 4.75, 0.0015)
    with open(path, newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first) == list(LossRow._fields)
    assert first["heldout_bits_per_byte"] == "" and second["heldout_bits_per_byte"] == "4.75"
    assert (second["step"], second["tokens"], second["learning_rate"]) == ("2", "64", "0.0015")
    assert float(first["training_bits_per_byte"]) == pytest.approx(5.123456789, rel=1e-5)
    assert 0 <= float(first["seconds"]) <= float(second["seconds"])


@pytest.mark.parametrize("again", [1, 4, 6, 7], ids="resumed at step {}".format)
def test_a_run_that_is_continued_has_each_step_once(tmp_path, again):
    path = tmp_path / "loss.csv"
    logged(path, range(1, 7))
    logged(path, range(again, 10), heldout=1.5)
    assert steps(path) == list(range(1, 10))
    assert [row.step for row in read_losses(path) if row.heldout_bits_per_byte] == list(
        range(again, 10)
    )
    seconds = [row.seconds for row in read_losses(path)]
    assert seconds == sorted(seconds)


def test_nothing_is_touched_before_the_first_step(tmp_path):
    path = tmp_path / "loss.csv"
    LossLog(path, 32)
    assert not path.exists() and read_losses(path) == []
    logged(path, [1, 2])
    before = path.read_bytes()
    LossLog(path, 32)
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_half_a_line_of_a_killed_run_is_no_line(tmp_path, cut):
    path = tmp_path / "loss.csv"
    logged(path, range(1, 5))
    os.truncate(path, path.stat().st_size - cut)
    assert steps(path) == [1, 2, 3]
    logged(path, [4, 5])
    assert steps(path) == [1, 2, 3, 4, 5]


def test_tests_on_held_out_text_are_no_time_of_training(tmp_path):
    log = LossLog(tmp_path / "loss.csv", 32)
    log.pause(-100.0)
    log.add(1, 2.0, None, 1e-3)
    log.pause(60.0)
    log.add(2, 2.0, None, 1e-3)
    first, second = read_losses(log.path)
    assert first.seconds == pytest.approx(100, abs=20)
    assert second.seconds - first.seconds == pytest.approx(-60, abs=20)


@pytest.mark.parametrize("count", [1, 3, 5 * POINTS])
def test_the_curve_has_all_tests_and_few_points(count):
    rows = [
        LossRow(i, i, i, 1.0 + 1 / i, 2.0 if i % 2 else None, 1e-3) for i in range(1, count + 1)
    ]
    figure = loss_figure(rows)
    training, heldout = figure.axes[0].lines
    assert len(training.get_xdata()) <= POINTS
    assert list(heldout.get_xdata()) == list(range(1, count + 1, 2))
    text = svg(figure).decode()
    assert "bits a byte" in text and "held out" in text
