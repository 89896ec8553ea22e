"""Hand the plan to a process of its own, unit by unit, and keep what it answers.

New kernels may crash, hang, or leave the device useless. Then the process is ended, the peer whose
turn it was gets a row that says so, and a new process goes on with the others; a peer that has done
so twice is left out from then on. When time is up, what is left waits for the next run.
"""

import json
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.gpu.plan import Unit
from benchmarks.gpu.readings import Reading
from benchmarks.memory import ROOT
from benchmarks.rows import Row

# Nothing takes as long, but for a kernel that waits for itself; compilers take most of it.
PATIENCE = 60.0
# A process imports torch before its first word.
PATIENCE_AT_START = 90.0
# A process that was killed ends at once, but for one that waits in the driver.
PATIENCE_AT_END = 20.0
# Whoever ended the process as often is left out for the rest of the run.
MOST_ENDS = 2

Found = Row | Reading


class Gone(Exception):
    """The measuring process ended, or was ended, before it was done."""


class TimeUp(Exception):
    """The run's time was up before the measuring process was done; it was ended."""


class Stuck(OSError):
    """The measuring process does not end: the device's driver holds it."""


@dataclass
class Worker:
    """The measuring process, started when it is needed; nothing is waited for after `deadline`."""

    command: Sequence[str]
    patience: float = PATIENCE
    deadline: float = float("inf")
    now: Callable[[], float] = time.monotonic
    process: subprocess.Popen | None = None
    lines: queue.Queue = field(default_factory=queue.Queue)
    reader: threading.Thread | None = None

    def ask(self, unit: Unit) -> Iterator[dict[str, Any]]:
        """What it answers.

        Raises:
            Gone: it does not get to the end.
            TimeUp: nor could it before the deadline.
            Stuck: and it cannot be ended.
        """
        patience = least = unit.patience or self.patience
        if self.process is None:
            self._start()
            patience = max(least, PATIENCE_AT_START)
        assert self.process is not None and self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(unit.to_json()) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise Gone(self._last_words()) from None
        while True:
            left = self.deadline - self.now()
            try:
                line = self.lines.get(timeout=max(min(patience, left), 0))
            except queue.Empty:
                self.stop()
                if left < patience:
                    raise TimeUp from None
                raise Gone(f"no answer within {patience:g} s; it was ended") from None
            patience = least
            if line is None:
                raise Gone(self._last_words())
            said = _understood(line)
            if "done" in said:
                return
            if "trouble" in said:
                self.stop()
                raise Gone(said["trouble"])
            if said.keys() & {"trying", "row", "reading"}:
                yield said

    def stop(self) -> None:
        """End the process, if there is one. Raises ``Stuck`` if it does not."""
        if self.process is not None:
            self.process.kill()
            self._close()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.lines = queue.Queue()
        self.reader = threading.Thread(
            target=_follow, args=(self.process.stdout, self.lines), daemon=True
        )
        self.reader.start()

    def _last_words(self) -> str:
        code = self._close()
        return f"the process died of signal {-code}" if code < 0 else f"the process ended ({code})"

    def _close(self) -> int:
        """Wait for the end of a process that is on its way to it; return its exit code."""
        assert self.process is not None and self.reader is not None
        process, self.process = self.process, None
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError):  # nobody reads any more what was left to write
            process.stdin.close()
        try:
            code = process.wait(timeout=PATIENCE_AT_END)
        except subprocess.TimeoutExpired:
            raise Stuck(
                f"the measuring process {process.pid} does not end, the GPU's driver holds it; "
                "what was measured is kept"
            ) from None
        # A process of its own making may still hold the pipe's other end.
        self.reader.join(timeout=PATIENCE_AT_END)
        if not self.reader.is_alive():
            process.stdout.close()
        return code


def _follow(lines: Iterable[str], into: queue.Queue) -> None:
    for line in lines:
        into.put(line)
    into.put(None)


def _understood(line: str) -> dict[str, Any]:
    """What a line says; nothing where somebody else printed it."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def measured(unit: Unit, worker: Worker, ends: Counter[str] | None = None) -> Iterator[Found]:
    """What a unit finds. Whoever ends the process is left out, and the rest is asked for again.

    `ends` counts who ended it how often. Raises ``TimeUp`` and ``Stuck`` as the worker does, the
    latter after the row of whose turn it was.
    """
    ends = Counter() if ends is None else ends
    left = unit
    for peer in (peer for peer, count in ends.items() if count >= MOST_ENDS):
        left = _without(peer, left)
    while left.peers or unit.case is None:
        trying = ""
        try:
            for said in worker.ask(left):
                if "trying" in said:
                    trying = said["trying"]
                    continue
                found = _read(said)
                yield found
                if isinstance(found, Row):
                    left = replace(left, peers=tuple(p for p in left.peers if p != found.peer))
            return
        except (Gone, Stuck) as end:
            if unit.case is None:
                yield Reading(unit.reading, "", refused=str(end))
                return
            ends.update([trying] if trying else [])
            # Where it was nobody's turn, nobody can be blamed but the case itself.
            for peer in (p for p in left.peers if p == (trying or p)):
                yield Row(unit.case, peer, threads=0, refused=str(end))
                left = _without(peer, left)
            left = _without(trying, left)
            if isinstance(end, Stuck):
                raise


def _without(peer: str, unit: Unit) -> Unit:
    peers, beside = (tuple(p for p in own if p != peer) for own in (unit.peers, unit.beside))
    return replace(unit, peers=peers, beside=beside)


def _read(said: dict[str, Any]) -> Found:
    return Row.from_json(said["row"]) if "row" in said else Reading.from_json(said["reading"])


def carry_out(
    plan: Sequence[Unit],
    worker: Worker,
    keep: Callable[[Found], None],
    seconds: float,
    watched: Callable[[Unit], AbstractContextManager] = nullcontext,
    ends: Counter[str] | None = None,
) -> list[Unit]:
    """Measure the plan's units in order within so many seconds; return those left out."""
    worker.deadline = worker.now() + seconds
    ends = Counter() if ends is None else ends
    left = []
    try:
        for place, unit in enumerate(plan):
            if worker.now() + unit.seconds > worker.deadline:
                left.append(unit)
                continue
            try:
                with watched(unit):
                    for found in measured(unit, worker, ends):
                        keep(found)
            except TimeUp:
                return left + list(plan[place:])
    finally:
        worker.stop()
    return left


def worker_command(device: str) -> list[str]:
    """The measuring process for one device."""
    return [sys.executable, "-m", "benchmarks.gpu.process", device]
