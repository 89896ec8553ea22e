"""Runs the tasks of studies in parallel: resumable, interruptible, on any executor."""

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from rich.console import Console

from sigmoid_attention.lab.archive import Archive, encode
from sigmoid_attention.lab.pool import process_pool
from sigmoid_attention.lab.study import Study, Task
from sigmoid_attention.training.environment import (
    describe_machine,
    describe_versions,
    usable_cores,
)
from sigmoid_attention.training.progress import SweepProgress
from sigmoid_attention.training.terminal import plain

# Cached, because it takes as long as a small task.
_versions = cache(describe_versions)


@dataclass(frozen=True)
class Order:
    """A task, with the name and source of the first study that has it."""

    study: str
    source: str
    task: Task

    @property
    def label(self) -> str:
        return f"{self.study}, {self.task.cell}, {self.task.part}"


def sweep(
    studies: Sequence[Study],
    out: Path,
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> list[str]:
    """Run the tasks of ``studies`` without rows in ``out``; save each as soon as it ends.

    If this process ends early, only running tasks are lost. A task that raises an exception does
    not stop the others.

    Args:
        executor: runs the tasks; by default a pool of processes on this machine.
        workers: the number of processes of that pool; by default one per usable core.

    Returns:
        For each task that raised, a sentence that names its study, cell and part.

    Raises:
        TypeError: ``workers`` is no whole number.
        ValueError: fewer than one worker, or ``out`` is a file.
        OSError: rows could not be written.

    Example:
        >>> sweep([], Path("nowhere"))
        []
    """
    workers = usable_cores() if workers is None else workers
    if not isinstance(workers, int):
        raise TypeError(f"workers must be a whole number, got {workers!r}")
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}")
    console = console or Console(quiet=True)
    archive = Archive(out)
    orders = _orders(studies, archive, console)
    if not orders:
        return []
    context = nullcontext(executor) if executor else process_pool(min(workers, len(orders)))
    with context as pool:
        waiting = {
            pool.submit(run_task, order.study, order.source, order.task): order for order in orders
        }
        try:
            return _collect(waiting, archive, console)
        finally:
            # The pool of this function ends with its context. Its thread would print an error for
            # a task that is cancelled while the workers end.
            for future in waiting if executor else ():
                future.cancel()


def run_task(study: str, source: str, task: Task) -> bytes:
    """Run a task in this process; return the content of its file."""
    started = time.process_time()
    rows = list(task.run(task.setting))
    seconds = time.process_time() - started
    stamp = {
        "machine": describe_machine(torch.device("cpu")),
        "versions": _versions(),
        "provenance": {
            "claim": source,
            "made_by": f"{task.run.__module__}.{task.run.__qualname__}",
        },
    }
    return encode(study, task, rows, seconds, stamp)


def _orders(studies: Sequence[Study], archive: Archive, console: Console) -> list[Order]:
    """The missing tasks, longest first, so that all workers end at about the same time."""
    orders: dict[str, Order] = {}
    for study in studies:
        for task in study.tasks():
            orders.setdefault(task.key, Order(study.name, study.source, task))

    def show(line: str) -> None:
        console.print(plain(line), markup=False, highlight=False, emoji=False, soft_wrap=True)

    missing = archive.missing(
        (order.task for order in orders.values()),
        lambda damage: show(f"{damage}; it is computed again"),
    )
    left = [orders[task.key] for task in missing]
    if len(left) < len(orders):
        show(f"{len(orders) - len(left)} of {len(orders)} tasks are done already")
    return sorted(left, key=lambda order: -order.task.work)


def _collect(waiting: dict[Future, Order], archive: Archive, console: Console) -> list[str]:
    """Save the result of each task when it ends, and remove the task from ``waiting``."""
    failures = []
    work = sum(order.task.work for order in waiting.values())
    with SweepProgress(work, len(waiting), console) as progress:
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                order = waiting.pop(future)
                try:
                    data = future.result()
                except BrokenExecutor:
                    failures.append(
                        f"a worker died, perhaps because memory ran out; {len(waiting) + 1} tasks "
                        f"are left, and the same command goes on with them"
                    )
                    return failures
                except Exception as error:
                    message = " ".join(str(error).split())
                    failures.append(f"{order.label}: {type(error).__name__}: {message}")
                else:
                    archive.put(order.task.key, data)
                progress.finish(order.label, order.task.work)
    return failures
