r"""The plan: which tiles a call computes, found on the GPU before the other kernels start.

``bounds.py`` proves that the other tiles may be skipped. For every unit of SPAN queries the plan
holds a contiguous range of units of SPAN keys to visit, and the part of that range that needs the
full sigmoid. Forward and backward pass follow it. The host never reads it.

    norms                  the largest norm in every unit of queries and of keys
    bound_tiles            with upper bounds U_IJ of the logits from those: R, the sum of
                           c min(1, e^U) over the farthest units. They are skipped while R is at
                           most the tolerance (a number), or the tolerance times the norm of the
                           weights that each row keeps ("rounding"). Units with U <= -4 are tails.
    make_ranges_monotone   ranges that only move to the right from one unit of queries to the next,
                           so that the queries that visit a unit of keys are contiguous too

A lower bound of the norm that a row keeps is the norm of its weights for the 2 SPAN keys nearest to
its unit of queries. These weights are computed, two tiles for each unit, and only if the farthest
unit could be skipped at all. With slopes the near keys hold nearly all of the norm, and a bound
from norms alone would visit up to twice as many tiles.

Shape letters: B sequences, H query heads, G key heads, I units of queries, J units of keys,
Q queries of a unit, K keys of a tile, D head dim.
"""

import triton
import triton.language as tl

from sigmoid_attention.attention import bounds
from sigmoid_attention.attention.impl.triton import tile
from sigmoid_attention.attention.impl.triton.activation import LOG2E
from sigmoid_attention.attention.impl.triton.tile import ACCURATE, FLAGS, HEADS, NONE, ROWS

# Queries and keys of a unit; the blocks of all kernels divide it.
SPAN = 128
# Units that a program handles together.
CHUNK = 64

_NORM_SLACK = tl.constexpr(1 + bounds.NORM_SLACK)
_KEPT_SLACK = tl.constexpr(1 - bounds.KEPT_SLACK)
_TAIL_LOGIT = tl.constexpr(bounds.TAIL_LOGIT)
# Times SPAN it still fits 32 bits.
_BEYOND = tl.constexpr(1 << 23)


