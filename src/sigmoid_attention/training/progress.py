"""What a run shows while it trains: a bar on a terminal, now and then a line elsewhere."""

import time
from types import TracebackType
from typing import Self

from sigmoid_attention.extras import lab_imports

with lab_imports("sigmoid_attention.training"):
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )


from sigmoid_attention.training.terminal import terminal

SECONDS_BETWEEN_LINES = 10.0


class StepProgress:
    """Shows loss, tokens a second and time left; `first` is the step that a resumed run starts at.

    The loss comes in nats a token, and is shown in bits a byte if `bits_per_nat` says how.

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
        self._console = terminal(errors=True, quiet=not shown)
        self._label = label
        self._first = first
        self._steps = steps
        self._factor = bits_per_nat or 1.0
        self._unit = "nats/token" if bits_per_nat is None else "bits/byte"
        self._tokens_per_step = tokens_per_step
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}", markup=False),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._bar.add_task(label, total=steps, completed=first, said="")

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

    def update(self, done: int, loss: float) -> None:
        """Say that `done` steps of all are finished, the last one with `loss`."""
        now = time.monotonic()
        speed = (done - self._first) * self._tokens_per_step / max(now - self._started, 1e-9)
        said = f"loss {loss * self._factor:.4f} {self._unit}  {speed:,.0f} tokens/s"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, said=said)
        elif now - self._last_line > SECONDS_BETWEEN_LINES or done == self._steps:
            self._last_line = now
            left = (self._steps - done) * self._tokens_per_step / speed
            # A line stays a line, however long: a log is read by lines.
            self._console.print(
                f"{self._label}: step {done}/{self._steps}  {said}  {left:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )
