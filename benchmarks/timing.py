"""Interleaved timing: peers take turns, so that whatever slows the machine slows all of them.

A turn repeats its work until it is long enough to be read off a clock, and counts as the mean of
its calls. A ratio is taken between turns of one round, and of medians over rounds.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.operations import Work

# A clock read around less than this would measure whatever else woke up.
SHORTEST_TURN = 0.01


@dataclass(frozen=True)
class Seconds:
    """One call's time: of the clock on the wall, and of all processors that worked for it."""

    wall: float
    cpu: float


Stopwatch = Callable[[Work], Seconds]


@dataclass(frozen=True)
class Budget:
    """How long a case may take: rounds go on until `seconds` are over or `most` are done.

    Whatever the time, there are `least` rounds, and `least_short` where so many fit.
    """

    seconds: float = 6.0
    least: int = 3
    least_short: int = 5
    most: int = 15


def cpu_stopwatch(
    wall: Callable[[], float] = time.perf_counter, cpu: Callable[[], float] = time.process_time
) -> Stopwatch:
    """A stopwatch for work on the CPU, by the two clocks given.

    The CPU time is the whole process': with one thread it is that thread's, and work that took
    more threads than it was told would show.
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
    """Each peer's turns, as many of one as of another. Every work has been called before."""
    turns: dict[str, list[Seconds]] = {peer: [] for peer in works}
    if not works:
        return turns
    gc.collect()
    started, rounds, least = now(), 0, 1
    while rounds < least or (rounds < budget.most and now() - started < budget.seconds):
        # In alternating order, so that nobody always comes after the same neighbour.
        for peer in list(works)[:: -1 if rounds % 2 else 1]:
            turns[peer].append(stopwatch(works[peer]))
        rounds += 1
        if rounds == 1:
            short = (now() - started) * budget.least_short <= budget.seconds
            least = budget.least_short if short else budget.least
    return turns
