"""Handles Ctrl-C and other termination signals: at once, or at the end of a training step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

# Ctrl-C, the termination by `kill` or a batch system, and the closing of the terminal.
REQUESTS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Interrupted(KeyboardInterrupt):
    """The signal `number` requested termination; a shell expects the exit code 128 + number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


@dataclass
class Request:
    """The signal that was received, if any, and a sentence about the saved work."""

    number: int | None = None
    kept: str = ""

    def __bool__(self) -> bool:
        return self.number is not None


@contextmanager
def interruptible() -> Iterator[None]:
    """A context in which termination signals raise ``Interrupted``, so that cleanup code runs.

    An interrupted import can replace this exception by another one; ``Interrupted`` is restored.
    """
    came: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        raise Interrupted(number)

    try:
        with _handled_by(end):
            yield
    except Exception as error:
        if came:
            raise Interrupted(came[0]) from error
        raise


@contextmanager
def requests_ignored() -> Iterator[None]:
    """A context that ignores termination signals, except in an inner context that handles them."""
    with _handled_by(lambda _number, _frame: None):
        yield


@contextmanager
def ending_later() -> Iterator[Request]:
    """A context in which the first termination signal only sets `request`, which the work checks.

    The second signal takes effect at once. When the context is left, the first signal is raised
    again, and its exception has the note `kept`.

    Example:
        >>> try:
        ...     with ending_later() as request:
        ...         signal.raise_signal(signal.SIGINT)
        ...         request.kept = "step 7 is kept"
        ... except KeyboardInterrupt as error:
        ...     print(error.__notes__)
        ['step 7 is kept']
    """
    request = Request()

    def note(number: int, _frame: FrameType | None) -> None:
        if request:
            undo()
            signal.raise_signal(number)
        request.number = number

    try:
        with _handled_by(note) as undo:
            yield request
    finally:
        if request.number is not None:
            _raise(request.number, request.kept)


def _raise(number: int, kept: str) -> None:
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt as error:
        if kept:
            error.add_note(kept)
        raise


@contextmanager
def _handled_by(
    handler: Callable[[int, FrameType | None], None],
) -> Iterator[Callable[[], None]]:
    """Handle termination signals by `handler`; yields a function that restores the old handlers."""
    before = {}
    # Only the main thread may set handlers. Ignored signals (as under nohup) stay ignored.
    if threading.current_thread() is threading.main_thread():
        for number in REQUESTS:
            if signal.getsignal(number) not in (None, signal.SIG_IGN):
                before[number] = signal.signal(number, handler)

    def undo() -> None:
        for number, previous in before.items():
            signal.signal(number, previous)

    try:
        yield undo
    finally:
        undo()
