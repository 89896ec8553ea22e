"""The kernel of this process: chosen and loaded once, at the first use.

`SIGMOID_ATTENTION_CPU` forces a vector path, or "off". torch is loaded before the kernel, since
sigmoid_attention imports it. So the kernel uses torch's copy of libgomp and shares its threads.
"""

import ctypes
import logging
import os
import threading
from dataclasses import dataclass

from sigmoid_attention.attention.impl.cpu.cache import Built, build, rebuild
from sigmoid_attention.attention.impl.cpu.compiler import (
    PATHS,
    CannotBuild,
    NoCompiler,
    Unusable,
    runs,
)

_INSTEAD = "so attention on the CPU runs by tiles in PyTorch, which is slower"

_choices: "dict[str | None, Choice]" = {}


class _Choosing:
    """The lock of the thread that chooses, and whether it is choosing."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.busy = False


_choosing = _Choosing()


def _forget_other_threads() -> None:
    global _choosing
    _choosing = _Choosing()


# A forked child has no other threads. If one held the lock, the child would wait for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


@dataclass(frozen=True)
class Choice:
    """The library in use, its vector path and origin; or the reason for none, and a remedy."""

    library: ctypes.CDLL | None = None
    path: str = ""
    origin: str = ""
    problem: str = ""
    remedy: str = ""


class _OtherArguments(Exception):
    """The library was compiled for another argument block."""


def library(struct_size: int) -> ctypes.CDLL | None:
    """The kernel, or None if PyTorch has to compute the tiles; chosen once for each forced path.

    Args:
        struct_size: the size in bytes of the caller's argument block.

    Raises:
        ValueError: `SIGMOID_ATTENTION_CPU` names no vector path, or one that cannot run here.
        RuntimeError: a newly compiled library takes another argument block.
    """
    return choose(struct_size).library


def choose(struct_size: int) -> Choice:
    """The choice that `library` makes, with the reasons; raises what `library` raises."""
    if (decided := decision()) is not None:
        return decided
    choosing = _choosing
    with choosing.lock:
        if (decided := decision()) is not None:
            return decided
        if choosing.busy:
            # This is a signal handler that interrupted the choice in the same thread.
            return Choice(problem="the kernel is being compiled by the code that was interrupted")
        choosing.busy = True
        try:
            decided = _choices[forced()] = _choose(forced(), struct_size)
        finally:
            choosing.busy = False
    return decided


def decision() -> Choice | None:
    """The choice of this process for the current environment; None before the first use."""
    return _choices.get(forced())


def forced() -> str | None:
    """The vector path that the environment forces, or "off"."""
    return os.environ.get("SIGMOID_ATTENTION_CPU") or None


def _choose(forced: str | None, struct_size: int) -> Choice:
    if forced == "off":
        return Choice(problem="switched off by SIGMOID_ATTENTION_CPU", remedy="unset it")
    candidates = _candidates(forced)
    problem = ""
    for path in candidates:
        try:
            loaded, built = _load(path, struct_size)
        except (NoCompiler, Unusable) as error:
            return _none(str(error), error.remedy)
        except CannotBuild as error:
            # An older compiler may only lack the newest instructions.
            problem = problem or str(error)
        else:
            if not problem:
                return Choice(loaded, path, built.origin)
            _log(f"the CPU kernel falls back to {path}: {problem}")
            return Choice(loaded, path, built.origin, problem, "install a newer compiler")
    return _none(problem, CannotBuild.remedy)


def _candidates(forced: str | None) -> list[str]:
    runnable = [path for path in PATHS if runs(path)]
    if forced is None:
        return runnable
    if forced not in PATHS:
        raise ValueError(
            f"SIGMOID_ATTENTION_CPU must be one of {', '.join(PATHS)} or off, got {forced!r}"
        )
    if forced not in runnable:
        raise ValueError(
            f"SIGMOID_ATTENTION_CPU must be one of {', '.join(runnable)} or off on this "
            f"processor, got {forced!r}"
        )
    return [forced]


def _load(path: str, struct_size: int) -> tuple[ctypes.CDLL, Built]:
    built = build(path)
    try:
        return _open(built, struct_size), built
    except (OSError, _OtherArguments):
        built = rebuild(path, built)
    try:
        return _open(built, struct_size), built
    except OSError as error:
        raise CannotBuild(f"the library that was just compiled does not load: {error}") from error
    except _OtherArguments as error:
        raise RuntimeError(
            f"the CPU kernel takes other arguments than its caller: {error}"
        ) from None


def _open(built: Built, struct_size: int) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(built.file))
    try:
        abi = loaded.sigmoid_attention_abi
    except AttributeError as error:
        raise OSError(str(error)) from None
    abi.restype = ctypes.c_int64
    if (expected := abi()) != struct_size:
        raise _OtherArguments(f"{expected} bytes of them, got {struct_size}")
    return loaded


def _none(problem: str, remedy: str) -> Choice:
    _log(f"{problem}, {_INSTEAD}: {remedy}")
    return Choice(problem=problem, remedy=remedy)


def _log(line: str) -> None:
    logging.getLogger("sigmoid_attention").warning(line)
