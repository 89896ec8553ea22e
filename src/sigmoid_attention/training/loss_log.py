"""Logs the losses of a run as CSV: one line per step, written when the step is done.

Each line is written by one call, so a killed run loses at most the line of its current step. A
resumed run removes the lines of the steps that it repeats. Each line ends with a checksum, and
lines with a wrong checksum are ignored. At the end of the run the file is corrected to agree with
the losses in the checkpoint.
"""

import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sigmoid_attention.training.files import write_whole
from sigmoid_attention.training.terminal import warn


class LossRow(NamedTuple):
    """One finished step; losses are in bits per byte, the held-out loss None without a test.

    `seconds` is the training time of all sessions together, without tests on held-out text. In
    the row of a lost line, time and learning rate are None.
    """

    step: int
    tokens: int
    seconds: float | None
    training_bits_per_byte: float
    heldout_bits_per_byte: float | None
    learning_rate: float | None

    def line(self) -> str:
        values = ",".join(
            (
                str(self.step),
                str(self.tokens),
                "" if self.seconds is None else f"{self.seconds:.3f}",
                *("" if value is None else f"{value:.6g}" for value in self[3:]),
            )
        )
        return f"{values},{_checksum(values)}\n"


EARLIER = ",".join(LossRow._fields)
HEADER = f"{EARLIER},crc32\n"


class LossLog:
    """Appends to the file `path` during a run; the file is not touched before the first step.

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
        """Exclude time that was not spent on training."""
        self._started += seconds

    def add(self, step: int, training: float, heldout: float | None, lr: float) -> None:
        """Append the line of a finished step."""
        if self._before is None:
            self._before = self._begin(step)
        seconds = self._before + time.perf_counter() - self._started
        row = LossRow(step, step * self._tokens_per_step, seconds, training, heldout, lr)
        # The file may have been removed during the run: `settle` writes it again.
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, row.line().encode())
        finally:
            os.close(file)

    def settle(self, losses: Sequence[float], heldout: float) -> list[LossRow]:
        """Compare the file with the `losses` of all steps, and rewrite it if they disagree.

        `heldout` is the held-out loss after the last step. Returns the rows of all steps.

        Example:
            >>> import tempfile
            >>> log = LossLog(Path(tempfile.mkdtemp(), "loss.csv"), tokens_per_step=64)
            >>> log.add(1, 5.5, None, 1e-3)
            >>> log.add(2, 5.25, 5.375, 1e-3)
            >>> log.settle([5.5, 5.25], 5.375) == read_losses(log.path)
            True
        """
        logged = {row.step: row for row in read_losses(self.path)}
        rows = []
        for step, loss in enumerate(losses, start=1):
            row = LossRow(step, step * self._tokens_per_step, None, loss, None, None)
            there = logged.get(step)
            rows.append(there if there and _agree(there, row) else row)
        lost = sum(row.seconds is None for row in rows)
        if rows[-1].heldout_bits_per_byte is None:
            rows[-1] = rows[-1]._replace(heldout_bits_per_byte=heldout)
        content = (HEADER + "".join(row.line() for row in rows)).encode()
        if not self.path.is_file() or self.path.read_bytes() != content:
            without = f"; {lost} of its {len(rows)} lines are the checkpoint's losses alone"
            warn(
                f"{self.path} is not what this run wrote; it is written again"
                f"{without if lost else ''}"
            )
            write_whole(self.path, content)
        return rows

    def _begin(self, first: int) -> float:
        """Keep the header and the lines before step `first`; return the seconds of these steps."""
        kept = [row for row in read_losses(self.path) if row.step < first]
        write_whole(self.path, (HEADER + "".join(row.line() for row in kept)).encode())
        return max((row.seconds for row in kept if row.seconds is not None), default=0.0)


def read_losses(path: Path) -> list[LossRow]:
    """The rows of a log file in order; none if `path` is not a file.

    Incomplete and damaged lines are skipped. Files of earlier versions have no checksums and
    another header.
    """
    if not path.is_file():
        return []
    # The text after the last line break is an incomplete line. `_row` rejects the header.
    lines = path.read_bytes().decode(errors="replace").split("\n")[:-1]
    rows = (_row(line, sealed=lines[0] != EARLIER) for line in lines)
    return [row for row in rows if row is not None]


def _row(line: str, *, sealed: bool) -> LossRow | None:
    if sealed:
        line, _, checksum = line.rpartition(",")
        if checksum != _checksum(line):
            return None
    try:
        step, tokens, *values = line.split(",")
        seconds, training, heldout, lr = values
        return LossRow(
            *(int(step), int(tokens), _number(seconds)),
            *(float(training), _number(heldout), _number(lr)),
        )
    except ValueError:
        return None


def _number(value: str) -> float | None:
    return float(value) if value else None


def _agree(one: LossRow, other: LossRow) -> bool:
    """Whether two rows have the same tokens and the same training loss to the logged digits."""
    return one.tokens == other.tokens and (
        f"{one.training_bits_per_byte:.6g}" == f"{other.training_bits_per_byte:.6g}"
    )


def _checksum(values: str) -> str:
    return f"{zlib.crc32(values.encode()):08x}"
