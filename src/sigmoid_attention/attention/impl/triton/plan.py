r"""Which tiles a call computes, decided on the device before it starts: the certificate's plan.

``bounds.py`` has the proof that what lies outside may be left out. A plan says, for every unit of
SPAN queries, which contiguous range of units of SPAN keys it visits, and which part of that range
needs the full sigmoid; both passes follow it. Nothing of it is ever read by the host.

    norms   the largest norm in every unit of queries and of keys
    bound   with U_IJ from those: R, the sum of c min(1, e^U) over the farthest units, which are
            left out while R is at most the tolerance (a number), or the tolerance times the norm
            of the weights that each row keeps ("rounding"). U <= -4 makes a unit a tail.
    settle  ranges that only move to the right from one unit of queries to the next, so that the
            queries that visit a unit of keys are contiguous too

The norm of what a row keeps is bounded from below by the weights that it has among the 2 SPAN keys
nearest to its unit of queries. They are computed: two tiles for each unit, and only where the
farthest unit could be left out at all. With slopes the near keys hold nearly all of the norm, and a
bound from norms alone would visit up to twice as many tiles.

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
# Units that are looked at together.
CHUNK = 64

_NORM_SLACK = tl.constexpr(1 + bounds.NORM_SLACK)
_KEPT_SLACK = tl.constexpr(1 - bounds.KEPT_SLACK)
_TAIL_LOGIT = tl.constexpr(bounds.TAIL_LOGIT)
# Times SPAN it still fits 32 bits.
_BEYOND = tl.constexpr(1 << 23)


@triton.jit(do_not_specialize=("sequences", "heads", "longest", "units"))
def norms(
    rows, found, places, sequences, heads, longest, units,
    D: tl.constexpr, WIDE_D: tl.constexpr, SPAN: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The largest norm in a unit of rows, into ``found`` (B, H, units); infinite for a NaN."""
    turn = tl.program_id(0)
    unit = turn % units
    h = turn // units % heads
    s = turn // units // heads
    where = tile.place(places, sequences, s, longest, longest)
    start, length = where[2 * KEYS], where[2 * KEYS + 1]
    index = tl.arange(0, SPAN)
    loaded = tile.load_rows(
        tile.rows_of(rows, s, h, start), rows[3], unit * SPAN, length, index, D, WIDE_D, True
    ).to(tl.float32)
    squares = tl.sum(loaded * loaded, 1)
    # Where maxima are taken, a NaN would lose against any number.
    squares = tl.where(squares == squares, squares, float("inf"))
    tl.store(found + turn, tl.sqrt(tl.max(squares, 0)))


@triton.jit
def _weighs(upper, SPAN: tl.constexpr):
    """At most so much a row gets from a unit whose logits are at most ``upper``."""
    return SPAN * tl.exp2(tl.minimum(upper, 0.0) * LOG2E)


