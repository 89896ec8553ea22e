"""A mark for functions that a compiled graph calls once; it does not load torch.compile."""

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_when_traced(function: Function) -> Function:
    """Mark a function whose answer a compiled graph may take for a constant.

    It sets what ``torch.compiler.assume_constant_result`` sets. That one imports the whole of
    dynamo, which takes longer than torch itself, though most calls are never compiled.

    Example:
        >>> @constant_when_traced
        ... def cores():
        ...     return 2
        >>> cores()
        2
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function
