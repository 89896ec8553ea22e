"""The loss log: whole lines, each step once, also after a killed process."""

import csv
import os

import pytest

from sigmoid_attention.lab.figure import svg
from sigmoid_attention.lab.loss_figure import POINTS, loss_figure
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
    assert list(first) == [*LossRow._fields, "crc32"]
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


def changed(path, change):
    path.write_bytes(change(path.read_bytes()))


DAMAGE = {
    "training loss": (lambda data: data.replace(b",4,", b",3,", 1), 1),
    "held-out loss": (lambda data: data.replace(b",1.5,", b",1.4,", 1), 1),
    "a byte that is no text": (lambda data: data.replace(b",4,", b",\xff,", 1), 1),
    "a letter": (lambda data: data.replace(b",2,", b",2x,", 1), 1),
    "a missing line": (
        lambda data: b"".join(data.splitlines(True)[:3] + data.splitlines(True)[4:]),
        1,
    ),
    "a line twice": (lambda data: data + data.splitlines(True)[-1], 0),
    "lines in another order": (lambda data: b"".join(sorted(data.splitlines(True))), 0),
    "no header": (lambda data: data.split(b"\n", 1)[1], 0),
    "half a line": (lambda data: data[:-5], 1),
    "empty": (lambda data: b"", 5),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_written_again_from_the_checkpoint(tmp_path, damage, capsys):
    log = logged(tmp_path / "loss.csv", range(1, 6), heldout=1.5)
    change, lost = DAMAGE[damage]
    training = [8.0 / step for step in range(1, 6)]
    intact = log.path.read_bytes()
    assert len(log.settle(training, 1.5)) == 5
    assert log.path.read_bytes() == intact and capsys.readouterr().err == ""
    changed(log.path, change)
    rows = log.settle(training, 1.5)
    told = capsys.readouterr().err
    assert told.count(str(log.path)) == 1 and (f"{lost} of its 5 lines" in told) == (lost > 0)
    assert [row.line() for row in read_losses(log.path)] == [row.line() for row in rows]
    assert steps(log.path) == [1, 2, 3, 4, 5]
    assert [row.training_bits_per_byte for row in rows] == pytest.approx(training, rel=1e-5)
    assert [row.heldout_bits_per_byte for row in rows].count(1.5) == 5 - lost + (
        rows[-1].seconds is None
    )
    assert sum(row.seconds is None for row in rows) == lost


def test_lines_of_another_run_do_not_count(tmp_path, capsys):
    log = logged(tmp_path / "loss.csv", range(1, 4), heldout=1.5)
    assert [row.heldout_bits_per_byte for row in log.settle([7.0, 4.0, 6.0], 2.5)] == [
        None,
        1.5,
        2.5,
    ]
    assert "2 of its 3 lines" in capsys.readouterr().err


def test_a_file_that_is_missing_is_written_again(tmp_path, capsys):
    log = logged(tmp_path / "loss.csv", [1])
    log.path.unlink()
    log.add(2, 4.0, None, 1e-3)
    assert [row.step for row in log.settle([8.0, 4.0], 3.5)] == [1, 2] == steps(log.path)
    assert read_losses(log.path)[1].heldout_bits_per_byte == 3.5
    assert "loss.csv" in capsys.readouterr().err


def test_a_file_of_an_earlier_version_is_read_without_checksums(tmp_path):
    path = tmp_path / "loss.csv"
    path.write_text(",".join(LossRow._fields) + "\n1,32,0.500,8,,0.001\n2,64,1.000,4,4.5,0.001\n")
    assert [row.heldout_bits_per_byte for row in read_losses(path)] == [None, 4.5]
    logged(path, [3])
    assert steps(path) == [1, 2, 3] and read_losses(path)[1].heldout_bits_per_byte == 4.5


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
    assert "bits per byte" in text and "held out" in text


def test_a_pipe_in_its_place_is_no_log(tmp_path):
    path = tmp_path / "loss.csv"
    os.mkfifo(path)
    assert read_losses(path) == []
    log = LossLog(path, 64)
    log.add(1, 5.5, None, 1e-3)
    assert [row.step for row in read_losses(path)] == [1]
