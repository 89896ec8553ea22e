"""Time on a GPU: what its own clock says between two marks in its queue of work.

A turn queues its calls one behind the other, so that the device never waits for the host unless
the host is slower. Before it the device is kept busy, so that the first call does not wait to be
launched. Before every call of a cold turn a store larger than the caches is read.
"""

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from benchmarks.operations import Answer, Work
from benchmarks.timing import SHORTEST_TURN, Seconds, Stopwatch

# More in the queue and the host would wait for room in it.
MOST_CALLS = 200
COLD_BYTES = 512 * 2**20
# About a millisecond, in clocks.
BUSY_CLOCKS = 2_000_000


class Mark(Protocol):
    """A place in the queue, as torch.cuda.Event is one."""

    def record(self) -> Any: ...
    def synchronize(self) -> Any: ...
    def elapsed_time(self, other: Any, /) -> float: ...


def gpu_stopwatch(
    cool: Callable[[], object] | None = None,
    mark: Callable[[], Mark] = lambda: torch.cuda.Event(enable_timing=True),
    host: Callable[[], float] = time.perf_counter,
    busy: Callable[[], object] = lambda: torch.cuda._sleep(BUSY_CLOCKS),
) -> Stopwatch:
    """A stopwatch for work on a GPU; `cool` is queued before every call, and not timed.

    Without it, `busy` is queued before every turn. Its `cpu` is what the host took to queue a call.
    """

    def watch(work: Work) -> Seconds:
        device, _ = _queue(work, 1, cool, mark, host, busy)
        calls = min(max(math.ceil(SHORTEST_TURN / max(device, 1e-9)), 1), MOST_CALLS)
        device, on_host = _queue(work, calls, cool, mark, host, busy)
        return Seconds(device / calls, on_host / calls)

    return watch


def _queue(
    work: Work,
    calls: int,
    cool: Callable[[], object] | None,
    mark: Callable[[], Mark],
    host: Callable[[], float],
    busy: Callable[[], object],
) -> tuple[float, float]:
    """Seconds of so many calls, on the device and on the host."""
    on_host = 0.0
    # Without anything in between, all calls are one stretch.
    stretches, of_stretch = (1, calls) if cool is None else (calls, 1)
    marks: list[tuple[Mark, Mark]] = []
    for _ in range(stretches):
        (cool or busy)()
        begin, end = mark(), mark()
        started = host()
        begin.record()
        for _ in range(of_stretch):
            work()
        end.record()
        on_host += host() - started
        marks.append((begin, end))
    marks[-1][1].synchronize()
    return sum(begin.elapsed_time(end) for begin, end in marks) / 1e3, on_host


def captured(work: Work) -> Work:
    """The work as one graph, which the host starts by one call.

    Raises whatever the work raises that cannot be captured.
    """
    graph, side, current = torch.cuda.CUDAGraph(), torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        work()
    current.wait_stream(side)
    with torch.cuda.graph(graph):
        # A graph holds addresses alone: what they point to lives as long as it is replayed.
        held = work, work()

    def replay() -> Answer:
        graph.replay()
        return held[1]

    return replay
