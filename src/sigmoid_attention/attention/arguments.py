"""One argument by itself: a number, a whole number, a switch, or a tensor of numbers in memory.

Every complaint is a ``ValueError`` of one sentence: which argument, what it must be, what it got.
How the arguments of a call fit together is the matter of `validation`.
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
    ``instead`` says what to do for one that is to learn.
    """
    if isinstance(given, Tensor):
        raise ValueError(
            f"{name} must be {wanted}, got {shown(given)}, which could not learn here; {instead}"
        )
    given = scalar(given)
    if not is_number(given) or not -LARGEST <= given <= LARGEST:
        raise ValueError(f"{name} must be {wanted}, got {shown(given)}")
    return given


def whole(name: str, given: Any, least: int, wanted: str) -> int:
    """A whole number of ``least`` or more, as Python's; a trace's symbol stays one."""
    found = index(given)
    if found is None or not least <= found <= _LARGEST_WHOLE:
        raise ValueError(f"{name} must be {wanted}, got {shown(given)}")
    return found


def switch(name: str, given: Any) -> bool:
    """True or False; 1 and 0 will do."""
    given = scalar(given)
    if not isinstance(given, int | torch.SymBool) or given not in (True, False):
        raise ValueError(f"{name} must be True or False, got {shown(given)}")
    return given  # pyright: ignore[reportReturnType]


def tensor(name: str, given: Any) -> None:
    """Refuse what is not a tensor."""
    if not isinstance(given, Tensor):
        raise ValueError(
            f"{name} must be a tensor of torch, got {shown(given)}; torch.as_tensor makes one"
        )


def dense(name: str, given: Any) -> None:
    """Refuse what is not a tensor, or does not have its numbers side by side in memory."""
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
    """Whether it is a number, or a trace's symbol for one; True and False are none."""
    kinds = int | float | torch.SymInt | torch.SymFloat
    return isinstance(given, kinds) and not isinstance(given, bool)


def index(given: Any) -> int | None:
    """A whole number as Python's, of numpy or an integer tensor of one element, too, else None."""
    if isinstance(given, bool) or (isinstance(given, Tensor) and given.dtype == torch.bool):
        return None
    if isinstance(given, int | torch.SymInt):
        return given  # pyright: ignore[reportReturnType]
    try:
        return operator.index(given)
    except TypeError:
        return None


def scalar(given: Any) -> Any:
    """A scalar of numpy's as Python's; anything else as it is."""
    if isinstance(given, int | float | Tensor) or getattr(given, "ndim", None) != 0:
        return given
    return given.item()


def shown(given: Any) -> str:
    """What was given, in a few words."""
    if isinstance(given, Tensor):
        kind = "Parameter" if isinstance(given, torch.nn.Parameter) else "tensor"
        return f"a {kind}" if given.is_nested else f"a {kind} of shape {tuple(given.shape)}"
    if isinstance(given, int) and given.bit_length() > 128:
        return f"a number of {given.bit_length()} bits"
    if given is None or isinstance(given, str | int | float | complex | tuple | list):
        # On one line: what a list holds may be shown on several.
        said = " ".join(repr(given).split())
        said = said if len(said) <= 60 else f"{said[:57]}..."
        return f"the string {said}" if isinstance(given, str) else said
    return f"{type(given).__module__}.{type(given).__name__}"


def shown_name(given: Any) -> str:
    """What was given for a name, of which it is clear that a string is one."""
    return shown(given).removeprefix("the string ")
