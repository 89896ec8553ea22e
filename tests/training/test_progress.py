"""Progress on standard error: a bar on a terminal, lines elsewhere."""

import io
import threading

import pytest
from rich.console import Console

from sigmoid_attention.training import progress as progress_module
from sigmoid_attention.training.progress import StepProgress, StudyProgress, SweepProgress


def test_without_a_terminal_the_last_step_makes_a_line(capsys):
    with StepProgress("sigmoid, seed 2", 0, 3, 64, shown=True) as bar:
        for done in (1, 2, 3):
            bar.update(done, 5.0 - done)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("sigmoid, seed 2: step 3/3  loss 2.0000") and "tokens/s" in err


def test_the_loss_is_shown_in_the_chosen_unit(capsys):
    for factor, message in ((None, "loss 2.0000 nats/token"), (1.5, "loss 3.0000 bits/byte")):
        with StepProgress("train", 0, 1, 64, factor, shown=True) as bar:
            bar.update(1, 2.0)
        assert message in capsys.readouterr().err


def test_a_terminal_shows_no_loss_before_the_first_step(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with StepProgress("train", 0, 2, 64, shown=True) as bar:
        bar.update(1, 2.0)
    err = capsys.readouterr().err
    assert "nan" not in err and "0 tokens/s" not in err.partition("loss")[0]


def test_lines_come_at_intervals(capsys, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: float(next(clock)))
    with StepProgress("train", 10, 20, 50, shown=True) as bar:
        for done in range(11, 20):
            bar.update(done, 1.0)
    lines = capsys.readouterr().err.splitlines()
    # Every third update is 12 s after the last line: 3 steps of 50 tokens in 12 s.
    assert [line.split()[2] for line in lines] == ["13/20", "16/20", "19/20"]
    assert "12 tokens/s  28 s left" in lines[0]


def test_not_shown_is_silent(capsys):
    with StepProgress("train", 0, 1, 64, shown=False) as bar:
        bar.update(1, 5.0)
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets by hand."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def test_a_study_prints_a_line_for_each_unit(clock):
    shown = io.StringIO()
    with StudyProgress(total=40, units=2, console=Console(file=shown, width=80)) as progress:
        progress.begin("first", work=10)
        clock.now += 30
        progress.advance(0.9)
        progress.end()
        progress.begin("second", work=30)
        clock.now += 90
        progress.end()
    assert shown.getvalue().splitlines() == [
        "1/2 first: 30 s, about 1 min 30 s left",
        "2/2 second: 90 s",
    ]


def test_time_left_counts_the_additional_seconds(clock):
    shown = io.StringIO()
    console = Console(file=shown, width=80)
    with StudyProgress(total=30, units=3, console=console, seconds=13) as progress:
        for label, work, seconds in (("first", 10, 0), ("timed", 10, 6), ("last", 10, 7)):
            progress.begin(label, work, seconds)
            clock.now += 10
            progress.end()
    assert shown.getvalue().splitlines() == [
        "1/3 first: 10 s, about 33 s left",
        "2/3 timed: 10 s, about 17 s left",
        "3/3 last: 10 s",
    ]


def test_a_study_draws_a_bar_without_a_thread(clock):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    threads = threading.active_count()
    with StudyProgress(total=100, units=1, console=console) as progress:
        progress.begin("only", work=100)
        assert threading.active_count() == threads
        clock.now += 20
        progress.advance(0.25)
        progress.end()
    assert "1/1 only" in shown.getvalue() and "25%" in shown.getvalue()
    assert "about 1 min 00 s left" in shown.getvalue()


def test_there_is_no_estimate_at_the_beginning(clock):
    shown = io.StringIO()
    with StudyProgress(total=1000, units=2, console=Console(file=shown)) as progress:
        progress.begin("first", work=1)
        clock.now += 50
        progress.end()
    assert shown.getvalue() == "1/2 first: 50 s\n"


def test_a_sweep_prints_a_line_every_ten_seconds_and_the_last(clock):
    shown = io.StringIO()
    console = Console(file=shown, width=80)
    with SweepProgress(total=40.0, units=4, console=console) as progress:
        for label, seconds in (("a", 4), ("b", 7), ("c", 3), ("d", 1)):
            clock.now += seconds
            progress.finish(label, work=10.0)
    assert shown.getvalue().splitlines() == ["2/4 b: about 11 s left", "4/4 d"]


def test_a_sweep_draws_a_bar_over_the_work(clock):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    with SweepProgress(total=40.0, units=2, console=console) as progress:
        assert "0/2 tasks" in shown.getvalue()
        clock.now += 20
        progress.finish("first", work=10.0)
    assert "1/2 first" in shown.getvalue() and "25%" in shown.getvalue()
    assert "about 1 min 00 s left" in shown.getvalue()
