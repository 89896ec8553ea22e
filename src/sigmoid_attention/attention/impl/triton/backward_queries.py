"""The kernel for a deterministic dQ, used under ``torch.use_deterministic_algorithms``.

A block of queries visits its keys again, as in the forward pass, and sums its dQ in order. That
takes two products more for each tile than a single backward pass.

Shape letters: Q queries of a block, K keys of a block, D head dim, E value dim.
"""

import triton
import triton.language as tl

from sigmoid_attention.attention.impl.triton import tile
from sigmoid_attention.attention.impl.triton.activation import LOG2E
from sigmoid_attention.attention.impl.triton.backward import grad_shift
from sigmoid_attention.attention.impl.triton.tile import ACCURATE, COLUMNS, HEADS, ROWS


@triton.jit(do_not_specialize=tile.NUMBERS)
def backward_queries(
    query, key, value, grad_out, grad_mass, grad_query, bias, mask, slopes, grad_rows, magnitudes,
    offsets_and_lengths, spans,
    sequences, heads, group, longest_q, longest_k, units, scale, constant, softcap, left, right,
    D: tl.constexpr, E: tl.constexpr, WIDE_D: tl.constexpr, WIDE_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, SPAN: tl.constexpr,
    BIAS: tl.constexpr, MASK: tl.constexpr, SLOPES: tl.constexpr, SOFTCAP: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SPANS: tl.constexpr,
    SHIFT: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    ON_ROWS: tl.constexpr, MULTIPLE_OF_8: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head; arguments as for the other two kernels.

    grad_rows is (B, H, Q) in fp32; spans are the ranges of keys.
    """
    query, grad_out = (
        tile.assume_multiple_of_8(query, MULTIPLE_OF_8),
        tile.assume_multiple_of_8(grad_out, MULTIPLE_OF_8),
    )
    key, value = (
        tile.assume_multiple_of_8(key, MULTIPLE_OF_8),
        tile.assume_multiple_of_8(value, MULTIPLE_OF_8),
    )
    grad_query = tile.assume_multiple_of_8(grad_query, MULTIPLE_OF_8)
    blocks = tl.cdiv(longest_q, BLOCK_Q)
    program = tl.program_id(0)
    block = blocks - 1 - program % blocks
    h = program // blocks % heads
    s = program // blocks // heads
    start_q, length_q, start_k, length_k = tile.sequence_bounds(
        offsets_and_lengths, sequences, s, longest_q, longest_k
    )
    first_q = block * BLOCK_Q
    if first_q < length_q:
        PRECISE: tl.constexpr = PRECISION == "tf32x3" and ACTIVATION == ACCURATE
        UNIT: tl.constexpr = LOG2E if ACTIVATION == ACCURATE else tl.constexpr(0.5)
        row, column = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_K)
        q, k = row[:, None], column[None, :]
        query_QD = tile.load_rows(
            tile.rows_of(query, s, h, start_q), query[3], first_q, length_q, row, D, WIDE_D, True
        )
        grad_QE = tile.load_rows(
            tile.rows_of(grad_out, s, h, start_q), grad_out[3], first_q, length_q, row, E, WIDE_E,
            True,
        )  # fmt: skip
        if grad_mass is not None:
            grad_mass_Q = tl.load(
                tile.rows_of(grad_mass, s, h, start_q) + first_q + row,
                mask=row < length_q - first_q, other=0.0,
            )  # fmt: skip
        key_rows = tile.rows_of(key, s, h // group, start_k)
        value_rows = tile.rows_of(value, s, h // group, start_k)
        slope = tile.slope_of(slopes, s, h, SLOPES) * UNIT
        extra = constant * UNIT + (SHIFT if ACTIVATION == ACCURATE else 0)
        extra = tile.add_term(
            extra, bias, s, h, q, k, first_q, 0, length_q, length_k, BIAS, HEADS, ROWS, UNIT
        )
        extra = tile.add_term(
            extra, mask, s, h, q, k, first_q, 0, length_q, length_k, MASK, HEADS, ROWS, UNIT
        )
        span, span_step = spans, sequences * heads * units
        if SPANS:
            span = spans + (s.to(tl.int64) * heads + h) * units + first_q // SPAN
        shift = length_k - length_q
        first, end, inner_first, inner_end, full_first, full_end = tile.visited(
            first_q + shift, tl.minimum(first_q + BLOCK_Q, length_q) - 1 + shift, length_k,
            left, right, span, span_step, LEFT, RIGHT, SPANS, SPAN, BLOCK_K,
        )  # fmt: skip
        up, down = grad_shift(magnitudes, SHIFT)
        numbers = scale, constant, softcap, left, right
        on_query_QD = tl.zeros((BLOCK_Q, WIDE_D), tl.float32)
        row_sum = tl.zeros((BLOCK_Q,), tl.float32)
        for part in tl.static_range(3):
            begin, stop = tile.loop_range(part, first, inner_first, inner_end, end)
            if part != 0 or LEFT:
                for j in tl.range(begin, stop):
                    first_k = j * BLOCK_K
                    key_KD = tile.load_rows(
                        key_rows, key[3], first_k, length_k, column, D, WIDE_D, part != 1
                    )
                    value_KE = tile.load_rows(
                        value_rows, value[3], first_k, length_k, column, E, WIDE_E, part != 1
                    )
                    scores_QK = tile.dot(query_QD, tl.trans(key_KD), None, PRECISION)
                    added = extra
                    if grad_mass is not None and part != 1:
                        added = tile.hide_missing_keys(extra, k, first_k, length_k)
                    weights_QK, x_QK, cap_derivative_QK, _ = tile.attention_weights(
                        scores_QK, added, slope, bias, mask, s, h, q, k, first_q, first_k,
                        length_q, length_k, numbers, j, full_first, full_end,
                        BIAS, MASK, COLUMNS, SLOPES, SOFTCAP, LEFT, RIGHT, part == 1, SPANS, UNIT,
                        PRECISION, SHIFT, ACTIVATION,
                    )  # fmt: skip
                    grad_QK = tile.dot(grad_QE, tl.trans(value_KE), None, PRECISION)
                    if grad_mass is not None:
                        grad_QK += grad_mass_Q[:, None]
                    grad_QK *= tile.sigmoid_derivative(weights_QK, x_QK, up, SHIFT, PRECISE)
                    if ON_ROWS:
                        row_sum += tl.sum(grad_QK, 1)
                    if SOFTCAP:
                        grad_QK *= cap_derivative_QK
                    on_query_QD = tile.dot(grad_QK.to(key_KD.dtype), key_KD, on_query_QD, PRECISION)
        if ON_ROWS:
            target = grad_rows[0] + s.to(tl.int64) * grad_rows[1]
            target += h.to(tl.int64) * grad_rows[2] + first_q
            tl.store(target + row, row_sum * down, mask=row < length_q - first_q)
        tile.store_rows(
            tile.rows_of(grad_query, s, h, start_q), grad_query[3], first_q, length_q, row,
            on_query_QD * (scale * down), D, WIDE_D,
        )  # fmt: skip
