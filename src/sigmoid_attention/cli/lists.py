"""Parses comma-separated lists in command-line arguments."""


def names(text: str) -> list[str]:
    """The names in a comma-separated list, without surrounding spaces.

    Example:
        >>> names("sigmoid, softmax")
        ['sigmoid', 'softmax']
    """
    return [name.strip() for name in text.split(",")]


def whole_numbers(option: str, text: str) -> list[int]:
    """The integers in a comma-separated list.

    Raises:
        ValueError: a part of `text` is not an integer; names `option`.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be whole numbers between commas, got {text!r}") from None
