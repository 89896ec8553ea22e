"""A pool of processes that ends with the process that made it, however that one ends."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch


@contextmanager
def process_pool(workers: int) -> Iterator[Executor]:
    """Worker processes of one torch thread each.

    Leaving it by an exception (an interrupt) ends the workers at once, in the middle of what they
    do; otherwise they finish first. As always where processes are started afresh, the script that
    asks for it needs its ``if __name__ == "__main__"``.

    Example:
        >>> with process_pool(1) as pool:
        ...     pool.submit(max, 2, 3).result()
        3
    """
    context = multiprocessing.get_context("spawn")
    # Only this process holds the writing end. It closes even if the process is killed, where a
    # worker of ProcessPoolExecutor alone would wait for work for ever.
    reading, lifeline = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(reading,))
    try:
        with _without_interrupts():
            # Each task starts a worker until there are all.
            for _ in range(workers):
                pool.submit(int)
        yield pool
    except BaseException:
        lifeline.close()
        raise
    finally:
        pool.shutdown()
        lifeline.close()
        reading.close()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that are started within it meet no Control-C, not even while they import.

    One that comes meanwhile takes effect here when the context is left.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(lifeline: Connection) -> None:
    # Control-C reaches the whole group; it is the parent that decides, and the lifeline that tells.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # More threads than one a process would only wait for each other.
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(1)
