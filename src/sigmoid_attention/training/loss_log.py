"""The losses of a run on the way, as CSV: one line a step, written when the step is done.

A line goes out in one piece, so a killed run loses the line of its current step at most. A run
that is continued drops the lines of the steps that it does again.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple

from sigmoid_attention.training.files import write_whole


class LossRow(NamedTuple):
    """One finished step; losses are in bits a byte, None where nothing was held against it.

    `seconds` are those of training in all sessions together, without tests on held-out text.
    """

    step: int
    tokens: int
    seconds: float
    training_bits_per_byte: float
    heldout_bits_per_byte: float | None
    learning_rate: float

    def line(self) -> str:
        heldout = self.heldout_bits_per_byte
        return (
            f"{self.step},{self.tokens},{self.seconds:.3f},{self.training_bits_per_byte:.6g},"
            f"{'' if heldout is None else f'{heldout:.6g}'},{self.learning_rate:.6g}\n"
        )


HEADER = ",".join(LossRow._fields) + "\n"


class LossLog:
    """Appends to the file `path` while a run goes on; nothing is touched before its first step.

    Example:
        >>> import tempfile
        >>> log = LossLog(Path(tempfile.mkdtemp(), "loss.csv"), tokens_per_step=64)
        >>> log.add(1, 5.5, None, 1e-3)
        >>> log.add(2, 5.25, 5.375, 1e-3)
        >>> [(row.step, row.tokens, row.heldout_bits_per_byte) for row in read_losses(log.path)]
        [(1, 64, None), (2, 128, 5.375)]
    """

    def __init__(self, path: Path, tokens_per_step: int) -> None:
        self.path = path
        self._tokens_per_step = tokens_per_step
        self._before: float | None = None
        self._started = time.perf_counter()

    def pause(self, seconds: float) -> None:
        """Take time that was not spent on training out of the count."""
        self._started += seconds

    def add(self, step: int, training: float, heldout: float | None, lr: float) -> None:
        """Append the line of a finished step."""
        if self._before is None:
            self._before = self._begin(step)
        seconds = self._before + time.perf_counter() - self._started
        row = LossRow(step, step * self._tokens_per_step, seconds, training, heldout, lr)
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, row.line().encode())
        finally:
            os.close(file)

    def _begin(self, first: int) -> float:
        """Leave the header and the lines before step `first`; the seconds that those took."""
        kept = [row for row in read_losses(self.path) if row.step < first]
        write_whole(self.path, (HEADER + "".join(row.line() for row in kept)).encode())
        return kept[-1].seconds if kept else 0.0


def read_losses(path: Path) -> list[LossRow]:
    """The lines of a file, in their order; none if there is no file. Half a line is no line."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines(keepends=True)[1:]:
        parts = line.removesuffix("\n").split(",")
        if len(parts) != len(LossRow._fields) or not line.endswith("\n"):
            continue
        step, tokens, seconds, training, heldout, lr = parts
        tested = float(heldout) if heldout else None
        rows.append(
            LossRow(int(step), int(tokens), float(seconds), float(training), tested, float(lr))
        )
    return rows
