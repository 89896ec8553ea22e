"""The backward kernel: a block of keys visits the queries that see it, five products for each tile.

With W the weights, c = cap' at the scores and s the scale, for an upstream gradient dO:

    dV = W^T dO,   dU = W (1 - W) dO V^T,   dS = dU c,   dK = s dS^T Q,   dQ = s dS K

For an upstream gradient dm of the rows' mass, dU = W (1 - W) (dO V^T + dm).

No row statistic is needed, and the forward pass saves nothing but the inputs. Tiles are computed as
keys by queries, so that the products for dV and dK take W^T and dS^T from registers. A block keeps
its dK and dV in registers. It adds its share of dQ to an fp32 total in memory, in no fixed order
among blocks. The same block visits the query heads that share a key head one after the other, so
that their sums need no memory.

Gradients of bias, mask and slopes are sums of dU from the same pass. Those of pairs are stored or
added in memory, those of rows are added in memory, those of keys and slopes in registers.

Shape letters: Q queries of a tile, K keys of a tile, D head dim, E value dim.
"""

import triton
import triton.language as tl

from sigmoid_attention.attention.impl.triton import tile
from sigmoid_attention.attention.impl.triton.activation import LOG2E
from sigmoid_attention.attention.impl.triton.tile import ACCURATE, COLUMNS, HEADS, ROWS

# What happens to the gradients of pairs.
NOT_WANTED = tl.constexpr(0)
STORED = tl.constexpr(1)  # no other block writes there
ADDED = tl.constexpr(2)


