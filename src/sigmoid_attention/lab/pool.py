"""A pool of worker processes that end when the process that started them ends."""

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

    If the context is left by an exception (an interrupt), the workers end at once; otherwise they
    finish their tasks. The workers are spawned, so a script needs ``if __name__ == "__main__"``.

    Example:
        >>> with process_pool(1) as pool:
        ...     pool.submit(max, 2, 3).result()
        3
    """
    context = multiprocessing.get_context("spawn")
    # Only this process holds the writing end, and the system closes it even if the process is
    # killed. Without the pipe the workers of a killed ProcessPoolExecutor would wait forever.
    reading, lifeline = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(reading,))
    try:
        with _without_interrupts():
            # Each submitted task starts one more worker.
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
    """A context in which started processes are not interrupted by Control-C during their imports.

    A Control-C during that time takes effect in this process when the context is left.
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
    # Control-C is sent to the whole process group. The parent handles it, and closes the pipe to
    # end this worker.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # With more threads than one per process, threads would wait for each other.
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(1)
