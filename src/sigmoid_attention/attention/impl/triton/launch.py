"""The one door to the GPU: every kernel of this folder is launched here.

Within :func:`recorded` nothing is launched. What would have been is written down instead, so that
``repeated.py`` can launch it for other tensors.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources


class Launch(NamedTuple):
    kernel: Any
    programs: int
    arguments: tuple
    constants: dict[str, Any]


@dataclass
class Recording:
    """Launches in their order, and the tensors that one of them fills for a later one."""

    launches: list[Launch] = field(default_factory=list)
    rooms: list[Tensor] = field(default_factory=list)


_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)


@contextmanager
def recorded() -> Iterator[Recording]:
    """What is launched inside is not, but written down."""
    found = Recording()
    before = _recording.set(found)
    try:
        yield found
    finally:
        _recording.reset(before)


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Run as many programs, in one dimension: only that one may be longer than 65535."""
    recording = _recording.get()
    if recording is not None:
        recording.launches.append(Launch(kernel, programs, arguments, constants))
    elif programs:
        start(kernel, programs, arguments, constants)


def start(kernel: Any, programs: int, arguments: Sequence[Any], constants: dict[str, Any]) -> Any:
    """Launch now, and return the code that was compiled for such arguments; the interpreter's None.

    Raises ``NotImplementedError`` where the GPU has too little of what the kernel needs.
    """
    try:
        return kernel[(programs,)](*arguments, **constants)
    except OutOfResources as error:
        # Only a GPU that no configuration was chosen for.
        raise NotImplementedError(
            f"query: this GPU has {error.limit} of {error.name}, "
            f"the kernel {kernel.__name__} needs {error.required}"
        ) from error


def room(beside: Tensor, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor beside another one, in which a launch leaves what a later one reads."""
    made = beside.new_empty(sizes, dtype=dtype)
    recording = _recording.get()
    if recording is not None:
        recording.rooms.append(made)
    return made
