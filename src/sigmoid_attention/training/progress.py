"""Shows the progress of long work: a bar on a terminal, lines of text elsewhere.

`StepProgress` counts the steps of one training run. `StudyProgress` and `SweepProgress` count
work, in a unit such as operations, and estimate the remaining time: `StudyProgress` for units that
run one after another, `SweepProgress` for tasks that run in parallel.
"""

import time
from types import TracebackType
from typing import Self

from sigmoid_attention.extras import lab_imports

with lab_imports("sigmoid_attention.training"):
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

from sigmoid_attention.training.terminal import terminal

SECONDS_BETWEEN_DRAWINGS = 0.2
SECONDS_BETWEEN_LINES = 10.0
# Below this share of the work an estimate of the remaining time is too uncertain to show.
FIRST_ESTIMATE = 0.01


class _Bar:
    """A context that shows a bar, on a terminal only; `note` is the text after the bar."""

    def __init__(
        self,
        console: Console,
        label: str,
        total: float,
        *columns: ProgressColumn,
        completed: int = 0,
        auto_refresh: bool = True,
    ) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            *columns,
            console=console,
            auto_refresh=auto_refresh,
            disable=console.quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task(label, total=total, completed=completed, note="")

    def __enter__(self) -> Self:
        self._started = self._last_line = time.monotonic()
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def _print(self, line: str, now: float, *, last: bool) -> None:
        """Without a terminal, print the last line, and otherwise one line every ten seconds."""
        due = last or now - self._last_line > SECONDS_BETWEEN_LINES
        if due and not self._console.is_terminal:
            self._last_line = now
            # Not wrapped, because a log is read line by line.
            self._console.print(line, highlight=False, soft_wrap=True)


class StepProgress(_Bar):
    """Shows loss, tokens per second and remaining time of a training run that starts at `first`.

    The loss is passed in nats per token; with `bits_per_nat` it is shown in bits per byte.

    Example:
        >>> with StepProgress("train", first=0, steps=2, tokens_per_step=64, shown=False) as bar:
        ...     bar.update(1, loss=5.5)
    """

    def __init__(
        self,
        label: str,
        first: int,
        steps: int,
        tokens_per_step: int,
        bits_per_nat: float | None = None,
        *,
        shown: bool,
    ) -> None:
        columns = (
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
        )
        console = terminal(errors=True, quiet=not shown)
        super().__init__(console, label, steps, *columns, completed=first)
        self._label, self._first, self._steps = label, first, steps
        self._factor = bits_per_nat or 1.0
        self._unit = "nats/token" if bits_per_nat is None else "bits/byte"
        self._tokens_per_step = tokens_per_step

    def update(self, done: int, loss: float) -> None:
        """Show that `done` steps are finished, and the loss of the last one."""
        now = time.monotonic()
        speed = (done - self._first) * self._tokens_per_step / max(now - self._started, 1e-9)
        note = f"loss {loss * self._factor:.4f} {self._unit}  {speed:,.0f} tokens/s"
        self._bar.update(self._task, completed=done, note=note)
        left = (self._steps - done) * self._tokens_per_step / speed
        self._print(
            f"{self._label}: step {done}/{self._steps}  {note}  {left:.0f} s left",
            now,
            last=done == self._steps,
        )


class _WorkBar(_Bar):
    """A bar over work, drawn without a thread, because a thread would disturb timings."""

    def __init__(
        self, total: float, units: int, console: Console, label: str, seconds: float = 0.0
    ) -> None:
        columns = (TaskProgressColumn(), TextColumn("{task.fields[note]}"))
        super().__init__(console, label, total, *columns, auto_refresh=False)
        self._total, self._units = total, units
        self._finished_work, self._finished_units, self._seconds_left = 0.0, 0, seconds

    def _draw(self, work: float, label: str) -> None:
        self._bar.update(
            self._task, completed=work, description=label, note=self._left(work), refresh=True
        )

    def _left(self, work: float) -> str:
        elapsed = time.monotonic() - self._started
        return time_left(elapsed, work, self._total, self._seconds_left)


class StudyProgress(_WorkBar):
    """Counts the units of a study, which run one after another; a line for each finished unit.

    The remaining time is extrapolated from the finished work, a rough estimate because units
    differ in kind. `seconds` is time in addition to the work, which is not extrapolated.

    Example:
        >>> with StudyProgress(total=10.0, units=1, console=Console(quiet=True)) as progress:
        ...     progress.begin("text, softmax, seed 0", work=10.0)
        ...     progress.advance(0.5)
        ...     progress.end()
    """

    def __init__(self, total: float, units: int, console: Console, seconds: float = 0.0) -> None:
        super().__init__(total, units, console, "", seconds)

    def begin(self, label: str, work: float, seconds: float = 0.0) -> None:
        """Start a unit of `work`, which takes `seconds` in addition."""
        self._label, self._work, self._seconds = label, work, seconds
        self._unit_started = time.monotonic()
        self._show(self._finished_work)

    def advance(self, share: float) -> None:
        """Set the finished share of the current unit, 0 to 1."""
        if time.monotonic() - self._last_drawing > SECONDS_BETWEEN_DRAWINGS:
            self._show(self._finished_work + share * self._work)

    def end(self) -> None:
        """End the current unit."""
        self._finished_work += self._work
        self._seconds_left -= self._seconds
        self._finished_units += 1
        self._show(self._finished_work)
        now = time.monotonic()
        seconds = f"{now - self._unit_started:.0f} s"
        notes = ", ".join(filter(None, [seconds, self._left(self._finished_work)]))
        self._print(f"{self._finished_units}/{self._units} {self._label}: {notes}", now, last=True)

    def _show(self, work: float) -> None:
        self._last_drawing = time.monotonic()
        number = min(self._finished_units + 1, self._units)
        self._draw(work, f"{number}/{self._units} {self._label}")


class SweepProgress(_WorkBar):
    """Counts finished tasks, several of which run in parallel.

    Example:
        >>> with SweepProgress(total=10.0, units=1, console=Console(quiet=True)) as progress:
        ...     progress.finish("nguyen2024_table, sigmoid relu dense, late", work=10.0)
    """

    def __init__(self, total: float, units: int, console: Console) -> None:
        super().__init__(total, units, console, f"0/{units} tasks")

    def __enter__(self) -> Self:
        super().__enter__()
        self._bar.refresh()
        return self

    def finish(self, label: str, work: float) -> None:
        """Count a finished task with this label and work."""
        self._finished_work += work
        self._finished_units += 1
        label = f"{self._finished_units}/{self._units} {label}"
        self._draw(self._finished_work, label)
        left = self._left(self._finished_work)
        last = self._finished_units == self._units
        self._print(f"{label}{left and f': {left}'}", time.monotonic(), last=last)


def time_left(elapsed: float, done: float, total: float, additional: float = 0.0) -> str:
    """The remaining time in words, extrapolated from the finished work; "" if that is too little.

    `additional` is a time in seconds that does not depend on the speed of the work.

    Example:
        >>> time_left(elapsed=30.0, done=10.0, total=40.0)
        'about 1 min 30 s left'
    """
    if not FIRST_ESTIMATE * total < done < total:
        return ""
    minutes, seconds = divmod(round(elapsed * (total - done) / done + additional), 60)
    return f"about {minutes} min {seconds:02d} s left" if minutes else f"about {seconds} s left"
