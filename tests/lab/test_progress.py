"""One bar, or a line for each unit, with the time left for all of them."""

import io
import threading

import pytest
from rich.console import Console

from sigmoid_attention.lab import progress as module
from sigmoid_attention.lab.progress import StudyProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets by hand."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_elsewhere_than_on_a_terminal_a_line_for_each_unit(clock):
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


def test_time_left_counts_what_no_extrapolation_sees(clock):
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


def test_on_a_terminal_a_bar_that_no_thread_draws(clock):
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


def test_the_first_moments_promise_nothing(clock):
    shown = io.StringIO()
    with StudyProgress(total=1000, units=2, console=Console(file=shown)) as progress:
        progress.begin("first", work=1)
        clock.now += 50
        progress.end()
    assert shown.getvalue() == "1/2 first: 50 s\n"
