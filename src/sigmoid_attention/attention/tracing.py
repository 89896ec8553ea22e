"""Helpers for code that torch.compile traces."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_when_traced(function: Function) -> Function:
    """Mark a function whose result a compiled graph may treat as a constant.

    It sets the same attribute as ``torch.compiler.assume_constant_result``. That function imports
    all of dynamo, which takes longer than the import of torch, and most calls are never compiled.

    Example:
        >>> @constant_when_traced
        ... def cores():
        ...     return 2
        >>> cores()
        2
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


def known(condition: bool | torch.SymBool) -> bool:
    """Whether a condition holds; in a compiled graph, whether it holds for all dynamic lengths.

    A Python ``if`` would restrict the graph to lengths with the condition's present value.
    """
    if not torch.compiler.is_compiling():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)
