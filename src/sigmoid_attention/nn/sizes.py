"""Checks of sizes and other numbers, made once, by the constructor of a layer.

A wrong type is a ``TypeError``, a wrong value a ``ValueError``: "name must be ..., got ...".
"""

from collections.abc import Iterable
from typing import Any

from sigmoid_attention.attention import arguments


def positive_whole(name: str, size: Any) -> int:
    """A positive whole number, as Python's ``int``.

    Example:
        >>> positive_whole("num_heads", 2.5)
        Traceback (most recent call last):
        TypeError: num_heads must be a whole number, got 2.5
    """
    return _whole(name, size, 1, "positive")


def whole_from_zero(name: str, count: Any) -> int:
    """A whole number of 0 or more, as Python's ``int``."""
    return _whole(name, count, 0, "0 or more")


def whole_between(name: str, number: Any, least: int, most: int, wanted: str) -> int:
    """A whole number of ``least`` to ``most``; ``wanted`` describes it in messages."""
    integer = arguments.index(number)
    if integer is None:
        raise TypeError(f"{name} must be {wanted}, got {arguments.shown(number)}")
    if not least <= integer <= most:
        raise ValueError(f"{name} must be {wanted}, got {arguments.shown(number)}")
    return integer


def _whole(name: str, number: Any, least: int, wanted: str) -> int:
    if arguments.index(number) is None:
        raise TypeError(f"{name} must be a whole number, got {arguments.shown(number)}")
    return whole_between(name, number, least, 2**63 - 1, wanted)


def head_sizes(
    dim: int, num_heads: int, num_kv_heads: int | None, head_dim: int | None
) -> tuple[int, int]:
    """The number of key heads and the channels of a head, from checked sizes with None for default.

    Example:
        >>> head_sizes(32, num_heads=4, num_kv_heads=None, head_dim=None)
        (4, 8)
    """
    if head_dim is None and dim % num_heads:
        raise ValueError(f"dim must be a multiple of num_heads ({num_heads}), got {dim}")
    if num_kv_heads is not None and num_heads % num_kv_heads:
        raise ValueError(f"num_kv_heads must divide num_heads ({num_heads}), got {num_kv_heads}")
    return (
        num_heads if num_kv_heads is None else num_kv_heads,
        dim // num_heads if head_dim is None else head_dim,
    )


def positive_number(name: str, number: Any, wanted: str = "positive") -> float:
    """A positive number that float32 holds. A tensor is refused: it would not be trained."""
    plain = number_from_zero(name, number, wanted)
    if plain < arguments.SMALLEST:
        raise ValueError(f"{name} must be {wanted}, got {arguments.shown(number)}")
    return plain


def number_from_zero(name: str, number: Any, wanted: str = "0 or more") -> float:
    """A number of 0 or more that float32 holds."""
    plain = finite_number(name, number, wanted)
    if plain < 0:
        raise ValueError(f"{name} must be {wanted}, got {arguments.shown(number)}")
    return plain


def finite_number(name: str, number: Any, wanted: str = "finite") -> float:
    """A number of either sign that float32 holds."""
    plain = arguments.scalar(number)
    if not arguments.is_number(plain):
        raise TypeError(f"{name} must be a number, got {arguments.shown(number)}")
    if not abs(plain) <= arguments.LARGEST:
        raise ValueError(f"{name} must be {wanted}, got {arguments.shown(number)}")
    return plain


def probability(name: str, number: Any) -> float:
    """A number of at least 0 and below 1."""
    plain = number_from_zero(name, number, wanted := "at least 0 and below 1")
    if plain >= 1:
        raise ValueError(f"{name} must be {wanted}, got {arguments.shown(number)}")
    return plain


def switch(name: str, value: Any) -> bool:
    """True or False as Python's ``bool``; 1 and 0 are accepted."""
    return bool(arguments.switch(name, value))


def one_of(name: str, value: Any, allowed: Iterable[str | None], wanted: str | None = None) -> None:
    """Refuse a value outside the allowed names; ``wanted`` replaces their list in messages."""
    allowed = tuple(allowed)
    wanted = f"one of {allowed}" if wanted is None else wanted
    message = f"{name} must be {wanted}, got {arguments.shown_name(value)}"
    if not isinstance(value, str) and not (value is None and None in allowed):
        raise TypeError(message)
    if value not in allowed:
        raise ValueError(message)
