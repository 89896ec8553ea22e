"""One argument by itself: a number, a whole number, a switch, or a dense tensor.

Every message is one sentence: the argument, what it must be, what it got. A wrong type is a
``TypeError``, a wrong value a ``ValueError``. `validation` checks how the
arguments of a call fit together.
"""

import operator
from typing import Any, TypeGuard

import torch
from torch import Tensor

# Kernels keep their numbers in fp32: beyond these a number is infinite there, or a softcap zero.
LARGEST = torch.finfo(torch.float32).max
SMALLEST = torch.finfo(torch.float32).tiny
_LARGEST_WHOLE = torch.iinfo(torch.int64).max


def number(
    name: str, given: Any, wanted: str = "a finite number", instead: str = "give its .item()"
) -> float:
    """A finite number, as Python's; a trace's symbol stays one.

    A tensor is none, with or without elements: kernels take their numbers by value, so that it
    would stay without its gradient, and a compiled graph would keep the value of its first call.
    ``instead`` says what to do for a number that is to learn.
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
    """A whole number of ``least`` or more, as Python's; a trace's symbol stays one."""
    integer = index(given)
    if integer is None:
        raise TypeError(f"{name} must be {wanted}, got {shown(given)}")
    if not least <= integer <= _LARGEST_WHOLE:
        raise ValueError(f"{name} must be {wanted}, got {shown(given)}")
    return integer


def switch(name: str, given: Any) -> bool:
    """True or False; 1 and 0 will do."""
    given = scalar(given)
    if not isinstance(given, int | torch.SymBool):
        raise TypeError(f"{name} must be True or False, got {shown(given)}")
    if given not in (True, False):
        raise ValueError(f"{name} must be True or False, got {shown(given)}")
    return given  # pyright: ignore[reportReturnType]


def tensor(name: str, given: Any) -> None:
    """Refuse what is not a tensor."""
    if not isinstance(given, Tensor):
        raise TypeError(
            f"{name} must be a tensor of torch, got {shown(given)}; torch.as_tensor makes one"
        )


def dense(name: str, given: Any) -> None:
    """Refuse what is not a tensor, or does not have its elements side by side in memory."""
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


def is_number(given: Any) -> TypeGuard[float]:
    """Whether it is a number, or a trace's symbol for a number; True and False are none."""
    kinds = int | float | torch.SymInt | torch.SymFloat
    return isinstance(given, kinds) and not isinstance(given, bool)


def index(given: Any) -> int | None:
    """A whole number as Python's, from NumPy or an integer tensor of one element too, else None."""
    if isinstance(given, bool) or (isinstance(given, Tensor) and given.dtype == torch.bool):
        return None
    if isinstance(given, int | torch.SymInt):
        return given  # pyright: ignore[reportReturnType]
    try:
        return operator.index(given)
    except TypeError:
        return None


def scalar(given: Any) -> Any:
    """A NumPy scalar as Python's; any other object as it is."""
    if isinstance(given, int | float | Tensor) or getattr(given, "ndim", None) != 0:
        return given
    return given.item()


def shown(given: Any) -> str:
    """A description of the object in a few words, for messages."""
    if isinstance(given, Tensor):
        kind = "Parameter" if isinstance(given, torch.nn.Parameter) else "tensor"
        return f"a {kind}" if given.is_nested else f"a {kind} of shape {tuple(given.shape)}"
    if isinstance(given, int) and given.bit_length() > 128:
        return f"a number of {given.bit_length()} bits"
    if given is None or isinstance(given, str | int | float | complex | tuple | list):
        # On one line: the elements of a list may be shown on several.
        text = " ".join(repr(given).split())
        text = text if len(text) <= 60 else f"{text[:57]}..."
        return f"the string {text}" if isinstance(given, str) else text
    return f"{type(given).__module__}.{type(given).__name__}"


def shown_name(given: Any) -> str:
    """Like `shown`, for an argument that is a name: a string is not called one."""
    return shown(given).removeprefix("the string ")
