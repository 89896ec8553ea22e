"""Lists in one argument of a command line, separated by commas."""


def names(text: str) -> list[str]:
    """The names between commas, without spaces around them.

    Example:
        >>> names("sigmoid, softmax")
        ['sigmoid', 'softmax']
    """
    return [name.strip() for name in text.split(",")]


def whole_numbers(option: str, text: str) -> list[int]:
    """The numbers between commas.

    Raises:
        ValueError: a part of `text` is no whole number; `option` is named.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be whole numbers between commas, got {text!r}") from None
