"""Sizes and other numbers that a layer is made with: checked once, when it is made."""

from typing import Any

from sigmoid_attention.attention import arguments


def positive_whole(name: str, size: Any) -> int:
    """The size as Python's; ``ValueError`` for what is no positive whole number.

    Example:
        >>> positive_whole("heads", 2.5)
        Traceback (most recent call last):
        ValueError: heads must be a whole number, got 2.5
    """
    found = arguments.index(size)
    if found is None:
        raise ValueError(f"{name} must be a whole number, got {arguments.shown(size)}")
    if not 0 < found < 2**63:
        raise ValueError(f"{name} must be positive, got {arguments.shown(size)}")
    return found


def positive_number(name: str, number: Any) -> float:
    """Likewise a positive finite number. A tensor is none: it would not learn."""
    plain = arguments.scalar(number)
    if not arguments.is_number(plain):
        raise ValueError(f"{name} must be a number, got {arguments.shown(number)}")
    if not 0 < plain <= arguments.LARGEST:
        raise ValueError(f"{name} must be positive, got {arguments.shown(number)}")
    return plain
