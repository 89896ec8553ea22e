"""Running the tasks of studies side by side: resumable, interruptible, on any executor."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console

from sigmoid_attention.lab.archive import Archive, encode
from sigmoid_attention.lab.pool import process_pool
from sigmoid_attention.lab.study import Study, Task
from sigmoid_attention.lab.sweep_progress import SweepProgress
from sigmoid_attention.training.environment import (
    describe_machine,
    describe_versions,
    usable_cores,
)
from sigmoid_attention.training.terminal import plain

SECONDS_BETWEEN_LOOKS = 0.05
# They take as long to find as a small task.
_versions = cache(describe_versions)


class Future(Protocol):
    """What is asked of a piece of work in an executor: less than `concurrent.futures` offers."""

    def done(self) -> bool: ...

    def result(self) -> Any: ...

    def cancel(self) -> Any: ...


class AnyExecutor(Protocol):
    """What runs tasks: a `concurrent.futures.Executor`, or what is used as one."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future: ...


@dataclass(frozen=True)
class Order:
    """A task, and the study that asked for it first."""

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
    executor: AnyExecutor | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> list[str]:
    """Do what is missing under ``out`` of the tasks of ``studies``, each kept as soon as it ends.

    A task whose rows are there is not done again; whatever ends this process, only tasks in
    flight are lost. A task that raises an exception does not keep the others from being done.

    Args:
        executor: anything with ``submit``, such as Dask's ``client.get_executor()`` or an executor
            of submitit; a pool of processes on this machine if not given.
        workers: how many processes that pool has; one a usable core if not given.

    Returns:
        For each task that raised, a sentence that names its study, cell and part.

    Raises:
        ValueError: fewer than one worker, or ``out`` is a file.
        OSError: rows could not be written.

    Example:
        >>> sweep([], Path("nowhere"))
        []
    """
    workers = usable_cores() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}")
    console = console or Console(quiet=True)
    archive = Archive(out)
    orders = _orders(studies, archive, console)
    if not orders:
        return []
    own = process_pool(min(workers, len(orders))) if executor is None else nullcontext(executor)
    with own as pool:
        waiting: dict[Future, Order] = {
            pool.submit(perform, order.study, order.source, order.task): order for order in orders
        }
        try:
            return _collect(waiting, archive, console)
        finally:
            # On a user's executor the rest would be done for nobody. Those of the pool go with it.
            if executor is not None:
                for future in waiting:
                    future.cancel()


def perform(study: str, source: str, task: Task) -> bytes:
    """Do a task, wherever this runs, and say with what; the content of its file."""
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
    """What is to be done, longest first, so that no core waits long for another in the end."""
    orders: dict[str, Order] = {}
    for study in studies:
        for task in study.tasks():
            orders.setdefault(task.key, Order(study.name, study.source, task))
    complain = lambda said: console.print(  # noqa: E731
        plain(said), markup=False, highlight=False, emoji=False, soft_wrap=True
    )
    missing = archive.missing(
        (order.task for order in orders.values()),
        lambda damage: complain(f"{damage}; it is computed again"),
    )
    left = [orders[task.key] for task in missing]
    if len(left) < len(orders):
        complain(f"{len(orders) - len(left)} of {len(orders)} tasks are done already")
    return sorted(left, key=lambda order: -order.task.work)


def _collect(waiting: dict[Future, Order], archive: Archive, console: Console) -> list[str]:
    """Keep what comes in, and empty ``waiting`` of it."""
    failures = []
    work = sum(order.task.work for order in waiting.values())
    with SweepProgress(work, len(waiting), console) as progress:
        while waiting:
            for future in [future for future in waiting if future.done()]:
                order = waiting.pop(future)
                try:
                    data = future.result()
                except BrokenExecutor:
                    failures.append(
                        f"a worker died, perhaps for want of memory; {len(waiting) + 1} tasks "
                        f"are left, and the same command goes on with them"
                    )
                    return failures
                except Exception as error:
                    said = " ".join(str(error).split())
                    failures.append(f"{order.label}: {type(error).__name__}: {said}")
                else:
                    archive.put(order.task.key, data)
                progress.finish(order.label, order.task.work)
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return failures
