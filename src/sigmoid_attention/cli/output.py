"""What a command found, as JSON for programs."""

import dataclasses
import json
import math
from typing import Any


def print_json(found: Any) -> None:
    """Print `found` on standard output; dataclasses are objects, and what is no number is null.

    Example:
        >>> print_json({"path": __import__("pathlib").PurePosixPath("a/b"), "low": float("nan")})
        {
         "path": "a/b",
         "low": null
        }
    """
    print(json.dumps(_plain(found), indent=1))


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
        # JSON has no word for infinity or for what is not a number.
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
