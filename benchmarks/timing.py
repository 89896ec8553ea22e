"""Interleaved timing: peers take turns, so that other load on the machine slows all of them alike.

A turn repeats its work until it is long enough for the clock, and its time is the mean of its
calls. A ratio is taken between turns of one round, and of medians over rounds.
`torch.utils.benchmark` and `triton.testing.do_bench` time one function after another and know no
rounds of several, so that load that changes meanwhile becomes a difference between peers.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.operations import Work

# Seconds; a shorter turn would mostly measure the clock and the scheduler.
SHORTEST_TURN = 0.01


@dataclass(frozen=True)
class Seconds:
    """The time of one call: wall-clock time, and CPU time summed over all cores."""

    wall: float
    cpu: float


Stopwatch = Callable[[Work], Seconds]


@dataclass(frozen=True)
class Budget:
    """How long a case may take: rounds continue until `seconds` are over or `most` are done.

    There are at least `least` rounds at any time, and `least_short` if so many fit.
    """

    seconds: float = 6.0
    least: int = 3
    least_short: int = 5
    most: int = 15


def cpu_stopwatch(
    wall: Callable[[], float] = time.perf_counter, cpu: Callable[[], float] = time.process_time
) -> Stopwatch:
    """A stopwatch for work on the CPU, by the two clocks given.

    The CPU time is that of the whole process, so that work on more threads than were set shows.
    """

    def watch(work: Work) -> Seconds:
        calls = 0
        wall_start, cpu_start = wall(), cpu()
        while calls == 0 or wall() - wall_start < SHORTEST_TURN:
            work()
            calls += 1
        return Seconds((wall() - wall_start) / calls, (cpu() - cpu_start) / calls)

    return watch


def take_turns(
    works: Mapping[str, Work],
    stopwatch: Stopwatch,
    budget: Budget,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, list[Seconds]]:
    """The turns of each peer, equally many. Every work must have been called once before."""
    turns: dict[str, list[Seconds]] = {peer: [] for peer in works}
    if not works:
        return turns
    gc.collect()
    started, rounds, least = now(), 0, 1
    while rounds < least or (rounds < budget.most and now() - started < budget.seconds):
        # In alternating order, so that no peer always runs after the same one.
        for peer in list(works)[:: -1 if rounds % 2 else 1]:
            turns[peer].append(stopwatch(works[peer]))
        rounds += 1
        if rounds == 1:
            short = (now() - started) * budget.least_short <= budget.seconds
            least = budget.least_short if short else budget.least
    return turns
