"""The cache of compiled kernels: a kernel is shipped with the wheel, or compiled at the first use.

A kernel is compiled in a folder of this process and then copied to the cache. If the cache cannot
be used (no permission, full, damaged), each process compiles the kernel for itself.

Any number of processes may start at once. The first one holds a lock while it compiles, and the
others wait for its library. The system frees the lock of a process that dies.
"""

import atexit
import contextlib
import functools
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sigmoid_attention.attention.impl.cpu import compiler
from sigmoid_attention.folders import cache_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PREBUILT = Path(__file__).parent / "prebuilt"

# As long as a process waits for its own compiler (compiler.py).
_WAIT_S = 120.0
# To copy a library takes seconds; after an hour the process that copied it has died.
_LEFT_BEHIND_S = 3600.0
_COPY = "build-"
_FOLDER = "sigmoid-attention-"

_logger = logging.getLogger("sigmoid_attention")


class _OpenToOthers(Exception):
    """Other users can add a library to the cache, or replace one."""


@dataclass(frozen=True)
class Built:
    """A library that can be loaded, and its origin."""

    file: Path
    origin: Literal["prebuilt", "cached", "compiled"]


def build(path: str, kernel: Path = compiler.KERNEL, prebuilt: Path = PREBUILT) -> Built:
    """The library of a vector path: prebuilt if the wheel has it, else cached, else compiled.

    Raises:
        CannotBuild: there is no compiler, or it fails, or no folder can be written.
    """
    shipped = prebuilt / compiler.library_name(path, None, kernel)
    if compiler.intact(shipped):
        return Built(shipped, "prebuilt")
    chosen = compiler.find_compiler()
    name = compiler.library_name(path, chosen, kernel)
    try:
        folder = _cache()
        if kept := _usable(folder / name):
            return Built(kept, "cached")
        with _locked(folder / f"{name}.lock"):
            # Another process may have compiled it while this one waited.
            if kept := _usable(folder / name):
                return Built(kept, "cached")
            compiled = _compile(path, chosen, kernel)
            return Built(_publish(compiled.file, folder), "compiled")
    except _OpenToOthers as problem:
        _logger.warning("the CPU kernel is compiled for this process alone: %s", problem)
    except (OSError, RuntimeError) as problem:
        _logger.info("the CPU kernel is compiled for this process alone: %s", problem)
    return _compile(path, chosen, kernel)


def rebuild(path: str, rejected: Built, kernel: Path = compiler.KERNEL) -> Built:
    """Compile a library again that is intact but cannot be loaded or used.

    It is removed from the cache. The new library stays in the folder of this process: under the old
    path the loader would return the library that it has already loaded.
    """
    if rejected.origin != "prebuilt":
        with contextlib.suppress(OSError):
            rejected.file.unlink()
    return _compile(path, compiler.find_compiler(), kernel, anew=True)


def _cache() -> Path:
    """The cache's folder, which is created if it does not exist.

    Raises:
        OSError: it cannot be created.
        _OpenToOthers: other users can write to it. A library runs with this user's rights.
    """
    folder = cache_folder()
    if not folder.is_dir():
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not hasattr(os, "geteuid"):
        return folder
    state = folder.stat()
    default = not os.environ.get("SIGMOID_ATTENTION_CACHE")
    if default and state.st_uid == os.geteuid() and state.st_mode & 0o022:
        # Created under a umask that lets the user's group write.
        folder.chmod(stat.S_IMODE(state.st_mode) & ~0o022)
        state = folder.stat()
    if not _is_trusted(state) or state.st_mode & 0o022:
        raise _OpenToOthers(f"other users can write to {folder}; chmod go-w ends that")
    for parent in folder.resolve().parents:
        mode = parent.stat().st_mode
        if mode & 0o002 and not mode & stat.S_ISVTX:
            raise _OpenToOthers(f"other users can write to {parent} and replace {folder}")
    return folder


def _is_trusted(state: os.stat_result) -> bool:
    return state.st_uid in (0, os.geteuid())


def _usable(file: Path) -> Path | None:
    """The file, if it is an intact library that this user or root owns."""
    with contextlib.suppress(OSError):
        if not hasattr(os, "geteuid") or _is_trusted(file.stat()):
            return file if compiler.intact(file) else None
    return None


def _compile(path: str, chosen: compiler.Compiler, kernel: Path, anew: bool = False) -> Built:
    """Compile into the folder of this process, or take the library that is already there."""
    try:
        folder = _process_folder()
        file = folder / compiler.library_name(path, chosen, kernel)
        if not anew and compiler.intact(file):
            return Built(file, "cached")
        _logger.info("compiling the CPU kernel for %s, once", path)
        file.unlink(missing_ok=True)
        compiler.compile_library(path, chosen, file, kernel)
        compiler.seal(file)
    except OSError as problem:
        raise compiler.NoRoom(f"the CPU kernel cannot be written: {problem}") from problem
    return Built(file, "compiled")


def _publish(file: Path, folder: Path) -> Path:
    """Copy a sealed library to the cache, while other processes may read the cache."""
    try:
        for left in folder.glob(f"{_COPY}*"):
            if left.stat().st_mtime < time.time() - _LEFT_BEHIND_S:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_COPY, dir=folder) as scratch:
            # The seal last: until it is there, no process takes the library for intact.
            for part in (file, compiler.seal_of(file)):
                copy = shutil.copy(part, scratch)
                os.replace(copy, folder / part.name)
    except OSError as problem:
        _logger.info("the CPU kernel is kept for this process alone: %s", problem)
        return file
    return folder / file.name


@functools.cache
def _process_folder() -> Path:
    """A folder that no other user can enter, and that is removed with this process."""
    _remove_folders_of_dead_processes()
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
    creator = os.getpid()
    if fcntl:
        # Held until this process ends. Not a FileLock: filelock before 4 releases the lock when a
        # forked child ends.
        alive = os.open(folder / "alive", os.O_RDWR | os.O_CREAT)
        with contextlib.suppress(OSError):
            fcntl.flock(alive, fcntl.LOCK_EX)

    def remove() -> None:
        # A forked child that ends must not remove the folder of its parent.
        if os.getpid() == creator:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _remove_folders_of_dead_processes() -> None:
    if not fcntl:
        return
    for alive in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*/alive"):
        with contextlib.suppress(OSError):
            if alive.stat().st_uid != os.geteuid():
                continue
            handle = os.open(alive, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(alive.parent, ignore_errors=True)
            finally:
                os.close(handle)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock file, or go on without it after two minutes or where there are no locks."""
    # Imported here: only a process that compiles needs it.
    from filelock import FileLock, Timeout

    lock = FileLock(file, mode=0o644)
    notice_s = min(10.0, _WAIT_S)
    with contextlib.suppress(OSError, NotImplementedError):
        try:
            lock.acquire(timeout=notice_s)
        except Timeout:
            _logger.warning(
                "another process compiles the CPU kernel; waiting for it, at most %g seconds",
                _WAIT_S,
            )
            lock.acquire(timeout=_WAIT_S - notice_s)
    try:
        yield
    finally:
        lock.release()
