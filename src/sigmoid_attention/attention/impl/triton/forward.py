"""The forward kernel: a block of queries visits its keys and keeps only the sums.

Without a softmax there is no maximum and no denominator, so a tile is two products with a sigmoid
in between. A block of queries visits a contiguous range of keys: first the tiles on the window's
left edge, then the inner ones, which need no mask, then those on its right edge or past the last
key. A contiguous part of the inner tiles takes the full sigmoid. The certificate proves that the
logits of the other inner tiles lie in the sigmoid's tail. The mass of a row, the sum of its
weights, is taken from the same tiles where a call wants it.

Shape letters: Q queries of a block, K keys of a block, D head dim, E value dim.
"""

import triton
import triton.language as tl

from sigmoid_attention.attention.impl.triton import tile
from sigmoid_attention.attention.impl.triton.activation import LOG2E
from sigmoid_attention.attention.impl.triton.tile import ACCURATE, COLUMNS, HEADS, ROWS


@triton.jit(do_not_specialize=tile.NUMBERS)
def forward(
    query, key, value, out, mass, bias, mask, slopes, offsets_and_lengths, spans,
    sequences, heads, group, longest_q, longest_k, units, scale, constant, softcap, left, right,
    D: tl.constexpr, E: tl.constexpr, WIDE_D: tl.constexpr, WIDE_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, SPAN: tl.constexpr,
    BIAS: tl.constexpr, MASK: tl.constexpr, SLOPES: tl.constexpr, SOFTCAP: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SPANS: tl.constexpr,
    SHIFT: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    DESCRIBED: tl.constexpr, MULTIPLE_OF_8: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head.

    group: query heads of a key head; longest_q, longest_k: of all sequences; units: see spans.
    key, value: descriptors of (B, G, K, ...) if DESCRIBED.
    mass: (B, H, Q, 1) in fp32 with contiguous rows, or None.
    MULTIPLE_OF_8: see tile.assume_multiple_of_8.
    spans: (4, B, H, units), the ranges of keys in units of SPAN, see plan.py.
    """
    query, out = (
        tile.assume_multiple_of_8(query, MULTIPLE_OF_8),
        tile.assume_multiple_of_8(out, MULTIPLE_OF_8),
    )
    if not DESCRIBED:
        key, value = (
            tile.assume_multiple_of_8(key, MULTIPLE_OF_8),
            tile.assume_multiple_of_8(value, MULTIPLE_OF_8),
        )
    blocks = tl.cdiv(longest_q, BLOCK_Q)
    program = tl.program_id(0)
    # The last queries see the most keys, so their blocks start first.
    block = blocks - 1 - program % blocks
    h = program // blocks % heads
    s = program // blocks // heads
    start_q, length_q, start_k, length_k = tile.sequence_bounds(
        offsets_and_lengths, sequences, s, longest_q, longest_k
    )
    first_q = block * BLOCK_Q
    if first_q < length_q:
        span = spans
        if SPANS:
            span = spans + (s.to(tl.int64) * heads + h) * units + first_q // SPAN
        out_QE, mass_Q = _attend(
            tile.rows_of(query, s, h, start_q), query[3],
            key, value, start_k, h // group,
            bias, mask, slopes, span, sequences * heads * units, s, h,
            first_q, length_q, length_k, (scale, constant, softcap, left, right),
            D, E, WIDE_D, WIDE_E, BLOCK_Q, BLOCK_K, SPAN, BIAS, MASK, SLOPES, SOFTCAP,
            LEFT, RIGHT, SPANS, SHIFT, ACTIVATION, PRECISION, DESCRIBED, mass is not None,
        )  # fmt: skip
        tile.store_rows(
            tile.rows_of(out, s, h, start_q), out[3], first_q, length_q,
            tl.arange(0, BLOCK_Q), out_QE, E, WIDE_E,
        )  # fmt: skip
        if mass is not None:
            row = tl.arange(0, BLOCK_Q)
            target = tile.rows_of(mass, s, h, start_q) + first_q
            tl.store(target + row, mass_Q, mask=row < length_q - first_q)


@triton.jit
def _attend(
    query, query_row, key, value, start_k, g, bias, mask, slopes, span, span_step, s, h,
    first_q, length_q, length_k, numbers,
    D: tl.constexpr, E: tl.constexpr, WIDE_D: tl.constexpr, WIDE_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, SPAN: tl.constexpr,
    BIAS: tl.constexpr, MASK: tl.constexpr, SLOPES: tl.constexpr, SOFTCAP: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SPANS: tl.constexpr,
    SHIFT: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    DESCRIBED: tl.constexpr, HAS_MASS: tl.constexpr,
):  # fmt: skip
    """The rows of the output, and the sums of their weights if HAS_MASS."""
    constant, left, right = numbers[1], numbers[3], numbers[4]
    UNIT: tl.constexpr = LOG2E if ACTIVATION == ACCURATE else tl.constexpr(0.5)
    row = tl.arange(0, BLOCK_Q)
    q = row[:, None]
    k = tl.arange(0, BLOCK_K)[None, :]
    query_QD = tile.load_rows(query, query_row, first_q, length_q, row, D, WIDE_D, True)
    slope = tile.slope_of(slopes, s, h, SLOPES) * UNIT
    extra = constant * UNIT + (SHIFT if ACTIVATION == ACCURATE else 0)
    extra = tile.add_term(
        extra, bias, s, h, q, k, first_q, 0, length_q, length_k, BIAS, HEADS, ROWS, UNIT
    )
    extra = tile.add_term(
        extra, mask, s, h, q, k, first_q, 0, length_q, length_k, MASK, HEADS, ROWS, UNIT
    )
    shift = length_k - length_q
    first, end, inner_first, inner_end, full_first, full_end = tile.visited(
        first_q + shift, tl.minimum(first_q + BLOCK_Q, length_q) - 1 + shift, length_k,
        left, right, span, span_step, LEFT, RIGHT, SPANS, SPAN, BLOCK_K,
    )  # fmt: skip
    out_QE = tl.zeros((BLOCK_Q, WIDE_E), tl.float32)
    mass_Q = tl.zeros((BLOCK_Q,), tl.float32)
    for part in tl.static_range(3):
        begin, stop = tile.loop_range(part, first, inner_first, inner_end, end)
        if part != 0 or LEFT:
            for j in tl.range(begin, stop):
                first_k = j * BLOCK_K
                key_KD = tile.block_of(
                    key, s, g, start_k, first_k, length_k, BLOCK_K, D, WIDE_D, part != 1, DESCRIBED
                )
                scores_QK = tile.dot(query_QD, tl.trans(key_KD), None, PRECISION)
                added = extra
                if HAS_MASS and part != 1:
                    added = tile.hide_missing_keys(extra, k, first_k, length_k)
                weights_QK, _, _, _ = tile.attention_weights(
                    scores_QK, added, slope, bias, mask, s, h, q, k, first_q, first_k,
                    length_q, length_k, numbers, j, full_first, full_end,
                    BIAS, MASK, COLUMNS, SLOPES, SOFTCAP, LEFT, RIGHT, part == 1, SPANS, UNIT,
                    PRECISION, SHIFT, ACTIVATION,
                )  # fmt: skip
                if HAS_MASS:
                    mass_Q += tl.sum(weights_QK, 1)
                value_KE = tile.block_of(
                    value, s, g, start_k, first_k, length_k, BLOCK_K, E, WIDE_E, part != 1,
                    DESCRIBED,
                )  # fmt: skip
                out_QE = tile.dot(weights_QK.to(value_KE.dtype), value_KE, out_QE, PRECISION)
    return out_QE * 2.0**-SHIFT, mass_Q * 2.0**-SHIFT
