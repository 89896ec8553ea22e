"""Measure one task with one number of threads: the result is its rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from benchmarks.accuracy import relative_errors
from benchmarks.memory import extra_bytes
from benchmarks.operations import OPERATIONS, Work, flops, inputs, work
from benchmarks.peers import OWN, PEERS
from benchmarks.rows import Row, ratio_to, times
from benchmarks.stamp import stamp
from benchmarks.suites import Suite, Task
from benchmarks.timing import take_turns

# An estimate of a task's time, only for the progress bar.
GUESSED_FLOPS_PER_SECOND = 5e10
GUESSED_START_SECONDS = 1.0


def measure(suite: Suite, task: Task, threads: int) -> list[Row]:
    """A row for each peer, also for one that refused."""
    with _threads(threads):
        of_bytes = OPERATIONS[task.case.operation].quantity == "bytes"
        rows = _memory(task, threads) if of_bytes else _timed(suite, task, threads)
        stamped = stamp(suite.device)
    baseline = rows.get(OPERATIONS[task.case.operation].baseline or "")
    return [
        replace(row, stamp=stamped, ratio=ratio_to(baseline, row))
        if baseline and not baseline.refused and not row.refused
        else replace(row, stamp=stamped)
        for row in rows.values()
    ]


def guessed_seconds(task: Task) -> float:
    """An estimate of a task's seconds, up to a factor that all tasks share."""
    call = flops(task.case) / GUESSED_FLOPS_PER_SECOND
    # A short task uses its budget of seconds, a long one its least number of rounds.
    rounds = max(task.budget.least, min(task.budget.seconds / max(call, 1e-9), task.budget.most))
    return len(task.peers) * (GUESSED_START_SECONDS + call * (rounds + 1))


def _timed(suite: Suite, task: Task, threads: int) -> dict[str, Row]:
    case, tensors = task.case, inputs(task.case, suite.device)
    works: dict[str, Work] = {}
    rows: dict[str, Row] = {}
    for peer in task.peers:
        rows[peer] = Row(case, peer, threads)
        try:
            attend = PEERS[peer](case)
            compute = work(case, tensors, attend)
            # The first call allocates and compiles, so it is not timed.
            compute()
        except Exception as refusal:
            rows[peer] = replace(rows[peer], refused=_sentence(refusal))
            continue
        works[peer] = compute
        if OPERATIONS[case.operation].has_error and peer in OWN:
            rows[peer] = replace(rows[peer], error=relative_errors(case, tensors, attend))
    for peer, turns in take_turns(works, suite.stopwatch, task.budget).items():
        rows[peer] = replace(rows[peer], **times(turns))
    return rows


def _memory(task: Task, threads: int) -> dict[str, Row]:
    rows = {peer: Row(task.case, peer, threads) for peer in task.peers}
    for _ in range(task.budget.least):
        for peer, row in rows.items():
            if row.refused:
                continue
            try:
                rise = extra_bytes(task.case, peer, threads)
            except RuntimeError as refusal:
                rows[peer] = replace(row, bytes=(), refused=_sentence(refusal))
            else:
                rows[peer] = replace(row, bytes=(*row.bytes, rise))
    return rows


def _sentence(error: Exception) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:200]}"


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
