"""A lock on an output folder, which also checks that the folder can be written."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sigmoid_attention.training.files import LOCK, could_not_write

try:
    import fcntl
except ImportError:  # Windows has no such locks.
    fcntl = None

# A link could lead to the file of another user. Windows has no such flag.
NO_LINK = getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder`, and find out before any work that it can be written.

    The folder is made, with those above it; what is empty in the end is removed again. The lock
    ends with this process, however that ends. Where `folder` is a file nothing is done.

    Raises:
        ValueError: another process writes to the folder; says which.
        OSError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp(), "run")
        >>> with only_writer(folder):
        ...     folder.is_dir()
        True
        >>> folder.exists()
        False
    """
    if folder.exists() and not folder.is_dir():
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / LOCK
    try:
        try:
            # One by one: `parents=True` calls itself for each, and there may be too many for that.
            for each in reversed(made):
                each.mkdir(exist_ok=True)
            lock = _taken(path)
        except BlockingIOError:
            raise ValueError(f"another process{_pid(path)} writes to {folder}") from None
        except OSError as error:
            # Something else may stand in the lock's place: a folder, a pipe, a link.
            raise could_not_write(path if os.path.lexists(path) else folder, error) from error
        try:
            yield
        finally:
            # While it is still held: who waits for this file sees that it is no longer there.
            path.unlink(missing_ok=True)
            os.close(lock)
    finally:
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process is in here with the same `path`, a file that is made for it."""
    lock = _taken(path, wait=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _taken(path: Path, *, wait: bool = False) -> int:
    """The open and locked file at `path`; ``BlockingIOError`` if another process holds it."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o644)
        try:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError:
                    raise
                except OSError:
                    # A file system without locks: better unguarded than of no use.
                    return _signed(lock)
            # Between opening and locking the holder may have removed the file.
            if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                return _signed(lock)
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _signed(lock: int) -> int:
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def _pid(path: Path) -> str:
    try:
        digits = path.read_bytes()
    except OSError:
        return ""
    return f" (pid {digits.decode()})" if digits.isdigit() else ""
