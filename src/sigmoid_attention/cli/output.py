"""Prints the result of a command as JSON."""

import dataclasses
import json
import math
from typing import Any


def print_json(result: Any) -> None:
    """Print `result` on standard output; dataclasses become objects, NaN and infinity null.

    Example:
        >>> print_json({"path": __import__("pathlib").PurePosixPath("a/b"), "low": float("nan")})
        {
         "path": "a/b",
         "low": null
        }
    """
    print(json.dumps(_plain(result), indent=1))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        # JSON has neither infinity nor NaN.
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
