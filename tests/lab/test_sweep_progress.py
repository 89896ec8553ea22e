"""What a sweep shows: a bar over all tasks, or a line now and then."""

import io

import pytest
from rich.console import Console

from sigmoid_attention.lab import progress as shared
from sigmoid_attention.lab import sweep_progress as module
from sigmoid_attention.lab.sweep_progress import SweepProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets by hand."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    for one in (shared, module):
        monkeypatch.setattr(one, "time", clock)
    return clock


def test_elsewhere_than_on_a_terminal_a_line_every_ten_seconds_and_the_last(clock):
    shown = io.StringIO()
    console = Console(file=shown, width=80)
    with SweepProgress(total=40.0, tasks=4, console=console) as progress:
        for label, seconds in (("a", 4), ("b", 7), ("c", 3), ("d", 1)):
            clock.now += seconds
            progress.finish(label, work=10.0)
    assert shown.getvalue().splitlines() == ["2/4 b: about 11 s left", "4/4 d"]


def test_on_a_terminal_a_bar_over_the_work(clock):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    with SweepProgress(total=40.0, tasks=2, console=console) as progress:
        assert "0/2 tasks" in shown.getvalue()
        clock.now += 20
        progress.finish("first", work=10.0)
    assert "1/2 first" in shown.getvalue() and "25%" in shown.getvalue()
    assert "about 1 min 00 s left" in shown.getvalue()
