"""Sizes and other numbers that a layer is made with: checked once, when it is made."""

from collections.abc import Iterable
from typing import Any

from sigmoid_attention.attention import arguments


def positive_whole(name: str, size: Any) -> int:
    """The size as Python's; ``ValueError`` for what is no positive whole number.

    Example:
        >>> positive_whole("num_heads", 2.5)
        Traceback (most recent call last):
        ValueError: num_heads must be a whole number, got 2.5
    """
    found = arguments.index(size)
    if found is None:
        raise ValueError(f"{name} must be a whole number, got {arguments.shown(size)}")
    if not 0 < found < 2**63:
        raise ValueError(f"{name} must be positive, got {arguments.shown(size)}")
    return found


def whole_number(name: str, count: Any) -> int:
    """Likewise a whole number of 0 or more."""
    found = arguments.index(count)
    if found is None:
        raise ValueError(f"{name} must be a whole number, got {arguments.shown(count)}")
    if not 0 <= found < 2**63:
        raise ValueError(f"{name} must be 0 or more, got {arguments.shown(count)}")
    return found


def positive_number(name: str, number: Any, wanted: str = "positive") -> float:
    """Likewise a positive number that float32 holds. A tensor is none: it would not learn."""
    plain = number_from_zero(name, number, wanted)
    if plain < arguments.SMALLEST:
        raise ValueError(f"{name} must be {wanted}, got {arguments.shown(number)}")
    return plain


def number_from_zero(name: str, number: Any, wanted: str = "0 or more") -> float:
    """Likewise a number of 0 or more that float32 holds."""
    plain = finite_number(name, number, wanted)
    if plain < 0:
        raise ValueError(f"{name} must be {wanted}, got {arguments.shown(number)}")
    return plain


def finite_number(name: str, number: Any, wanted: str = "finite") -> float:
    """Likewise a number of any sign."""
    plain = arguments.scalar(number)
    if not arguments.is_number(plain):
        raise ValueError(f"{name} must be a number, got {arguments.shown(number)}")
    if not abs(plain) <= arguments.LARGEST:
        raise ValueError(f"{name} must be {wanted}, got {arguments.shown(number)}")
    return plain


def probability(name: str, number: Any) -> float:
    """Likewise a number of 0 or more and below 1."""
    plain = arguments.scalar(number)
    if not arguments.is_number(plain) or not 0 <= plain < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {arguments.shown(number)}")
    return plain


def switch(name: str, given: Any) -> bool:
    """True or False as Python's; 1 and 0 will do."""
    return bool(arguments.switch(name, given))


def one_of(name: str, given: Any, allowed: Iterable[str | None]) -> None:
    """``ValueError`` for what is none of the names."""
    allowed = tuple(allowed)
    if not isinstance(given, str | None) or given not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {arguments.shown_name(given)}")
