"""The base class of scores and experts with named groups of parameters, and look-up by name."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypeVar

from sigmoid_attention.attention import arguments

Kind = TypeVar("Kind")


class Parametric(ABC):
    """A function with parameters in named parts."""

    name: str

    @abstractmethod
    def parts(self, dim: int) -> dict[str, int]:
        """The parts in order, and the size of each, for inputs of ``dim`` dimensions."""

    def count(self, dim: int) -> int:
        """Number of parameters."""
        return sum(self.parts(dim).values())


def named(what: str, table: Mapping[str, Kind], name: str) -> Kind:
    """The entry of this name; an error with the list of names for any other."""
    arguments.one_of(what, name, table, f"one of {', '.join(table)}")
    return table[name]
