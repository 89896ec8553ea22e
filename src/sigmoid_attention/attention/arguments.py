"""Checks of single arguments: numbers, booleans, names, objects and dense tensors.

Every message is one sentence: the argument, its condition, the given value. A wrong type is a
``TypeError``, a wrong value a ``ValueError``. `validation` checks conditions between the arguments
of a call.
"""

import operator
from collections.abc import Iterable
from typing import Any, TypeGuard

import torch
from torch import Tensor

# Kernels keep numbers in fp32, where a number above LARGEST is infinite and a softcap below
# SMALLEST would be zero.
LARGEST = torch.finfo(torch.float32).max
SMALLEST = torch.finfo(torch.float32).tiny
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST_WHOLE = torch.iinfo(torch.int64).max


def number(
    name: str, given: Any, wanted: str = "a finite number", instead: str = "give its .item()"
) -> float:
    """The argument as a finite Python number; a symbol of a traced graph is returned unchanged.

    Any tensor raises ``TypeError``: kernels take numbers by value, so the tensor would get no
    gradient, and a compiled graph would keep the value of its first call. ``instead`` is the
    message's advice for a trained number.
    """
    if isinstance(given, Tensor):
        raise TypeError(
            f"{name} must be {wanted}, got {shown(given)}, which could not learn here; {instead}"
        )
    given = scalar(given)
    if not is_number(given):
        raise TypeError(f"{name} must be {wanted}, got {shown(given)}")
    if not -LARGEST <= given <= LARGEST:
        raise ValueError(f"{name} must be {wanted}, got {shown(given)}")
    return given


def whole(name: str, given: Any, least: int, wanted: str) -> int:
    """The argument as a Python integer of at least ``least``; a symbol is returned unchanged."""
    integer = index(given)
    if integer is None:
        raise TypeError(f"{name} must be {wanted}, got {shown(given)}")
    if not least <= integer <= _LARGEST_WHOLE:
        raise ValueError(f"{name} must be {wanted}, got {shown(given)}")
    return integer


def switch(name: str, given: Any) -> bool:
    """The argument as a boolean; 1 and 0 are accepted."""
    given = scalar(given)
    if not isinstance(given, int | torch.SymBool):
        raise TypeError(f"{name} must be True or False, got {shown(given)}")
    if given not in (True, False):
        raise ValueError(f"{name} must be True or False, got {shown(given)}")
    return given  # pyright: ignore[reportReturnType]


def one_of(name: str, given: Any, allowed: Iterable[str | None], wanted: str | None = None) -> None:
    """Raise unless the argument is one of the names; ``wanted`` replaces their list in messages."""
    allowed = tuple(allowed)
    wanted = f"one of {allowed}" if wanted is None else wanted
    message = f"{name} must be {wanted}, got {shown_name(given)}"
    if not isinstance(given, str) and not (given is None and None in allowed):
        raise TypeError(message)
    if given not in allowed:
        raise ValueError(message)


def instance(name: str, given: Any, kind: Any, wanted: str) -> None:
    """Raise ``TypeError`` unless the argument is an object of this kind."""
    if not isinstance(given, kind):
        raise TypeError(f"{name} must be {wanted}, got {shown(given)}")


def tensor(name: str, given: Any) -> None:
    """Raise ``TypeError`` unless the argument is a tensor."""
    if not isinstance(given, Tensor):
        raise TypeError(
            f"{name} must be a tensor of torch, got {shown(given)}; torch.as_tensor makes one"
        )


def dense(name: str, given: Any) -> None:
    """Raise unless the argument is a tensor with strides: neither nested nor sparse."""
    tensor(name, given)
    if given.is_nested:
        raise ValueError(
            f"{name} must be a dense tensor, got a nested one; sequences of different lengths go "
            f"packed, as their .values(), to sigmoid_varlen_attention"
        )
    if given.layout is not torch.strided:
        raise ValueError(
            f"{name} must be a dense tensor, got one of layout {given.layout}; .to_dense() makes "
            f"it one"
        )


def on_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """Raise unless the tensor is on the device of the query."""
    if tensor.device != device:
        raise ValueError(f"{name} must be on query's device, got {tensor.device} and {device}")


def floating(name: str, given: Any, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise unless the argument is a floating dense tensor, of this shape and device."""
    dense(name, given)
    on_device(name, given, device)
    if given.dtype not in FLOATS:
        raise ValueError(f"{name} must be floating, got {given.dtype}")
    if given.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(given.shape)}")


def is_number(given: Any) -> TypeGuard[float]:
    """Whether the argument is a number or the symbol of one in a traced graph, and no boolean."""
    kinds = int | float | torch.SymInt | torch.SymFloat
    return isinstance(given, kinds) and not isinstance(given, bool)


def index(given: Any) -> int | None:
    """A Python integer, from a NumPy integer or a one-element integer tensor too, else None."""
    if isinstance(given, bool) or (isinstance(given, Tensor) and given.dtype == torch.bool):
        return None
    if isinstance(given, int | torch.SymInt):
        return given  # pyright: ignore[reportReturnType]
    try:
        return operator.index(given)
    except TypeError:
        return None


def scalar(given: Any) -> Any:
    """A NumPy scalar as a Python number; any other object unchanged."""
    if isinstance(given, int | float | Tensor) or getattr(given, "ndim", None) != 0:
        return given
    return given.item()


def shown(given: Any) -> str:
    """A short description of the object, for error messages."""
    if isinstance(given, Tensor):
        kind = "Parameter" if isinstance(given, torch.nn.Parameter) else "tensor"
        return f"a {kind}" if given.is_nested else f"a {kind} of shape {tuple(given.shape)}"
    if isinstance(given, int) and given.bit_length() > 128:
        return f"a number of {given.bit_length()} bits"
    if given is None or isinstance(given, str | int | float | complex | tuple | list):
        # On one line: the repr of a list may have several.
        text = " ".join(repr(given).split())
        text = text if len(text) <= 60 else f"{text[:57]}..."
        return f"the string {text}" if isinstance(given, str) else text
    return f"{type(given).__module__}.{type(given).__name__}"


def shown_name(given: Any) -> str:
    """Like `shown`, for an argument that is a name: without the words "the string"."""
    return shown(given).removeprefix("the string ")
