"""`python -m benchmarks gpu`: carry out the plan on this machine's GPU and keep what it finds."""

import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.gpu import readings as of_device
from benchmarks.gpu.driver import MOST_ENDS, Found, Worker, carry_out, worker_command
from benchmarks.gpu.measures import refuses
from benchmarks.gpu.peers import OURS
from benchmarks.gpu.plan import KINDS, Unit, units
from benchmarks.gpu.readings import Reading, asked_for_state, gpu_id
from benchmarks.gpu.stamp import DRIVER, driver_version, gpu_stamp, same_gpu_conditions
from benchmarks.operations import Case
from benchmarks.rows import Key, Row, merged, read, results_file, write
from sigmoid_attention.training.progress import StudyProgress

DEVICE = "cuda:0"
READINGS = "-readings.jsonl"
SECONDS_BETWEEN_LOOKS = 10.0
# What the targets are set for.
REFERENCE = "NVIDIA H200"

Results = tuple[dict[Key, Row], dict[str, Reading]]


def measure_gpu(
    only: tuple[str, ...], out: Path | None, minutes: float, *, resume: bool
) -> tuple[list[Row], list[Unit]]:
    """Rows that were found, and units for which there was no time.

    Raises:
        ValueError: no GPU, or a kind of measurement that there is not.
    """
    for kind in only:
        if kind not in KINDS:
            raise ValueError(f"--only must be of {', '.join(KINDS)}, got {kind}")
    if reason := without_gpu():
        raise ValueError(f"gpu: {reason}")
    device = torch.device(DEVICE)
    stamp = gpu_stamp(device)
    path = out and results_file(out, "gpu", stamp["machine"]["accelerator"])
    store = Store(path, stamp, gpu_id(device))
    plan = units(only or KINDS)
    if resume:
        plan = store.left(plan)
    with StudyProgress(sum(u.seconds for u in plan), len(plan), Console(stderr=True)) as progress:

        @contextmanager
        def watched(unit: Unit) -> Iterator[None]:
            progress.begin(str(unit), unit.seconds)
            yield
            progress.end()

        worker, ends = Worker(worker_command(DEVICE)), Counter[str]()
        left = carry_out(plan, worker, store.keep, 60 * minutes, watched, ends)
        for peer in (peer for peer, count in ends.items() if count >= MOST_ENDS):
            print(
                f"{peer} ended the measuring process twice; then it was left out", file=sys.stderr
            )
    return store.found, left


def without_gpu() -> str:
    """Why there is nothing to measure on; empty where there is."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; a build with it is needed"
    if torch.cuda.is_available():
        return ""
    if DRIVER.exists():
        return (
            f"torch cannot use this machine's NVIDIA driver {driver_version(DRIVER.read_text())}: "
            f"too old for CUDA {torch.version.cuda}, or no GPU is visible to this process"
        )
    return "torch finds no NVIDIA GPU on this machine, and nothing can be measured without"


class Store:
    """The rows and readings of a device, in two files, or in none."""

    def __init__(self, path: Path | None, stamp: dict[str, Any], gpu: str = "") -> None:
        self.path, self.stamp, self.gpu = path, stamp, gpu
        self.rows: dict[Key, Row] = read(path) if path else {}
        self.readings = of_device.read(readings_file(path)) if path else {}
        self.found: list[Row] = []
        self._next_look, self._state = -math.inf, {}

    def keep(self, found: Found) -> None:
        """Put what was found in the place of what was there before, and write it."""
        if isinstance(found, Reading):
            stamped = Reading(**vars(found) | {"stamp": self.stamp | found.stamp})
            self.readings[found.name] = stamped
            if self.path:
                of_device.write(readings_file(self.path), self.readings.values())
            return
        state = self._state_now()
        row = Row(**vars(found) | {"stamp": self.stamp | found.stamp | {"state": state}})
        self.found.append(row)
        self.rows = merged(self.rows, [row])
        if self.path:
            write(self.path, self.rows)

    def _state_now(self) -> dict[str, float]:
        """Clocks as the last cases have left them; to ask takes longer than many a case.

        Where nobody tells, nobody is asked again.
        """
        if time.monotonic() >= self._next_look:
            self._state = asked_for_state(self.gpu)
            self._next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS if self._state else math.inf
        return self._state

    def left(self, plan: Sequence[Unit]) -> list[Unit]:
        """What of it is still to be measured: first what nobody tried, then what was not finished.

        Of what was not finished only those are asked who are missing, as long as ours are there to
        compare them with.
        """
        untried, unfinished = [], []
        for unit in plan:
            if unit.case is None:
                untried += [] if self._has_reading(unit.reading) else [unit]
                continue
            rows = {peer: self._row(unit.case, peer) for peer in unit.peers}
            missing = tuple(peer for peer, row in rows.items() if row is None or failed(row))
            if not any(rows.values()):
                untried.append(unit)
            elif missing:
                ours = unit.beside or tuple(peer for peer in OURS if peer in unit.peers)
                narrow = replace(unit, peers=missing, beside=ours)
                compares = unit.kind == "speed" and {*missing} & {*OURS}
                unfinished.append(unit if compares else narrow)
        return untried + unfinished

    def _row(self, case: Case, peer: str) -> Row | None:
        """What is known, measured as it would be now."""
        row = self.rows.get((case, peer, 0))
        return row if row and same_gpu_conditions(row.stamp, self.stamp) else None

    def _has_reading(self, group: str) -> bool:
        own = [r for r in self.readings.values() if belongs(r.name, group)]
        return bool(own) and all(same_gpu_conditions(r.stamp, self.stamp) for r in own)


def failed(row: Row) -> bool:
    """Whether there is neither a result nor a refusal that will be the same the next time."""
    return bool(row.refused) and not refuses(row)


def belongs(name: str, group: str) -> bool:
    """Whether a reading of that name is of the group, or the group's own refusal."""
    beginnings = {"rates": "rate of", "tanh": ("tanh", "weights"), "clocks": of_device.STATE}
    return name == group or name.startswith(beginnings[group])


def readings_file(path: Path) -> Path:
    """Where the readings beside a file of rows are."""
    return path.with_name(path.stem + READINGS)


def gpu_results(results: Path) -> dict[str, Results]:
    """Rows and readings of every GPU in a folder, or of the one in a file.

    Where there are none, empty ones of the device that the targets are set for.
    """
    files = [results] if results.suffix == ".jsonl" else sorted(results.glob("gpu-*.jsonl"))
    found: dict[str, Results] = {}
    for path in files:
        if path.name.endswith(READINGS):
            continue
        rows = {key: row for key, row in read(path).items() if row.threads == 0}
        for row in list(rows.values())[:1]:
            device = row.stamp["machine"]["accelerator"]
            found[device] = rows, of_device.read(readings_file(path))
    return found or {REFERENCE: ({}, {})}
