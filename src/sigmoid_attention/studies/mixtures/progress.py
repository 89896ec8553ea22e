"""What a sweep shows: a bar over all tasks on a terminal, now and then a line elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from sigmoid_attention.studies.progress import time_left

SECONDS_BETWEEN_LINES = 10.0


class SweepProgress:
    """Counts tasks as they are finished, several of them at once, and the work that is in them.

    Example:
        >>> with SweepProgress(total=10.0, tasks=1, console=Console(quiet=True)) as progress:
        ...     progress.finish("p2_table, sigmoid relu dense, late", work=10.0)
    """

    def __init__(self, total: float, tasks: int, console: Console) -> None:
        self._total, self._tasks, self._console = total, tasks, console
        self._work, self._finished = 0.0, 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            auto_refresh=False,
            disable=not console.is_terminal,
        )
        self._shown = self._bar.add_task(f"0/{tasks} tasks", total=total, left="")

    def __enter__(self) -> Self:
        self._started = self._last_line = time.monotonic()
        self._bar.start()
        self._bar.refresh()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def finish(self, label: str, work: float) -> None:
        """The task of this label, with its share of the work, is finished."""
        self._work += work
        self._finished += 1
        now = time.monotonic()
        left = time_left(now - self._started, self._work, self._total)
        said = f"{self._finished}/{self._tasks} {label}"
        self._bar.update(
            self._shown, completed=self._work, description=said, left=left, refresh=True
        )
        late = now - self._last_line > SECONDS_BETWEEN_LINES
        if not self._console.is_terminal and (late or self._finished == self._tasks):
            self._last_line = now
            self._console.print(f"{said}{left and f': {left}'}", highlight=False)
