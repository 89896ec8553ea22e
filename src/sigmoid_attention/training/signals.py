"""Ctrl-C and other signals that request the end: at once, or at the end of a training step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

# Ctrl-C, the end that `kill` and a batch system ask for, and a terminal that was closed.
REQUESTS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Interrupted(KeyboardInterrupt):
    """A request to end came as the signal `number`; a shell expects the exit code 128 + number."""

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
    """Within it every request to end raises ``Interrupted``, so that contexts are left in order.

    An import that is interrupted can turn this into another exception, which is turned back.
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
    """Within it requests to end do nothing, except in an inner context that handles them."""
    with _handled_by(lambda _number, _frame: None):
        yield


@contextmanager
def ending_later() -> Iterator[Request]:
    """Within it the first request to end only sets `request`, and the work then ends by itself.

    The second request takes effect at once. When the context is left, the first signal is raised
    again; the exception that it raises carries the note `kept`.

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
    """Handle requests to end by `handler`; yields a function that restores the old handlers."""
    before = {}
    # Only the main thread may set handlers. Signals that are ignored, as by nohup, stay ignored.
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
