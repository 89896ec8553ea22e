"""A decorator that marks a function's result as a constant of compiled graphs."""

from collections.abc import Callable
from typing import Any, TypeVar

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
