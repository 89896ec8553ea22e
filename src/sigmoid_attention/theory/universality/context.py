"""Step 2: attention layers that give every token of every sequence its own code.

The new part of Ramapuram et al. 2024 is a selective shift by sums, which replaces the shift by
maxima of softmax. With H(u) = 1[u > 0] and l = u . x,

    1[l_i < b] 1[l_j < c] = ( H((b - l_i)(c - l_j)) + H(b - l_i) + H(c - l_j) - 1 ) / 2,

so four heads of width one (product, query only, key only, constant) add a sum over the tokens
below one threshold to the tokens below another, and to no others. The sequence of shifts of
Ramapuram et al. 2024 is not known to us in detail. Ours has two parts. Unlike that of Yun et al.
2020 it also holds for sequences with equal tokens, which are common on a grid of few cells.

*Counting* (selective shifts, four heads). Letters k = 0, 1, ... in turn: the tokens of letter k are
those with l < k + 1/2, since lower letters have been moved to Z and above. Each is shifted by
Z + n k + m, where m = sum_j 1[l_j < k + 1/2] is their number, to the symbol Z + (n + 1) k + m.

*Chaining* (two heads, a difference of two thresholds on keys). Symbols s = (k, m) in turn: if
tokens have that symbol, there are m of them. Each contributes an equal share of
(radix - 1) r + gap (n k + m), and every token gains the sum. The register r of all tokens becomes

    r <- radix r + gap (n k + m).

After the last symbol r / gap is the number whose digits to the base radix are n k + m of the
letters that occur, in ascending order. Digits lie between 1 and n K < radix, so r determines the
sequence up to its order, and r + symbol the token in it. There are at most n digits, so
r < gap radix^n <= 1/2, and codes of different symbols differ by at least 1/2.
"""

from collections.abc import Iterator

from sigmoid_attention.theory.universality.layers import (
    ONE,
    AffineFunction,
    ConstructedHead,
    HeavisideAttention,
    attention_layer,
)
from sigmoid_attention.theory.universality.plan import Plan


def selective_shift(below: float, constant: float, n: int) -> list[ConstructedHead]:
    """Four heads that add constant + #{j: l_j < below} to each token with l_i < below.

    All heads have the value 1, except the query-only head with 1 + 2 constant / n. The sum over n
    keys and the factor 1/2 turn it into the constant.
    """
    threshold = AffineFunction(factor=-1.0, shift=below)
    return [
        ConstructedHead(threshold, threshold, ONE, 0.5),
        ConstructedHead(threshold, ONE, AffineFunction(shift=1 + 2 * constant / n), 0.5),
        ConstructedHead(ONE, threshold, ONE, 0.5),
        ConstructedHead(ONE, ONE, ONE, -0.5),
    ]


def selected_sum(above: float, below: float, value: AffineFunction) -> list[ConstructedHead]:
    """Two heads that add the sum of value(x_j) over above < l_j < below to every token."""
    return [
        ConstructedHead(ONE, AffineFunction(1.0, -above), value, 1.0),
        ConstructedHead(ONE, AffineFunction(1.0, -below), value, -1.0),
    ]


def counting(plan: Plan) -> Iterator[HeavisideAttention]:
    """The layers of counting, one a letter: each turns a token's letter into its symbol."""
    n, weights_D = plan.grid.n, plan.grid.weights_D
    for letter in range(plan.grid.letters):
        heads = selective_shift(letter + 0.5, plan.zone + n * letter, n)
        yield attention_layer(weights_D, n, heads)


def chaining(plan: Plan) -> Iterator[HeavisideAttention]:
    """The layers of chaining, one a symbol: each appends a digit to the register of all tokens."""
    n, weights_D = plan.grid.n, plan.grid.weights_D
    for letter, multiplicity in plan.symbols():
        code = plan.code(letter, multiplicity)
        # Whole numbers, since radix - 1 and shares are multiples of every multiplicity.
        share = (plan.radix - 1) // multiplicity
        digit = plan.shares // multiplicity * plan.digit(letter, multiplicity)
        value = AffineFunction(share, digit * plan.grain - share * code)
        yield attention_layer(weights_D, n, selected_sum(code - 0.25, code + 0.75, value))
