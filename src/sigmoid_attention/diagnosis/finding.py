"""One fault: its place, the measured figure, and the change that mends it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        fault: its short name, such as ``"mass"``.
        where: module and heads, or the step of a training.
        said: one sentence with the measured figures.
        change: one sentence with the change that mends it.
    """

    fault: str
    where: str
    said: str
    change: str

    def __str__(self) -> str:
        return f"{self.where}: {self.said} {self.change}"


def heads(numbers: list[int]) -> str:
    """A list of heads in words.

    Example:
        >>> heads([0, 2]), heads([1])
        ('heads 0, 2', 'head 1')
    """
    return f"head{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
