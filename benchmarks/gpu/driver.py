"""Measure the plan in a worker process, unit by unit, and keep its results.

A kernel may crash, hang, or leave the device unusable. Then the worker is killed, the peer that was
being measured gets a row with the reason, and a new worker continues with the others. A peer that
has done this twice is skipped for the rest of the run. At the time limit the rest of the plan is
left for the next run.

This is not left to a library: the process pools in the lock (concurrent.futures, joblib) cannot
kill one hung worker, keep the results that it has sent already, and go on.
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

# In seconds. No answer takes as long, except from a deadlocked kernel; most of it is compilation.
ANSWER_TIMEOUT = 60.0
# A worker imports torch before its first message.
START_TIMEOUT = 90.0
# A killed process exits at once, except for one that waits in the driver.
EXIT_TIMEOUT = 20.0
# A peer that ended the worker this often is skipped for the rest of the run.
MAX_DEATHS = 2

Result = Row | Reading


class WorkerDied(Exception):
    """The worker exited, or was killed, before the unit was done."""


class TimeUp(Exception):
    """The run's time limit was reached before the unit was done; the worker was killed."""


class WorkerUnkillable(OSError):
    """The worker does not exit: it waits in the device's driver."""


@dataclass
class Worker:
    """The worker process, started when it is needed; after `deadline` it is killed."""

    command: Sequence[str]
    timeout: float = ANSWER_TIMEOUT
    deadline: float = float("inf")
    now: Callable[[], float] = time.monotonic
    process: subprocess.Popen | None = None
    lines: queue.Queue = field(default_factory=queue.Queue)
    reader: threading.Thread | None = None

    def measure(self, unit: Unit) -> Iterator[dict[str, Any]]:
        """The worker's messages about a unit.

        Raises:
            WorkerDied: it exits, or does not answer in time.
            TimeUp: the deadline is reached first.
            WorkerUnkillable: it does not exit after it was killed.
        """
        timeout = usual_timeout = unit.timeout or self.timeout
        if self.process is None:
            self._start()
            timeout = max(usual_timeout, START_TIMEOUT)
        assert self.process is not None and self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(unit.to_json()) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise WorkerDied(self._exit_message()) from None
        while True:
            left = self.deadline - self.now()
            try:
                line = self.lines.get(timeout=max(min(timeout, left), 0))
            except queue.Empty:
                self.stop()
                if left < timeout:
                    raise TimeUp from None
                raise WorkerDied(f"no answer within {timeout:g} s; it was killed") from None
            timeout = usual_timeout
            if line is None:
                raise WorkerDied(self._exit_message())
            message = _message(line)
            if "done" in message:
                return
            if "trouble" in message:
                self.stop()
                raise WorkerDied(message["trouble"])
            if message.keys() & {"trying", "row", "reading"}:
                yield message

    def stop(self) -> None:
        """Kill the process, if there is one. Raises ``WorkerUnkillable`` if it does not exit."""
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

    def _exit_message(self) -> str:
        code = self._close()
        return f"the process died of signal {-code}" if code < 0 else f"the process ended ({code})"

    def _close(self) -> int:
        """Wait until the process exits; return its exit code."""
        assert self.process is not None and self.reader is not None
        process, self.process = self.process, None
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError):  # the pipe has no reader any more
            process.stdin.close()
        try:
            code = process.wait(timeout=EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise WorkerUnkillable(
                f"the measuring process {process.pid} does not end, it waits in the GPU's driver; "
                "the rows so far are kept"
            ) from None
        # A child of the worker may still hold the other end of the pipe.
        self.reader.join(timeout=EXIT_TIMEOUT)
        if not self.reader.is_alive():
            process.stdout.close()
        return code


def _follow(lines: Iterable[str], into: queue.Queue) -> None:
    for line in lines:
        into.put(line)
    into.put(None)


def _message(line: str) -> dict[str, Any]:
    """The worker's message in a line; empty if a library printed the line."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def measure_unit(
    unit: Unit, worker: Worker, deaths: Counter[str] | None = None
) -> Iterator[Result]:
    """The results of a unit. A peer that ends the worker is skipped, the others are tried again.

    `deaths` counts how often each peer ended a worker. Raises ``TimeUp`` and ``WorkerUnkillable``
    as the worker does, the latter after the row of the peer that was being measured.
    """
    deaths = Counter() if deaths is None else deaths
    left = unit
    for peer in (peer for peer, count in deaths.items() if count >= MAX_DEATHS):
        left = _without(peer, left)
    while left.peers or unit.case is None:
        trying = ""
        try:
            for message in worker.measure(left):
                if "trying" in message:
                    trying = message["trying"]
                    continue
                result = _result(message)
                yield result
                if isinstance(result, Row):
                    left = replace(left, peers=tuple(p for p in left.peers if p != result.peer))
            return
        except (WorkerDied, WorkerUnkillable) as death:
            if unit.case is None:
                yield Reading(unit.reading, "", refused=str(death))
                return
            deaths.update([trying] if trying else [])
            # If it died before the first peer, the case itself is the cause, and all peers fail.
            for peer in (p for p in left.peers if p == (trying or p)):
                yield Row(unit.case, peer, threads=0, refused=str(death))
                left = _without(peer, left)
            left = _without(trying, left)
            if isinstance(death, WorkerUnkillable):
                raise


def _without(peer: str, unit: Unit) -> Unit:
    peers, beside = (tuple(p for p in names if p != peer) for names in (unit.peers, unit.beside))
    return replace(unit, peers=peers, beside=beside)


def _result(message: dict[str, Any]) -> Result:
    if "row" in message:
        return Row.from_json(message["row"])
    return Reading.from_json(message["reading"])


def execute_plan(
    plan: Sequence[Unit],
    worker: Worker,
    keep: Callable[[Result], None],
    seconds: float,
    progress: Callable[[Unit], AbstractContextManager] = nullcontext,
    deaths: Counter[str] | None = None,
) -> list[Unit]:
    """Measure the plan's units in order, within a time limit in seconds; return those left out."""
    worker.deadline = worker.now() + seconds
    deaths = Counter() if deaths is None else deaths
    left = []
    try:
        for i, unit in enumerate(plan):
            if worker.now() + unit.seconds > worker.deadline:
                left.append(unit)
                continue
            try:
                with progress(unit):
                    for result in measure_unit(unit, worker, deaths):
                        keep(result)
            except TimeUp:
                return left + list(plan[i:])
    finally:
        worker.stop()
    return left


def worker_command(device: str) -> list[str]:
    """The command line of the worker for one device."""
    return [sys.executable, "-m", "benchmarks.gpu.process", device]
