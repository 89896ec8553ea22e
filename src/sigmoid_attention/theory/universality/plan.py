"""The size and the numbers of the construction in closed form, for checks before building.

Shape letters: S sequences, N tokens, D channels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sigmoid_attention.theory.universality.grid import Grid
from sigmoid_attention.theory.universality.layers import block_parameters

MAX_LAYERS = 20_000
# Bits of the significand of a float64: whole numbers up to 2^53 are exact.
DIGITS = 53


def layer_counts(grid: Grid) -> dict[str, int]:
    """The number of layers of each step in order, from n, d and the cells.

        scaling   d                     feed-forward, one a channel
        rounding  d cells               feed-forward, one a cell of a channel
        counting  K                     attention, one a letter (K = cells^d)
        chaining  n K                   attention, one a letter and multiplicity
        values    contexts              feed-forward, one a context
        clipping  d                     feed-forward, one a channel

    Example:
        >>> counts = layer_counts(Grid(n=4, d=2, cells=3))
        >>> counts["values"], sum(counts.values())
        (1485, 1540)
    """
    return {
        "scaling": grid.d,
        "rounding": grid.d * grid.cells,
        "counting": grid.letters,
        "chaining": grid.n * grid.letters,
        "values": grid.contexts,
        "clipping": grid.d,
    }


def layers_of(grid: Grid) -> int:
    """All layers of the construction on a grid."""
    return sum(layer_counts(grid).values())


def parameters_of(grid: Grid) -> int:
    """The number of parameters of that many blocks of T^{4,1,4}; most of them are zero."""
    return layers_of(grid) * block_parameters(grid.d)


@dataclass(frozen=True)
class Plan:
    """The numbers of the construction on a grid.

    The *code* of a token is u . x. Codes are

        letter                    after rounding: 0 to K - 1
        Z + (n + 1) letter + m    after counting: the *symbol*, m the letter's multiplicity
        symbol + r                after chaining: r in [0, 1/2), the same for all tokens

    with ``zone`` = Z a multiple of n above every letter and every code of an output, which
    separates processed tokens from the others. The *register* r = gap * R encodes the sequence as a
    whole number R < radix^n, whose digits are n letter + m of the letters that occur. ``gap`` and
    all computed numbers are multiples of the ``grain`` 2^-t. Float64 is therefore exact as long as
    no number needs more than 53 binary digits.

    Attributes:
        low, high: the smallest and the largest entry of an output.
    """

    grid: Grid
    low: float
    high: float

    @property
    def zone(self) -> int:
        """Z, the least multiple of n that is at least K and exceeds |u . y| + 1 for outputs y."""
        largest = max(abs(self.low), abs(self.high)) * float(self.grid.weights_D.sum())
        return self.grid.n * math.ceil(max(self.grid.letters, largest + 2) / self.grid.n)

    @property
    def shares(self) -> int:
        """lcm(1, ..., n), which every multiplicity divides."""
        return math.lcm(*range(1, self.grid.n + 1))

    @property
    def radix(self) -> int:
        """One more than the least multiple of ``shares`` that is at least n K, the largest digit.

        Radix - 1 can then be shared equally among m tokens of a letter, in whole numbers.
        """
        return 1 + self.shares * -(-self.grid.n * self.grid.letters // self.shares)

    @property
    def grain(self) -> float:
        """2^-t, the largest power of two for which every register stays below 1/2."""
        return 0.5 ** (2 * self.shares * self.radix**self.grid.n).bit_length()

    @property
    def gap(self) -> float:
        """The least distance between the codes of two contexts, shares * grain."""
        return self.shares * self.grain

    @property
    def largest(self) -> int:
        """A bound on every intermediate number: n tokens' values in a layer of chaining."""
        codes = self.zone + (self.grid.n + 1) * self.grid.letters + 1
        return codes * max(self.grid.n * self.radix, 16)

    @property
    def digits(self) -> int:
        """Binary digits that exact arithmetic needs: log2(largest / grain), rounded up."""
        return math.ceil(math.log2(self.largest / self.grain))

    @property
    def steepness(self) -> float:
        """A steepness at which codes differ by less than gap / 4 from those of Heaviside attention.

            lambda = 5 ln(4 radix^n (K (2 n + Z + n K) + n K 2 n (radix (n + 1) K + 1)) / gap)

        Every logit of the construction has an absolute value of at least 1/4 for exact codes, and
        of at least 1/5 for codes with an error of gap / 4. The error of each weight is therefore at
        most e^(-lambda/5). Counting layers sum n weights of 1 in three heads and of
        1 + 2 (Z + n k) / n in one, halved. Chaining layers sum n weights of at most
        radix (n + 1) K + 1 in two heads. An error in the register grows by the factor radix at each
        of the at most n letters of a sequence. The total must stay below gap / 4, at which the
        value mapping is still correct.
        """
        n, letters = self.grid.n, self.grid.letters
        counting = letters * (2 * n + self.zone + n * letters)
        chaining = n * letters * 2 * n * (self.radix * (n + 1) * letters + 1)
        return 5 * math.log(4 * self.radix**n * (counting + chaining) / self.gap)

    def symbols(self) -> Iterator[tuple[int, int]]:
        """Letter and multiplicity of every symbol, in the order of their codes."""
        for letter in range(self.grid.letters):
            for multiplicity in range(1, self.grid.n + 1):
                yield letter, multiplicity

    def code(self, letter: int, multiplicity: int) -> int:
        """Z + (n + 1) letter + m."""
        return self.zone + (self.grid.n + 1) * letter + multiplicity

    def digit(self, letter: int, multiplicity: int) -> int:
        """n letter + m, from 1 to n K: the digit of a letter in the register."""
        return self.grid.n * letter + multiplicity

    def refuse(self) -> None:
        """Raise ``ValueError`` where float64 cannot represent the construction."""
        if self.digits > DIGITS:
            raise ValueError(
                f"n: float64 cannot hold the construction for n = {self.grid.n} on "
                f"{self.grid.letters} letters: its smallest gap is {self.gap:.2g} beside numbers "
                f"up to {self.largest:.2g}, which takes {self.digits} binary digits of {DIGITS}"
            )


def refuse_layers(grid: Grid, max_layers: int, request: str) -> None:
    """Raise ``ValueError`` with the number of layers where it is above ``max_layers``."""
    needed = layers_of(grid)
    if needed > max_layers:
        raise ValueError(
            f"error: {request} needs {needed:,} layers ({grid.cells} cells a side, "
            f"{parameters_of(grid):,} parameters), more than max_layers = {max_layers:,}"
        )
