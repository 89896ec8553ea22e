"""What a sweep shows: a bar over all tasks on a terminal, now and then a line elsewhere."""

import time
from typing import Self

from rich.console import Console

from sigmoid_attention.lab.progress import WorkProgress

SECONDS_BETWEEN_LINES = 10.0


class SweepProgress(WorkProgress):
    """Counts tasks as they are finished, several of them at once, and the work that is in them.

    Example:
        >>> with SweepProgress(total=10.0, tasks=1, console=Console(quiet=True)) as progress:
        ...     progress.finish("nguyen2024_table, sigmoid relu dense, late", work=10.0)
    """

    def __init__(self, total: float, tasks: int, console: Console) -> None:
        super().__init__(total, console, first=f"0/{tasks} tasks")
        self._tasks = tasks
        self._work, self._finished = 0.0, 0

    def __enter__(self) -> Self:
        super().__enter__()
        self._last_line = self._started
        self._bar.refresh()
        return self

    def finish(self, label: str, work: float) -> None:
        """The task of this label, with its share of the work, is finished."""
        self._work += work
        self._finished += 1
        said = f"{self._finished}/{self._tasks} {label}"
        self._draw(self._work, said)
        now = time.monotonic()
        late = now - self._last_line > SECONDS_BETWEEN_LINES
        if not self._console.is_terminal and (late or self._finished == self._tasks):
            self._last_line = now
            left = self._left(self._work)
            self._console.print(f"{said}{left and f': {left}'}", highlight=False)