@triton.jit(do_not_specialize=tile.NUMBERS)
def backward(
    query, key, value, grad_out, grad_mass, grad_query, grad_key, grad_value, bias, mask, slopes,
    grad_rows, grad_columns, grad_pairs, grad_slopes, magnitudes, offsets_and_lengths, spans,
    sequences, heads, group, longest_q, longest_k, units, scale, constant, softcap, left, right,
    D: tl.constexpr, E: tl.constexpr, WIDE_D: tl.constexpr, WIDE_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, SPAN: tl.constexpr,
    BIAS: tl.constexpr, MASK: tl.constexpr, SLOPES: tl.constexpr, SOFTCAP: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SPANS: tl.constexpr,
    SHIFT: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    ON_QUERY: tl.constexpr, ON_ROWS: tl.constexpr, ON_COLUMNS: tl.constexpr,
    ON_PAIRS: tl.constexpr, ON_SLOPES: tl.constexpr, MULTIPLE_OF_16: tl.constexpr,
    MULTIPLE_OF_8: tl.constexpr,
):  # fmt: skip
    """One block of keys of one key head; arguments as for the forward kernel.

    MULTIPLE_OF_16: so is the number of keys. Then a load of a bias or a mask takes 16 keys;
    otherwise each key needs its own check.

    grad_mass: (B, H, Q, 1) in fp32 with contiguous rows, or None.
    grad_rows (B, H, Q), grad_columns (B, H, K), grad_slopes (B, H, blocks) and grad_pairs, which
    broadcasts to (B, H, Q, K), are in fp32. The constants ON_... select which are computed.
    magnitudes: see :func:`grad_shift`; spans: the ranges of queries, (4, B, H, units).
    """
    query, grad_out = (
        tile.assume_multiple_of_8(query, MULTIPLE_OF_8),
        tile.assume_multiple_of_8(grad_out, MULTIPLE_OF_8),
    )
    key, value = (
        tile.assume_multiple_of_8(key, MULTIPLE_OF_8),
        tile.assume_multiple_of_8(value, MULTIPLE_OF_8),
    )
    grad_key, grad_value = (
        tile.assume_multiple_of_8(grad_key, MULTIPLE_OF_8),
        tile.assume_multiple_of_8(grad_value, MULTIPLE_OF_8),
    )
    grad_query = tile.assume_multiple_of_8(grad_query, MULTIPLE_OF_8)
    blocks = tl.cdiv(longest_k, BLOCK_K)
    program = tl.program_id(0)
    # The first keys are seen by the most queries, so their blocks start first.
    block = program % blocks
    g = program // blocks % (heads // group)
    s = program // blocks // (heads // group)
    start_q, length_q, start_k, length_k = tile.sequence_bounds(
        offsets_and_lengths, sequences, s, longest_q, longest_k
    )
    if MULTIPLE_OF_16:
        length_k = length_k // 16 * 16
    first_k = block * BLOCK_K
    if first_k < length_k:
        PRECISE: tl.constexpr = PRECISION == "tf32x3" and ACTIVATION == ACCURATE
        UNIT: tl.constexpr = LOG2E if ACTIVATION == ACCURATE else tl.constexpr(0.5)
        column = tl.arange(0, BLOCK_K)
        row = tl.arange(0, BLOCK_Q)
        k, q = column[:, None], row[None, :]
        key_KD = tile.load_rows(
            tile.rows_of(key, s, g, start_k), key[3], first_k, length_k, column, D, WIDE_D, True
        )
        value_KE = tile.load_rows(
            tile.rows_of(value, s, g, start_k), value[3], first_k, length_k, column, E, WIDE_E,
            True,
        )  # fmt: skip
        on_key_KD = tl.zeros((BLOCK_K, WIDE_D), tl.float32)
        on_value_KE = tl.zeros((BLOCK_K, WIDE_E), tl.float32)
        up, down = grad_shift(magnitudes, SHIFT)
        numbers = scale, constant, softcap, left, right
        shift = length_k - length_q
        for member in tl.range(0, group):
            h = g * group + member
            slope = tile.slope_of(slopes, s, h, SLOPES) * UNIT
            extra = constant * UNIT + (SHIFT if ACTIVATION == ACCURATE else 0)
            extra = tile.add_term(
                extra, bias, s, h, q, k, 0, first_k, length_q, length_k, BIAS, HEADS, COLUMNS,
                UNIT,
            )  # fmt: skip
            extra = tile.add_term(
                extra, mask, s, h, q, k, 0, first_k, length_q, length_k, MASK, HEADS, COLUMNS,
                UNIT,
            )  # fmt: skip
            if grad_mass is not None:
                extra = tile.hide_missing_keys(extra, k, first_k, length_k)
            query_rows = tile.rows_of(query, s, h, start_q)
            grad_out_rows = tile.rows_of(grad_out, s, h, start_q)
            span = spans
            if SPANS:
                span = spans + (s.to(tl.int64) * heads + h) * units + first_k // SPAN
            first, end, inner_first, inner_end, full_first, full_end = tile.visited(
                first_k - shift, tl.minimum(first_k + BLOCK_K, length_k) - 1 - shift, length_q,
                right, left, span, sequences * heads * units,
                RIGHT, LEFT, SPANS, SPAN, BLOCK_Q,
            )  # fmt: skip
            column_sum = tl.zeros((BLOCK_K,), tl.float32)
            slope_sum = tl.zeros((BLOCK_K,), tl.float32)
            for part in tl.static_range(3):
                begin, stop = tile.loop_range(part, first, inner_first, inner_end, end)
                if part != 0 or RIGHT:
                    # Values hoisted out of the loop would make the widest tiles spill registers.
                    for i in tl.range(begin, stop, disable_licm=WIDE_D + WIDE_E > 128):
                        first_q = i * BLOCK_Q
                        query_QD = tile.load_rows(
                            query_rows, query[3], first_q, length_q, row, D, WIDE_D, part != 1
                        )
                        grad_QE = tile.load_rows(
                            grad_out_rows, grad_out[3], first_q, length_q, row, E, WIDE_E,
                            part != 1,
                        )  # fmt: skip
                        scores_KQ = tile.dot(key_KD, tl.trans(query_QD), None, PRECISION)
                        weights_KQ, x_KQ, cap_derivative_KQ, away_KQ = tile.attention_weights(
                            scores_KQ, extra, slope, bias, mask, s, h, q, k, first_q, first_k,
                            length_q, length_k, numbers, i, full_first, full_end,
                            BIAS, MASK, ROWS, SLOPES, SOFTCAP, LEFT, RIGHT, part == 1, SPANS, UNIT,
                            PRECISION, SHIFT, ACTIVATION,
                        )  # fmt: skip
                        rounded = weights_KQ.to(grad_QE.dtype)
                        on_value_KE = tile.dot(rounded, grad_QE, on_value_KE, PRECISION)
                        grad_KQ = tile.dot(value_KE, tl.trans(grad_QE), None, PRECISION)
                        if grad_mass is not None:
                            grad_mass_Q = tl.load(
                                tile.rows_of(grad_mass, s, h, start_q) + first_q + row,
                                mask=row < length_q - first_q, other=0.0,
                            )  # fmt: skip
                            grad_KQ += grad_mass_Q[None, :]
                        grad_KQ *= tile.sigmoid_derivative(weights_KQ, x_KQ, up, SHIFT, PRECISE)
                        if ON_COLUMNS:
                            column_sum += tl.sum(grad_KQ, 1)
                        if ON_SLOPES:
                            slope_sum += tl.sum(grad_KQ * tl.abs(away_KQ), 1)
                        if ON_ROWS:
                            target = grad_rows[0] + s.to(tl.int64) * grad_rows[1]
                            target += h.to(tl.int64) * grad_rows[2] + first_q
                            tl.atomic_add(
                                target + row, tl.sum(grad_KQ, 0) * down,
                                mask=row < length_q - first_q, sem="relaxed",
                            )  # fmt: skip
                        if ON_PAIRS != NOT_WANTED:
                            tile.store_pair_gradients(
                                grad_pairs, s, h, q, k, first_q, first_k, length_q, length_k,
                                grad_KQ * down, ON_PAIRS == ADDED,
                            )  # fmt: skip
                        if SOFTCAP:
                            grad_KQ *= cap_derivative_KQ
                        rounded = grad_KQ.to(query_QD.dtype)
                        on_key_KD = tile.dot(rounded, query_QD, on_key_KD, PRECISION)
                        if ON_QUERY:
                            part_QD = tile.dot(tl.trans(rounded), key_KD, None, PRECISION)
                            if SHIFT != 0:
                                part_QD *= down
                            tile.add_rows(
                                tile.rows_of(grad_query, s, h, start_q), grad_query[3], first_q,
                                length_q, row, part_QD, D, WIDE_D, part != 1,
                            )  # fmt: skip
            exists = column < length_k - first_k
            if ON_COLUMNS:
                target = grad_columns[0] + s.to(tl.int64) * grad_columns[1]
                target += h.to(tl.int64) * grad_columns[2] + first_k
                tl.store(target + column, column_sum * down, mask=exists)
            if ON_SLOPES:
                target = grad_slopes[0] + s.to(tl.int64) * grad_slopes[1]
                target += h.to(tl.int64) * grad_slopes[2] + block
                tl.store(target, -tl.sum(slope_sum, 0) * down)
        tile.store_rows(
            tile.rows_of(grad_key, s, g, start_k), grad_key[3], first_k, length_k, column,
            on_key_KD * (scale * down), D, WIDE_D,
        )  # fmt: skip
        tile.store_rows(
            tile.rows_of(grad_value, s, g, start_k), grad_value[3], first_k, length_k, column,
            on_value_KE * 2.0**-SHIFT, E, WIDE_E,
        )  # fmt: skip


@triton.jit
def grad_shift(magnitudes, SHIFT: tl.constexpr):
    """The power of two by which dU is multiplied before it is rounded to fp16, and its inverse.

    |dU| is at most max|dO| max|v| / 4, which must stay below the largest number of fp16, nearly
    2^16. Outside of fp16, and where this bound is 0 or not finite, the power is 1.
    """
    if SHIFT == 0:
        up, down = 1.0, 1.0
    else:
        largest = tl.load(magnitudes) * tl.load(magnitudes + 1)
        # 2^17 and not 2^18: norms and their product are rounded.
        power = 17.0 - tl.ceil(tl.log2(largest))
        usable = (largest > 0.0) & (tl.abs(power) <= 60.0)
        power = tl.where(usable, power, 0.0).to(tl.int32)
        up = ((power + 127) << 23).to(tl.float32, bitcast=True)
        down = ((127 - power) << 23).to(tl.float32, bitcast=True)
    return up, down
