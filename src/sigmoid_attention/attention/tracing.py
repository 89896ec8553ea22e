"""What graphs that torch makes of the operator are told, and which of them is being made.

Nothing here loads torch.compile or torch.onnx.
"""

import sys
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


def exporting_to_onnx() -> bool:
    """Whether torch.onnx.export is at work.

    ONNX knows no operator of this library, but has a translation of all that the definition uses.
    """
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and onnx.is_in_onnx_export()
