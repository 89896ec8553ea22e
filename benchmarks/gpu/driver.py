"""Hand the plan to a process of its own, unit by unit, and keep what it answers.

New kernels may crash, hang, or leave the device useless. Then the process is ended, the peer whose
turn it was gets a row that says so, and a new process goes on with the others. When time is up,
what is left waits for the next run.
"""

import json
import queue
import subprocess
import sys
import threading
import time
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

Found = Row | Reading


class Gone(Exception):
    """The measuring process ended, or was ended, before it was done."""


@dataclass
class Worker:
    """The measuring process, started when it is needed."""

    command: Sequence[str]
    patience: float = PATIENCE
    process: subprocess.Popen | None = None
    lines: queue.Queue = field(default_factory=queue.Queue)
    reader: threading.Thread | None = None

    def ask(self, unit: Unit) -> Iterator[dict[str, Any]]:
        """The lines that it answers. Raises ``Gone`` if it does not get to the end."""
        if self.process is None:
            self._start()
        assert self.process is not None and self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(unit.to_json()) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise Gone(self._last_words()) from None
        while True:
            try:
                line = self.lines.get(timeout=self.patience)
            except queue.Empty:
                self.stop()
                raise Gone(f"no answer within {self.patience:g} s; it was ended") from None
            if line is None:
                raise Gone(self._last_words())
            said = json.loads(line)
            if "done" in said:
                return
            if "trouble" in said:
                self.stop()
                raise Gone(said["trouble"])
            yield said

    def stop(self) -> None:
        """End the process, if there is one."""
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
        code = process.wait()
        self.reader.join()
        process.stdout.close()
        return code


def _follow(lines: Iterable[str], into: queue.Queue) -> None:
    for line in lines:
        into.put(line)
    into.put(None)


def measured(unit: Unit, worker: Worker) -> Iterator[Found]:
    """What a unit finds. Whoever ends the process is left out, and the rest is asked for again."""
    left = unit
    while True:
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
        except Gone as end:
            if trying in left.peers and unit.case is not None:
                yield Row(unit.case, trying, threads=0, refused=str(end))
                left = replace(left, peers=tuple(p for p in left.peers if p != trying))
            elif unit.case is None:
                yield Reading(unit.reading, "", refused=str(end))
                return
            elif not trying:
                # Nobody can be blamed but the case itself.
                for peer in left.peers:
                    yield Row(unit.case, peer, threads=0, refused=str(end))
                return
            if not left.peers:
                return


def _read(said: dict[str, Any]) -> Found:
    return Row.from_json(said["row"]) if "row" in said else Reading.from_json(said["reading"])


def carry_out(
    plan: Sequence[Unit],
    worker: Worker,
    keep: Callable[[Found], None],
    seconds: float,
    watched: Callable[[Unit], AbstractContextManager] = nullcontext,
    now: Callable[[], float] = time.monotonic,
) -> list[Unit]:
    """Measure the plan's units in order within so many seconds; return those left out."""
    started, left = now(), []
    try:
        for unit in plan:
            if now() - started + unit.seconds > seconds:
                left.append(unit)
                continue
            with watched(unit):
                for found in measured(unit, worker):
                    keep(found)
    finally:
        worker.stop()
    return left


def worker_command(device: str) -> list[str]:
    """The measuring process for one device."""
    return [sys.executable, "-m", "benchmarks.gpu.worker", device]
