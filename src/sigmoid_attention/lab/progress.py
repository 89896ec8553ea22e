"""What a study shows while it works: one bar over all of its work, with the time left for all."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

SECONDS_BETWEEN_LOOKS = 0.2
# Earlier than at this share of the work an estimate would only frighten.
FIRST_ESTIMATE = 0.01


class WorkProgress:
    """A bar over work in any one unit, such as operations; nothing is shown but on a terminal.

    Nothing is drawn from a thread of its own, which would run into what is being timed.
    """

    def __init__(self, total: float, console: Console, first: str) -> None:
        self._total, self._console = total, console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            auto_refresh=False,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(first, total=total, left="")

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def _draw(self, done: float, said: str) -> None:
        self._bar.update(
            self._task, completed=done, description=said, left=self._left(done), refresh=True
        )

    def _left(self, done: float) -> str:
        return time_left(time.monotonic() - self._started, done, self._total)


class StudyProgress(WorkProgress):
    """Counts work over the units of a study, which are done one after the other.

    Time left is what the work so far took, extrapolated: units differ in kind, so it is an
    estimate. `seconds` are what the units take beside their work, which no extrapolation sees. On
    a terminal a bar; elsewhere a line for each finished unit.

    Example:
        >>> with StudyProgress(total=10.0, units=1, console=Console(quiet=True)) as progress:
        ...     progress.begin("text, softmax, seed 0", work=10.0)
        ...     progress.advance(0.5)
        ...     progress.end()
    """

    def __init__(self, total: float, units: int, console: Console, seconds: float = 0.0) -> None:
        super().__init__(total, console, first="")
        self._units = units
        self._finished_work, self._finished_units = 0.0, 0
        self._label, self._work = "", 0.0
        self._seconds_left, self._seconds = seconds, 0.0

    def __enter__(self) -> Self:
        super().__enter__()
        self._looked = self._started
        return self

    def begin(self, label: str, work: float, seconds: float = 0.0) -> None:
        """A unit of `work` starts, which takes `seconds` beside it."""
        self._label, self._work, self._seconds = label, work, seconds
        self._unit_started = time.monotonic()
        self._show(self._finished_work)

    def advance(self, share: float) -> None:
        """This share of the current unit is done, 0 to 1."""
        if time.monotonic() - self._looked > SECONDS_BETWEEN_LOOKS:
            self._show(self._finished_work + share * self._work)

    def end(self) -> None:
        """The current unit is finished."""
        self._finished_work += self._work
        self._seconds_left -= self._seconds
        self._finished_units += 1
        self._show(self._finished_work)
        if not self._console.is_terminal:
            seconds = time.monotonic() - self._unit_started
            said = [f"{seconds:.0f} s", self._left(self._finished_work)]
            self._console.print(
                f"{self._finished_units}/{self._units} {self._label}: "
                f"{', '.join(filter(None, said))}",
                highlight=False,
            )

    def _show(self, done: float) -> None:
        self._looked = time.monotonic()
        number = min(self._finished_units + 1, self._units)
        self._draw(done, f"{number}/{self._units} {self._label}")

    def _left(self, done: float) -> str:
        elapsed = time.monotonic() - self._started
        return time_left(elapsed, done, self._total, self._seconds_left)


def time_left(elapsed: float, done: float, total: float, beside: float = 0.0) -> str:
    """What the work so far took, extrapolated to all of it, in words; "" where it says nothing.

    `beside` are the seconds that what is left takes however fast the work is done.

    Example:
        >>> time_left(elapsed=30.0, done=10.0, total=40.0)
        'about 1 min 30 s left'
    """
    if not FIRST_ESTIMATE * total < done < total:
        return ""
    minutes, seconds = divmod(round(elapsed * (total - done) / done + beside), 60)
    return f"about {minutes} min {seconds:02d} s left" if minutes else f"about {seconds} s left"
