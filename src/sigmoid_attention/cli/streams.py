"""Standard output and error as they may come: closed, a pipe that nobody reads, not in Unicode."""

import codecs
import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

# What is said uses these, and a stream that has no other letters gets their likes.
LIKES = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013\u2014\u2500\u2501\u2550", "-"),
        **dict.fromkeys("\u2502\u2503\u2551", "|"),
        **dict.fromkeys("\u256d\u256e\u2570\u256f\u250c\u2510\u2514\u2518\u251c\u2524", "+"),
        **dict.fromkeys("\u2018\u2019", "'"),
        **dict.fromkeys("\u201c\u201d", '"'),
        **{"\u2022": "*", "\u2026": "...", "\u00d7": "x", "\u00b1": "+-", "\u00b7": "."},
        **{"\u2264": "<=", "\u2265": ">=", "\u2248": "~", "\u2192": "->", "\u00a0": " "},
    }
)
HANDLER = "sigmoid-attention.likes"


class Errors:
    """Standard error of which no failure is one of the work: from the first on it leads nowhere.

    So a full disk, a reader that left or a terminal that was closed ends no run, whatever writes:
    progress bars, warnings of libraries, this command's own sentences.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _to_nowhere(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _to_nowhere(self._stream)


def prepare() -> None:
    """Make standard output and error take any text; one that is closed takes it nowhere.

    Standard error takes it nowhere also where it cannot be written any more.
    """
    codecs.register_error(HANDLER, _like)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)
    if not isinstance(sys.stderr, Errors):
        sys.stderr = Errors(sys.stderr)


def _like(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    alike = error.object[error.start : error.end].translate(LIKES)
    return alike.encode("ascii", "backslashreplace").decode(), error.end


def named(error: Exception) -> Exception:
    """The same error; where it is standard output's own, as on a full disk, it says so."""
    # What this library writes to files names them in its own words, without the system's.
    if (
        isinstance(error, OSError)
        and error.errno == errno.ENOSPC
        and error.strerror
        and error.filename is None
    ):
        error.filename = "standard output"
        _to_nowhere(sys.stdout)
    return error


def reader_left(error: BaseException) -> bool:
    """Whether an error is that of a reader who has had enough, as `head` has.

    The stream then leads nowhere, so that what it still holds is no error again.
    """
    if isinstance(error, SystemExit):
        # So rich leaves it, and has led the stream away.
        return isinstance(error.__context__, BrokenPipeError)
    # Other pipes break, too: those to worker processes.
    left = _has_no_reader(sys.stdout)
    if left:
        _to_nowhere(sys.stdout)
    return left


def _has_no_reader(stream: TextIO) -> bool:
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return False
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _to_nowhere(stream: TextIO) -> None:
    with suppress(OSError, ValueError):
        _redirect(stream.fileno())


def _redirect(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
