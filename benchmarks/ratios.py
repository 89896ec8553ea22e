"""Ratios of times that are measured by turns, as checks."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.mixtures import Check
from benchmarks.timing import Budget, cpu_stopwatch, take_turns
from sigmoid_attention.lab.statistics import median_interval


def ratios(
    suite: str, name: str, works: dict[str, Callable[[], Any]], budget: Budget, bound: float
) -> Iterator[Check]:
    """The time of each work over that of the last one, by turns; the bound is for the median."""
    for work in works.values():
        work()
    turns = take_turns(works, cpu_stopwatch(), budget)
    seconds = {peer: [turn.wall for turn in turns[peer]] for peer in works}
    median = {peer: f"{1e3 * statistics.median(seconds[peer]):.4g} ms" for peer in works}
    *ours, last = works
    for peer in ours:
        values = tuple(time / base for time, base in zip(seconds[peer], seconds[last], strict=True))
        yield Check(
            suite, f"{name}, {peer}", statistics.median(values), "x", bound,
            said=f"{spread(values)} of {last}; {median[peer]} and {median[last]}",
            values=values,
        )  # fmt: skip


def spread(values: Sequence[float]) -> str:
    """The 95 % interval of the median of the turns, in words."""
    interval = median_interval(values)
    return f"median of {interval.n} turns within {interval.low:.3f} to {interval.high:.3f}"
