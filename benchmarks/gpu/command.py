"""`python -m benchmarks gpu`: carry out the plan on this machine's GPU and keep what it finds."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.gpu import readings as of_device
from benchmarks.gpu.driver import Found, Worker, carry_out, worker_command
from benchmarks.gpu.plan import KINDS, Unit, units
from benchmarks.gpu.readings import Reading, asked_for_state
from benchmarks.gpu.stamp import gpu_stamp
from benchmarks.rows import Key, Row, merged, read, results_file, write
from benchmarks.stamp import same_conditions
from sigmoid_attention.studies.progress import StudyProgress

DEVICE = "cuda:0"
READINGS = "-readings.jsonl"
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
            raise ValueError(f"--only: must be of {', '.join(KINDS)}, got {kind}")
    if not torch.cuda.is_available():
        raise ValueError(
            "gpu: torch finds no NVIDIA GPU on this machine, and nothing can be measured without"
        )
    device = torch.device(DEVICE)
    stamp = gpu_stamp(device)
    path = out and results_file(out, "gpu", stamp["machine"]["accelerator"])
    store = Store(path, stamp)
    plan = units(only or KINDS)
    if resume:
        plan = [unit for unit in plan if not store.has(unit)]
    with StudyProgress(sum(u.seconds for u in plan), len(plan), Console(stderr=True)) as progress:

        @contextmanager
        def watched(unit: Unit) -> Iterator[None]:
            progress.begin(str(unit), unit.seconds)
            yield
            progress.end()

        worker = Worker(worker_command(DEVICE))
        left = carry_out(plan, worker, store.keep, 60 * minutes, watched)
    return store.found, left


class Store:
    """The rows and readings of a device, in two files, or in none."""

    def __init__(self, path: Path | None, stamp: dict[str, Any]) -> None:
        self.path, self.stamp = path, stamp
        self.rows: dict[Key, Row] = read(path) if path else {}
        self.readings = of_device.read(readings_file(path)) if path else {}
        self.found: list[Row] = []
        self._case, self._state = None, {}

    def keep(self, found: Found) -> None:
        """Put what was found in the place of what was there before, and write it."""
        if isinstance(found, Reading):
            stamped = Reading(**vars(found) | {"stamp": self.stamp | found.stamp})
            self.readings[found.name] = stamped
            if self.path:
                of_device.write(readings_file(self.path), self.readings.values())
            return
        if found.case != self._case:
            # Clocks as the case has left them; to ask takes longer than many a case.
            self._case, self._state = found.case, asked_for_state()
        row = Row(**vars(found) | {"stamp": self.stamp | found.stamp | {"state": self._state}})
        self.found.append(row)
        self.rows = merged(self.rows, [row])
        if self.path:
            write(self.path, self.rows)

    def has(self, unit: Unit) -> bool:
        """Whether everything of it is there, measured as it would be now."""
        if unit.case is None:
            stamps = [r.stamp for r in self.readings.values() if belongs(r.name, unit.reading)]
            return bool(stamps) and all(same_conditions(own, self.stamp) for own in stamps)
        rows = [self.rows.get((unit.case, peer, 0)) for peer in unit.peers]
        return all(row is not None and same_conditions(row.stamp, self.stamp) for row in rows)


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