@triton.jit(do_not_specialize=("sequences", "heads", "longest", "units"))
def norms(
    rows, largest, offsets_and_lengths, sequences, heads, longest, units,
    D: tl.constexpr, WIDE_D: tl.constexpr, SPAN: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Store the largest norm of a unit of rows in ``largest`` (B, H, units), infinity for a NaN."""
    program = tl.program_id(0)
    unit = program % units
    h = program // units % heads
    s = program // units // heads
    bounds_of_s = tile.sequence_bounds(offsets_and_lengths, sequences, s, longest, longest)
    start, length = bounds_of_s[2 * KEYS], bounds_of_s[2 * KEYS + 1]
    index = tl.arange(0, SPAN)
    loaded = tile.load_rows(
        tile.rows_of(rows, s, h, start), rows[3], unit * SPAN, length, index, D, WIDE_D, True
    ).to(tl.float32)
    squares = tl.sum(loaded * loaded, 1)
    # A maximum ignores a NaN.
    squares = tl.where(squares == squares, squares, float("inf"))
    tl.store(largest + program, tl.sqrt(tl.max(squares, 0)))


@triton.jit
def _most_weight(upper, SPAN: tl.constexpr):
    """An upper bound of the weights of a row in a unit whose logits are at most ``upper``."""
    return SPAN * tl.exp2(tl.minimum(upper, 0.0) * LOG2E)


@triton.jit
def _upper(
    unit, inside, key_norms, reach, most, slope, softcap, position, last, length_k,
    SLOPES: tl.constexpr, SOFTCAP: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """U of units of keys, for queries with the positions ``position`` to ``last``."""
    upper = reach * tl.load(key_norms + unit, mask=inside, other=0.0)
    if SOFTCAP:
        upper = tl.minimum(upper, softcap)
    upper = upper + most
    if SLOPES:
        first_key = unit * SPAN
        low = position - tl.minimum(first_key + SPAN, length_k) + 1
        high = last - first_key
        nearest = tl.maximum(tl.maximum(low, -high), 0).to(tl.float32)
        farthest = tl.maximum(tl.abs(low), tl.abs(high)).to(tl.float32)
        upper -= tl.minimum(slope * nearest, slope * farthest)
    return upper


@triton.jit(do_not_specialize=(*tile.NUMBERS, "units_k", "tolerance"))
def bound_tiles(
    query, key, query_norms, key_norms, bias, mask, slopes, offsets_and_lengths, ranges,
    sequences, heads, group, longest_q, longest_k, units, scale, constant, softcap, left, right,
    units_k, tolerance,
    D: tl.constexpr, WIDE_D: tl.constexpr, BLOCK_K: tl.constexpr, SPAN: tl.constexpr,
    CHUNK: tl.constexpr,
    BIAS: tl.constexpr, MASK: tl.constexpr, SLOPES: tl.constexpr, SOFTCAP: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, RELATIVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store the range of one unit of queries in ``ranges`` (4, B, H, units), not yet monotone.

    The four rows are the first unit of keys to visit, the first that needs the full sigmoid, the
    one behind the last of these, and the one behind the last to visit.
    """
    program = tl.program_id(0)
    unit = program % units
    h = program // units % heads
    s = program // units // heads
    bounds_of_s = tile.sequence_bounds(offsets_and_lengths, sequences, s, longest_q, longest_k)
    start_q, length_q, start_k, length_k = bounds_of_s
    first_q = unit * SPAN
    first, full_first, full_end, end = _BEYOND, _BEYOND, 0, 0
    if (first_q < length_q) & (length_k > 0):
        row = tl.arange(0, SPAN)
        q, k = row[:, None], tl.arange(0, BLOCK_K)[None, :]
        position = first_q + length_k - length_q
        last = tl.minimum(first_q + SPAN, length_q) - 1 + length_k - length_q
        low, high = 0, length_k
        if LEFT:
            low = position - left
        if RIGHT:
            high = tl.minimum(high, last + right + 1)
        first, end = tl.maximum(low, 0) // SPAN, tl.cdiv(tl.maximum(high, 0), SPAN)
        near_end = tl.maximum(tl.minimum(last + 1, length_k), 0)
        near_first = tl.maximum(near_end - 2 * SPAN, 0)
        left_end = tl.minimum(near_first // SPAN, end)
        right_first = tl.maximum(tl.cdiv(near_end, SPAN), first)

        slope = tile.slope_of(slopes, s, h, SLOPES)
        added = constant + tl.zeros((SPAN, 1), tl.float32)
        added = tile.add_term(
            added, bias, s, h, q, k, first_q, 0, length_q, length_k, BIAS, HEADS, ROWS, 1.0
        )
        added = tile.add_term(
            added, mask, s, h, q, k, first_q, 0, length_q, length_k, MASK, HEADS, ROWS, 1.0
        )
        upper_added = tl.where(added == added, added, float("inf"))
        most = tl.max(tl.where(q < length_q - first_q, upper_added, float("-inf")))
        key_norms += (s * (heads // group) + h // group) * units_k
        reach = tl.load(query_norms + program) * tl.abs(scale) * _NORM_SLACK

        limit = tolerance * _KEPT_SLACK
        if RELATIVE:
            farthest = tl.where(left_end > first, first, end - 1)
            of_farthest = _upper(
                farthest, True, key_norms, reach, most, slope, softcap, position, last, length_k,
                SLOPES, SOFTCAP, SPAN,
            )  # fmt: skip
            # The norm of a row's near weights is at most that of 2 SPAN ones.
            if _most_weight(of_farthest, SPAN) <= limit * tl.sqrt(2.0 * SPAN):
                query_QD = tile.load_rows(
                    tile.rows_of(query, s, h, start_q), query[3], first_q, length_q, row, D,
                    WIDE_D, True,
                )  # fmt: skip
                key_rows = tile.rows_of(key, s, h // group, start_k)
                squares = tl.zeros((SPAN,), tl.float32)
                for step_k in tl.range(0, tl.cdiv(near_end - near_first, BLOCK_K)):
                    first_k = near_first + step_k * BLOCK_K
                    key_KD = tile.load_rows(
                        key_rows, key[3], first_k, near_end, tl.arange(0, BLOCK_K), D, WIDE_D, True
                    )
                    x_QK, _, _ = tile.logits(
                        tile.dot(query_QD, tl.trans(key_KD), None, PRECISION),
                        added * LOG2E, slope * LOG2E, bias, mask, s, h, q, k, first_q, first_k,
                        length_q, length_k, scale, softcap,
                        NONE, NONE, ROWS, SLOPES, SOFTCAP, LOG2E, PRECISION,
                    )  # fmt: skip
                    weights_QK = tile.weights(x_QK, False, 0, ACCURATE)
                    kept = k < near_end - first_k
                    if LEFT or RIGHT:
                        kept &= tile.in_window(
                            q, k, first_q, first_k, length_k - length_q, left, right, LEFT, RIGHT
                        )
                    if MASK == FLAGS:
                        attended = tile.load_term(
                            mask, s, h, q, k, first_q, first_k, length_q, length_k, MASK
                        )
                        kept &= attended != 0
                    weights_QK = tl.where(kept, weights_QK, 0.0)
                    squares += tl.sum(weights_QK * weights_QK, 1)
                squares = tl.where(row < length_q - first_q, squares, float("inf"))
                limit *= tl.sqrt(tl.min(squares, 0))
            else:
                limit = -1.0
        if tolerance > 0.0:
            if not RIGHT:
                # Each side may use half of the limit.
                limit *= 0.5
            left_first, total = first, 0.0
            for start in tl.range(left_first, left_end, CHUNK):
                units_J = start + tl.arange(0, CHUNK)
                inside = units_J < left_end
                upper = _upper(
                    units_J, inside, key_norms, reach, most, slope, softcap, position, last,
                    length_k, SLOPES, SOFTCAP, SPAN,
                )  # fmt: skip
                upper_weights = tl.where(inside, _most_weight(upper, SPAN), 0.0)
                skipped = (total + tl.cumsum(upper_weights, 0) <= limit) & inside
                first += tl.sum(skipped.to(tl.int32), 0)
                total += tl.sum(upper_weights, 0)
            if not RIGHT:
                right_end, total = end, 0.0
                for start in tl.range(0, right_end - right_first, CHUNK):
                    units_J = right_end - 1 - start - tl.arange(0, CHUNK)
                    inside = units_J >= right_first
                    upper = _upper(
                        units_J, inside, key_norms, reach, most, slope, softcap, position, last,
                        length_k, SLOPES, SOFTCAP, SPAN,
                    )  # fmt: skip
                    upper_weights = tl.where(inside, _most_weight(upper, SPAN), 0.0)
                    skipped = (total + tl.cumsum(upper_weights, 0) <= limit) & inside
                    end -= tl.sum(skipped.to(tl.int32), 0)
                    total += tl.sum(upper_weights, 0)
        for start in tl.range(first, end, CHUNK):
            units_J = start + tl.arange(0, CHUNK)
            inside = units_J < end
            upper = _upper(
                units_J, inside, key_norms, reach, most, slope, softcap, position, last, length_k,
                SLOPES, SOFTCAP, SPAN,
            )  # fmt: skip
            # A comparison with > would be false for a NaN.
            heavy = inside & ~(upper <= _TAIL_LOGIT)
            full_first = tl.minimum(full_first, tl.min(tl.where(heavy, units_J, _BEYOND), 0))
            full_end = tl.maximum(full_end, tl.max(tl.where(heavy, units_J + 1, 0), 0))
        if first >= end:
            first, end = _BEYOND, 0
    step = sequences * heads * units
    tl.store(ranges + program, first)
    tl.store(ranges + program + step, full_first)
    tl.store(ranges + program + 2 * step, full_end)
    tl.store(ranges + program + 3 * step, end)


@triton.jit(do_not_specialize=("pairs", "units", "monotone_units"))
def make_ranges_monotone(
    ranges, monotone, pairs, units, monotone_units, CHUNK: tl.constexpr, OF_KEYS: tl.constexpr
):
    """Ranges of keys that only move to the right, (4, B, H, I); or of queries, (4, B, H, J).

    A unit of queries starts at the least start of all later units, and ends at the greatest end of
    all earlier ones. So unit i of queries visits unit j of keys if a unit up to i ends beyond j and
    a unit from i on starts at or before j. These i form a range: from the first unit that ends
    beyond j to the last unit that starts at or before j.
    """
    chunks = tl.cdiv(monotone_units, CHUNK)
    unit = tl.program_id(0) % chunks * CHUNK + tl.arange(0, CHUNK)
    pair = tl.program_id(0) // chunks
    step = pairs * units
    for which in tl.static_range(2):
        first = tl.full((CHUNK,), _BEYOND, tl.int32)
        end = tl.zeros((CHUNK,), tl.int32)
        for start in tl.range(0, units, CHUNK):
            other = start + tl.arange(0, CHUNK)
            source = ranges + which * step + pair * units + other
            firsts = tl.load(source, mask=other < units, other=_BEYOND)[None, :]
            ends = tl.load(source + (3 - 2 * which) * step, mask=other < units, other=0)[None, :]
            i = other[None, :]
            if OF_KEYS:
                j = unit[:, None]
                first = tl.minimum(first, tl.min(tl.where(ends > j, i, _BEYOND), 1))
                end = tl.maximum(end, tl.max(tl.where(firsts <= j, i + 1, 0), 1))
            else:
                here = unit[:, None]
                first = tl.minimum(first, tl.min(tl.where(i >= here, firsts, _BEYOND), 1))
                end = tl.maximum(end, tl.max(tl.where(i <= here, ends, 0), 1))
        target = monotone + which * pairs * monotone_units + pair * monotone_units + unit
        tl.store(target, first, mask=unit < monotone_units)
        tl.store(target + (3 - 2 * which) * pairs * monotone_units, end, mask=unit < monotone_units)
