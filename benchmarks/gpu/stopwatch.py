"""Time on a GPU: between two events in its stream, by the GPU's clock.

A turn queues its calls one after another, so that the device waits for the host only if the host
is slower. Before it the device is kept busy, so that the launch of the first call is not timed.
Before every call of a cold turn a buffer larger than the caches is read.
"""

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from benchmarks.operations import Answer, Work
from benchmarks.timing import SHORTEST_TURN, Seconds, Stopwatch

# With more calls in the queue the host would have to wait until it has space.
MOST_CALLS = 200
COLD_BYTES = 512 * 2**20
# About a millisecond, in clocks.
BUSY_CLOCKS = 2_000_000


class Event(Protocol):
    """A point in the stream, such as a torch.cuda.Event."""

    def record(self) -> Any: ...
    def synchronize(self) -> Any: ...
    def elapsed_time(self, other: Any, /) -> float: ...


def gpu_stopwatch(
    cool: Callable[[], object] | None = None,
    event: Callable[[], Event] = lambda: torch.cuda.Event(enable_timing=True),
    host: Callable[[], float] = time.perf_counter,
    busy: Callable[[], object] = lambda: torch.cuda._sleep(BUSY_CLOCKS),
) -> Stopwatch:
    """A stopwatch for work on a GPU; `cool` is queued before every call, and not timed.

    Without it, `busy` is queued before every turn. `cpu` is the host's time to queue a call.
    """

    def watch(work: Work) -> Seconds:
        device, _ = _queue(work, 1, cool, event, host, busy)
        calls = min(max(math.ceil(SHORTEST_TURN / max(device, 1e-9)), 1), MOST_CALLS)
        device, on_host = _queue(work, calls, cool, event, host, busy)
        return Seconds(device / calls, on_host / calls)

    return watch


def _queue(
    work: Work,
    calls: int,
    cool: Callable[[], object] | None,
    event: Callable[[], Event],
    host: Callable[[], float],
    busy: Callable[[], object],
) -> tuple[float, float]:
    """Seconds of so many calls, on the device and on the host."""
    on_host = 0.0
    # Without `cool` all calls are one stretch.
    stretches, of_stretch = (1, calls) if cool is None else (calls, 1)
    events: list[tuple[Event, Event]] = []
    for _ in range(stretches):
        (cool or busy)()
        begin, end = event(), event()
        started = host()
        begin.record()
        for _ in range(of_stretch):
            work()
        end.record()
        on_host += host() - started
        events.append((begin, end))
    events[-1][1].synchronize()
    return sum(begin.elapsed_time(end) for begin, end in events) / 1e3, on_host


def captured(work: Work) -> Work:
    """The work as a CUDA graph, which the host starts with one call.

    Raises the error of work that cannot be captured.
    """
    graph, side, current = torch.cuda.CUDAGraph(), torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        work()
    current.wait_stream(side)
    with torch.cuda.graph(graph):
        # A graph holds addresses alone: the tensors there must live as long as it is replayed.
        held = work, work()

    def replay() -> Answer:
        graph.replay()
        return held[1]

    return replay
