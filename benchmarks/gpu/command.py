"""`python -m benchmarks gpu`: execute the plan on this machine's GPU and keep the results."""

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

from benchmarks.gpu import readings as reading_files
from benchmarks.gpu.driver import MAX_DEATHS, Result, Worker, execute_plan, worker_command
from benchmarks.gpu.measures import refuses
from benchmarks.gpu.peers import OURS
from benchmarks.gpu.plan import KINDS, Unit, units
from benchmarks.gpu.readings import Reading, gpu_id, query_state
from benchmarks.gpu.stamp import DRIVER, driver_version, gpu_stamp, same_gpu_conditions
from benchmarks.operations import Case
from benchmarks.rows import Key, Row, merged, read, results_file, write
from sigmoid_attention.training.progress import StudyProgress

DEVICE = "cuda:0"
READINGS = "-readings.jsonl"
SECONDS_BETWEEN_STATES = 10.0
# The device of the targets.
REFERENCE = "NVIDIA H200"

Results = tuple[dict[Key, Row], dict[str, Reading]]


def measure_gpu(
    only: tuple[str, ...], out: Path | None, minutes: float, *, resume: bool
) -> tuple[list[Row], list[Unit]]:
    """The rows that were measured, and the units for which there was no time.

    Raises:
        ValueError: there is no GPU, or `only` holds an unknown kind of measurement.
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
        def shown(unit: Unit) -> Iterator[None]:
            progress.begin(str(unit), unit.seconds)
            yield
            progress.end()

        worker, deaths = Worker(worker_command(DEVICE)), Counter[str]()
        left = execute_plan(plan, worker, store.keep, 60 * minutes, shown, deaths)
        for peer in (peer for peer, count in deaths.items() if count >= MAX_DEATHS):
            print(f"{peer} ended the measuring process twice; then it was skipped", file=sys.stderr)
    return store.measured, left


def without_gpu() -> str:
    """Why no GPU can be used; empty if one can."""
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
    """The rows and readings of a device, kept in two files, or in memory alone."""

    def __init__(self, path: Path | None, stamp: dict[str, Any], gpu: str = "") -> None:
        self.path, self.stamp, self.gpu = path, stamp, gpu
        self.rows: dict[Key, Row] = read(path) if path else {}
        self.readings = reading_files.read(readings_file(path)) if path else {}
        self.measured: list[Row] = []
        self._next_state_at, self._state = -math.inf, {}

    def keep(self, result: Result) -> None:
        """Replace the older row or reading by this one, and write the file."""
        if isinstance(result, Reading):
            stamped = Reading(**vars(result) | {"stamp": self.stamp | result.stamp})
            self.readings[result.name] = stamped
            if self.path:
                reading_files.write(readings_file(self.path), self.readings.values())
            return
        state = self._state_now()
        row = Row(**vars(result) | {"stamp": self.stamp | result.stamp | {"state": state}})
        self.measured.append(row)
        self.rows = merged(self.rows, [row])
        if self.path:
            write(self.path, self.rows)

    def _state_now(self) -> dict[str, float]:
        """The GPU's clocks after the last cases; a query takes longer than many cases, so the
        answer is kept for a while, and for the whole run if there is none."""
        if time.monotonic() >= self._next_state_at:
            self._state = query_state(self.gpu)
            self._next_state_at = (
                time.monotonic() + SECONDS_BETWEEN_STATES if self._state else math.inf
            )
        return self._state

    def left(self, plan: Sequence[Unit]) -> list[Unit]:
        """The units still to be measured: first those without any row, then the unfinished ones.

        An unfinished unit measures only the missing peers, if our own rows exist for comparison.
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
        """The stored row, if it was measured under the same conditions."""
        row = self.rows.get((case, peer, 0))
        return row if row and same_gpu_conditions(row.stamp, self.stamp) else None

    def _has_reading(self, group: str) -> bool:
        stored = [r for r in self.readings.values() if belongs(r.name, group)]
        return bool(stored) and all(same_gpu_conditions(r.stamp, self.stamp) for r in stored)


def failed(row: Row) -> bool:
    """True if the row holds no result, and the next attempt may have one."""
    return bool(row.refused) and not refuses(row)


def belongs(name: str, group: str) -> bool:
    """True if a reading of that name belongs to the group, or is the refusal of the group."""
    beginnings = {"rates": "rate of", "tanh": ("tanh", "weights"), "clocks": reading_files.STATE}
    return name == group or name.startswith(beginnings[group])


def readings_file(path: Path) -> Path:
    """The path of the readings that belong to a file of rows."""
    return path.with_name(path.stem + READINGS)


def gpu_results(results: Path) -> dict[str, Results]:
    """Rows and readings of every GPU in a folder, or of the one in a file.

    Without any, the result is empty ones of the device of the targets.
    """
    files = [results] if results.suffix == ".jsonl" else sorted(results.glob("gpu-*.jsonl"))
    by_device: dict[str, Results] = {}
    for path in files:
        if path.name.endswith(READINGS):
            continue
        rows = {key: row for key, row in read(path).items() if row.threads == 0}
        for row in list(rows.values())[:1]:
            device = row.stamp["machine"]["accelerator"]
            by_device[device] = rows, reading_files.read(readings_file(path))
    return by_device or {REFERENCE: ({}, {})}
