"""The input of an attention module during its call, for biases that depend on it."""

import threading
from typing import Any

from torch import Tensor, nn

_RECORDED = "sigmoid_input_watched"


class _Calls(threading.local):
    """The running calls of recorded modules in this thread, the innermost first."""

    def __init__(self) -> None:
        # The module, its input and the call around this one.
        self.innermost: tuple[nn.Module, Tensor | None, Any] | None = None


_calls = _Calls()


def record_input(module: nn.Module) -> None:
    """Record the input of an attention module, for `recorded_input`."""
    if not hasattr(module, _RECORDED):
        setattr(module, _RECORDED, True)
        # Prepended, so that every call that is left was entered.
        module.register_forward_pre_hook(_enter, with_kwargs=True, prepend=True)
        module.register_forward_hook(_leave, always_call=True)


def recorded_input(module: nn.Module) -> Tensor | None:
    """The input of a recorded module in the running call of this thread."""
    call = _calls.innermost
    return call[1] if call is not None and call[0] is module else None


def _enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _calls.innermost = (module, first_input(args, kwargs), _calls.innermost)


def _leave(module: nn.Module, *_: Any) -> None:
    call = _calls.innermost
    if call is not None and call[0] is module:
        _calls.innermost = call[2]


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The hidden states among the arguments of a module of transformers."""
    found = args[0] if args else kwargs.get("hidden_states")
    return found if isinstance(found, Tensor) else None
