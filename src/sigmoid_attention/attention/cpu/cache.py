"""Where the compiled kernel is kept: shipped with the wheel, or cached at the first use.

Any number of processes may start at once. The first holds a lock while it compiles, the others
wait for its library; the system frees the lock of a process that dies.
"""

import atexit
import contextlib
import functools
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sigmoid_attention.attention.cpu import compiler

try:
    import fcntl
except ImportError:  # Windows: there two processes may compile the same library, each its own
    fcntl = None

PREBUILT = Path(__file__).parent / "prebuilt"


@dataclass(frozen=True)
class Built:
    """A library that can be loaded, and where it came from."""

    file: Path
    origin: Literal["prebuilt", "cached", "compiled"]


def build(path: str, kernel: Path = compiler.KERNEL, prebuilt: Path = PREBUILT) -> Built:
    """The library of a vector path: prebuilt if the wheel has it, else cached, else compiled.

    Raises:
        CannotBuild: there is no compiler, or it fails.
    """
    shipped = prebuilt / compiler.library_name(path, None, kernel)
    if compiler.intact(shipped):
        return Built(shipped, "prebuilt")
    found = compiler.find_compiler()
    name = compiler.library_name(path, found, kernel)
    with contextlib.suppress(OSError, RuntimeError):
        if compiler.intact(kept := cache_folder() / name):
            return Built(kept, "cached")
    folder = _writable_folder()
    with _alone(folder / f"{name}.lock"):
        # Another process may have compiled it while this one waited.
        if compiler.intact(kept := folder / name):
            return Built(kept, "cached")
        return _compile(path, found, folder, kernel)


def rebuild(path: str, rejected: Built, kernel: Path = compiler.KERNEL) -> Built:
    """Compile a library anew that is intact, and yet cannot be loaded or used.

    It is dropped from the cache, and the new one goes to a folder of this process: under the old
    name, the loader would take it for the one that it knows.
    """
    if rejected.origin != "prebuilt":
        with contextlib.suppress(OSError):
            rejected.file.unlink()
    return _compile(path, compiler.find_compiler(), _process_folder(), kernel)


def cache_folder() -> Path:
    """The user's cache folder for this library, or what `SIGMOID_ATTENTION_CACHE` names.

    Raises:
        RuntimeError: this user has no home.
    """
    if named := os.environ.get("SIGMOID_ATTENTION_CACHE"):
        return Path(named)
    name = "sigmoid-attention"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
        return Path(local, name, name, "Cache").expanduser()
    if sys.platform == "darwin":
        return Path("~/Library/Caches", name).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", name).expanduser()


def _compile(path: str, found: compiler.Compiler, folder: Path, kernel: Path) -> Built:
    name = compiler.library_name(path, found, kernel)
    logging.getLogger("sigmoid_attention").info("compiling the CPU kernel for %s, once", path)
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as scratch:
        out = Path(scratch, name)
        compiler.compile_library(path, found, out, kernel)
        compiler.seal(out)
        compiler.move(out, folder)
    return Built(folder / name, "compiled")


def _writable_folder() -> Path:
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):
        return _process_folder()


@functools.cache
def _process_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="sigmoid-attention-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("ab") as handle:
        # A file system without locks leaves what Windows has: everybody compiles.
        with contextlib.suppress(OSError):
            if fcntl:
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
