"""Makes standard output and error robust against closed streams, broken pipes and encodings."""

import codecs
import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

# Replacements for characters that the encoding of a stream lacks.
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
    """Standard error whose failures are ignored; after the first one its output is discarded.

    So a full disk, a broken pipe or a closed terminal does not end a run that still writes progress
    bars, warnings and messages.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _discard_output(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _discard_output(self._stream)


def prepare() -> None:
    """Make standard output and error accept any text; the output of a closed one is discarded.

    The output of standard error is also discarded once it cannot be written any more.
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
    """The same error; if standard output is on a full disk, the error names standard output."""
    # This library's errors on its own files have a message and no `strerror`.
    if (
        isinstance(error, OSError)
        and error.errno == errno.ENOSPC
        and error.strerror
        and error.filename is None
    ):
        error.filename = "standard output"
        _discard_output(sys.stdout)
    return error


def reader_left(error: BaseException) -> bool:
    """Whether an error means that the reader of standard output has closed it, as `head` does.

    The rest of the output is then discarded, so that it raises no second error.
    """
    if isinstance(error, SystemExit):
        # rich raises this after it has redirected the stream.
        return isinstance(error.__context__, BrokenPipeError)
    # The broken pipe may be that of a worker process.
    left = _has_no_reader(sys.stdout)
    if left:
        _discard_output(sys.stdout)
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


def _discard_output(stream: TextIO) -> None:
    with suppress(OSError, ValueError):
        _redirect(stream.fileno())


def _redirect(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
