"""All kernels of this folder are launched through :func:`launch`.

Inside :func:`recorded` launches are recorded and not run, so that ``call_cache.py`` can replay them
with other tensors.
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
    """Launches in their order, and the workspaces that one launch writes and a later one reads."""

    launches: list[Launch] = field(default_factory=list)
    workspaces: list[Tensor] = field(default_factory=list)


_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)


@contextmanager
def recorded() -> Iterator[Recording]:
    """Record the launches inside, and run none of them."""
    recording = Recording()
    token = _recording.set(recording)
    try:
        yield recording
    finally:
        _recording.reset(token)


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Run a kernel's programs in the grid's first dimension, which alone may exceed 65535."""
    recording = _recording.get()
    if recording is not None:
        recording.launches.append(Launch(kernel, programs, arguments, constants))
    elif programs:
        start(kernel, programs, arguments, constants)


def start(kernel: Any, programs: int, arguments: Sequence[Any], constants: dict[str, Any]) -> Any:
    """Launch now, and return the compiled code; under the interpreter None.

    Raises ``NotImplementedError`` if the GPU has too little of what the kernel needs.
    """
    try:
        return kernel[(programs,)](*arguments, **constants)
    except OutOfResources as error:
        # Only on a GPU that is not in the table of configurations.
        raise NotImplementedError(
            f"query: this GPU has {error.limit} of {error.name}, "
            f"the kernel {kernel.__name__} needs {error.required}"
        ) from error


def workspace(tensor: Tensor, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor on the device of another, which one launch writes and a later one reads."""
    made = tensor.new_empty(sizes, dtype=dtype)
    recording = _recording.get()
    if recording is not None:
        recording.workspaces.append(made)
    return made