@triton.jit
def _upper(
    unit, inside, key_norms, reach, most, slope, softcap, position, last, length_k,
    SLOPES: tl.constexpr, SOFTCAP: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """U of units of keys for queries that stand at ``position`` to ``last``."""
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
def bound(
    query, key, query_norms, key_norms, bias, mask, slopes, places, ranges,
    sequences, heads, group, longest_q, longest_k, units, scale, constant, softcap, left, right,
    units_k, tolerance,
    D: tl.constexpr, WIDE_D: tl.constexpr, BLOCK_K: tl.constexpr, SPAN: tl.constexpr,
    CHUNK: tl.constexpr,
    BIAS: tl.constexpr, MASK: tl.constexpr, SLOPES: tl.constexpr, SOFTCAP: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, RELATIVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The range of one unit of queries, into ``ranges`` (4, B, H, units), not yet settled.

    Its rows are the first unit of keys to visit, the first and the one behind the last that need
    the full sigmoid, and the one behind the last to visit.
    """
    turn = tl.program_id(0)
    unit = turn % units
    h = turn // units % heads
    s = turn // units // heads
    where = tile.place(places, sequences, s, longest_q, longest_k)
    start_q, length_q, start_k, length_k = where
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
        added = tile.plus(
            added, bias, s, h, q, k, first_q, 0, length_q, length_k, BIAS, HEADS, ROWS, 1.0
        )
        added = tile.plus(
            added, mask, s, h, q, k, first_q, 0, length_q, length_k, MASK, HEADS, ROWS, 1.0
        )
        known = tl.where(added == added, added, float("inf"))
        most = tl.max(tl.where(q < length_q - first_q, known, float("-inf")))
        key_norms += (s * (heads // group) + h // group) * units_k
        reach = tl.load(query_norms + turn) * tl.abs(scale) * _NORM_SLACK

        limit = tolerance * _KEPT_SLACK
        if RELATIVE:
            farthest = tl.where(left_end > first, first, end - 1)
            of_farthest = _upper(
                farthest, True, key_norms, reach, most, slope, softcap, position, last, length_k,
                SLOPES, SOFTCAP, SPAN,
            )  # fmt: skip
            # No row keeps more than the norm of as many ones as there are near keys.
            if _weighs(of_farthest, SPAN) <= limit * tl.sqrt(2.0 * SPAN):
                query_QD = tile.load_rows(
                    tile.rows_of(query, s, h, start_q), query[3], first_q, length_q, row, D,
                    WIDE_D, True,
                )  # fmt: skip
                key_rows = tile.rows_of(key, s, h // group, start_k)
                squares = tl.zeros((SPAN,), tl.float32)
                for turn_k in tl.range(0, tl.cdiv(near_end - near_first, BLOCK_K)):
                    first_k = near_first + turn_k * BLOCK_K
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
                # Each side may cost half.
                limit *= 0.5
            left_first, total = first, 0.0
            for start in tl.range(left_first, left_end, CHUNK):
                units_J = start + tl.arange(0, CHUNK)
                inside = units_J < left_end
                upper = _upper(
                    units_J, inside, key_norms, reach, most, slope, softcap, position, last,
                    length_k, SLOPES, SOFTCAP, SPAN,
                )  # fmt: skip
                weighs = tl.where(inside, _weighs(upper, SPAN), 0.0)
                spared = (total + tl.cumsum(weighs, 0) <= limit) & inside
                first += tl.sum(spared.to(tl.int32), 0)
                total += tl.sum(weighs, 0)
            if not RIGHT:
                right_end, total = end, 0.0
                for start in tl.range(0, right_end - right_first, CHUNK):
                    units_J = right_end - 1 - start - tl.arange(0, CHUNK)
                    inside = units_J >= right_first
                    upper = _upper(
                        units_J, inside, key_norms, reach, most, slope, softcap, position, last,
                        length_k, SLOPES, SOFTCAP, SPAN,
                    )  # fmt: skip
                    weighs = tl.where(inside, _weighs(upper, SPAN), 0.0)
                    spared = (total + tl.cumsum(weighs, 0) <= limit) & inside
                    end -= tl.sum(spared.to(tl.int32), 0)
                    total += tl.sum(weighs, 0)
        for start in tl.range(first, end, CHUNK):
            units_J = start + tl.arange(0, CHUNK)
            inside = units_J < end
            upper = _upper(
                units_J, inside, key_norms, reach, most, slope, softcap, position, last, length_k,
                SLOPES, SOFTCAP, SPAN,
            )  # fmt: skip
            # Not "above": that would be false for a NaN.
            heavy = inside & ~(upper <= _TAIL_LOGIT)
            full_first = tl.minimum(full_first, tl.min(tl.where(heavy, units_J, _BEYOND), 0))
            full_end = tl.maximum(full_end, tl.max(tl.where(heavy, units_J + 1, 0), 0))
        if first >= end:
            first, end = _BEYOND, 0
    step = sequences * heads * units
    tl.store(ranges + turn, first)
    tl.store(ranges + turn + step, full_first)
    tl.store(ranges + turn + 2 * step, full_end)
    tl.store(ranges + turn + 3 * step, end)


@triton.jit(do_not_specialize=("pairs", "units", "settled_units"))
def settle(
    ranges, settled, pairs, units, settled_units, CHUNK: tl.constexpr, OF_KEYS: tl.constexpr
):
    """Ranges of keys that only move to the right, (4, B, H, I); or of queries, (4, B, H, J).

    A unit of queries visits what any later one visits to the left, and any earlier one to the
    right. Then unit i visits unit j of keys if some end up to i is beyond j and some first from i
    on is not, which are all i from the first such end to the last such first.
    """
    chunks = tl.cdiv(settled_units, CHUNK)
    own = tl.program_id(0) % chunks * CHUNK + tl.arange(0, CHUNK)
    pair = tl.program_id(0) // chunks
    step = pairs * units
    for which in tl.static_range(2):
        first = tl.full((CHUNK,), _BEYOND, tl.int32)
        end = tl.zeros((CHUNK,), tl.int32)
        for start in tl.range(0, units, CHUNK):
            other = start + tl.arange(0, CHUNK)
            there = ranges + which * step + pair * units + other
            firsts = tl.load(there, mask=other < units, other=_BEYOND)[None, :]
            ends = tl.load(there + (3 - 2 * which) * step, mask=other < units, other=0)[None, :]
            i = other[None, :]
            if OF_KEYS:
                j = own[:, None]
                first = tl.minimum(first, tl.min(tl.where(ends > j, i, _BEYOND), 1))
                end = tl.maximum(end, tl.max(tl.where(firsts <= j, i + 1, 0), 1))
            else:
                me = own[:, None]
                first = tl.minimum(first, tl.min(tl.where(i >= me, firsts, _BEYOND), 1))
                end = tl.maximum(end, tl.max(tl.where(i <= me, ends, 0), 1))
        there = settled + which * pairs * settled_units + pair * settled_units + own
        tl.store(there, first, mask=own < settled_units)
        tl.store(there + (3 - 2 * which) * pairs * settled_units, end, mask=own < settled_units)
