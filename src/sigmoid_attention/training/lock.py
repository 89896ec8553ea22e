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

# A symbolic link could point to the file of another user. Windows has no such flag.
NO_LINK = getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Lock `folder` against other processes, and check before any work that it can be written.

    The folder and its parents are created; those that are empty at the end are removed again. The
    system releases the lock when this process ends in any way. If `folder` is a file, nothing is
    done.

    Raises:
        ValueError: another process writes to the folder; gives its id.
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
            # One by one: `parents=True` is recursive, and a deep path may exceed the stack.
            for each in reversed(made):
                each.mkdir(exist_ok=True)
            lock = _taken(path)
        except BlockingIOError:
            raise ValueError(f"another process{_pid(path)} writes to {folder}") from None
        except OSError as error:
            # The path of the lock may be a folder, a pipe or a link.
            raise could_not_write(path if os.path.lexists(path) else folder, error) from error
        try:
            yield
        finally:
            # Removed while still locked: a process that waits for the lock finds the file gone.
            path.unlink(missing_ok=True)
            os.close(lock)
    finally:
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """A context that one process at a time enters; `path` is a lock file, created for it."""
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
                    # The file system has no locks: continue without one.
                    return _signed(lock)
            # The holder may have removed the file between opening and locking.
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
