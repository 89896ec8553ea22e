r"""Decoding: a few queries against many keys, which are read from memory once.

All queries that share a key head are rows of one tile, so that a key is read once for all of them.
The visible keys of a sequence are divided into `splits` equal parts. Nothing is normalised, so a
row is the plain sum of its parts, and so is its mass, the sum of its weights. A second kernel adds
them in their order, which gives the same bits in every run. The number of parts depends on shapes
alone, not on the lengths, which stay on the GPU. So a captured CUDA graph is valid for all lengths.

**Reach.** A softcap c bounds every logit: u <= c + b - a t for a key at a distance of t under slope
a > 0. All keys farther away than t then weigh together at most

    R(t) = e^(c + b) e^(-a t) / (1 - e^(-a)),

while the key at the query's own position, at distance 0, weighs at least sigmoid(b - c). If R(t) is
below the tolerance (a number), or below the tolerance times that weight ("rounding"), the keys
beyond t are not read. This is the certificate of `bounds.py`. Without a softcap it would need the
norms of all keys, so there only the window limits a row.

Shape letters: M rows (queries of all heads that share a key head), N keys, D head dim, E value dim,
S parts.
"""

import triton
import triton.language as tl

from sigmoid_attention.attention.bounds import KEPT_SLACK
from sigmoid_attention.attention.impl.triton import tile
from sigmoid_attention.attention.impl.triton.activation import LOG2E, cap, full

KEPT = tl.constexpr(1 - KEPT_SLACK)
# Relative slack for a reach that is computed in fp32.
REACH_SLACK = tl.constexpr(1.001)


@triton.jit
def log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def reach(slope_M, bias_M, softcap, tolerance, farthest, RELATIVE: tl.constexpr):
    """The distance beyond which a row's keys together weigh less than the tolerance allows."""
    allowed_M = tl.log(tolerance) + tl.zeros_like(bias_M)
    if RELATIVE:
        allowed_M += tl.log(KEPT) + log_sigmoid(bias_M - softcap)
    series_M = tl.log(1.0 - tl.exp(-slope_M))
    beyond_M = (softcap + bias_M - series_M - allowed_M) / slope_M * REACH_SLACK + 1.0
    # False for a NaN, whose row then reaches all keys.
    ends_M = (slope_M > 0.0) & (beyond_M < farthest)
    return tl.where(ends_M, tl.maximum(beyond_M, 0.0), farthest)


@triton.jit
def attend_part(
    query, key, value, out, mass, used, table, bias, slopes, sizes, numbers,
    GROUP: tl.constexpr, QUERIES: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, PAGE: tl.constexpr,
    BIAS_BY_KEY: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    HAS_REACH: tl.constexpr, RELATIVE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    SHIFT: tl.constexpr,
):  # fmt: skip
    """One part of the keys of one key head, for up to BLOCK_M of the rows that share it.

    Tensors come with their strides: query (B, H, Q, D), key and value (B or page, G, N, D or E),
    out (B, H, Q, S, E), mass (B, H, Q, S) in fp32, used (B,), table (B, page of a sequence),
    bias (B, H, Q, N), slopes (B, H).
    sizes: key heads, capacity, parts. numbers: scale, softcap, constant, tolerance.
    ``LEFT`` and ``RIGHT`` are the window, -1 for no limit; ``PAGE`` is the size of a page.
    mass, table, bias and slopes may be None.
    Weights are summed up times 2^SHIFT.
    """
    query_ptr, query_b, query_h, query_q, query_d = query
    key_ptr, key_b, key_h, key_n, key_d = key
    value_ptr, value_b, value_h, value_n, value_e = value
    out_ptr, out_b, out_h, out_q, out_s, out_e = out
    used_ptr, used_b = used
    key_heads, capacity, splits = sizes
    scale, softcap, constant, tolerance = numbers
    ROWS: tl.constexpr = GROUP * QUERIES
    ROW_BLOCKS: tl.constexpr = (ROWS + BLOCK_M - 1) // BLOCK_M
    program = tl.program_id(0)
    # Blocks of rows vary fastest: later ones find the keys in the cache.
    row_block = program % ROW_BLOCKS
    split = (program // ROW_BLOCKS) % splits
    key_head = (program // ROW_BLOCKS // splits % key_heads).to(tl.int64)
    sequence = (program // ROW_BLOCKS // splits // key_heads).to(tl.int64)

    row_M = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    row_exists_M = row_M < ROWS
    head_M = key_head * GROUP + row_M // QUERIES
    query_M = (row_M % QUERIES).to(tl.int64)
    tokens = tl.load(used_ptr + sequence * used_b)
    tokens = tl.minimum(tl.maximum(tokens, 0), capacity).to(tl.int32)
    position_M = tokens - QUERIES + row_M % QUERIES

    bias_M = tl.full((BLOCK_M,), 0.0, tl.float32) + constant
    if bias is not None:
        bias_ptr, bias_b, bias_h, bias_q, bias_n = bias
        bias_row_M = bias_ptr + sequence * bias_b + head_M * bias_h + query_M * bias_q
        if not BIAS_BY_KEY:
            bias_M += tl.load(bias_row_M, mask=row_exists_M, other=0.0).to(tl.float32)
    if slopes is not None:
        slopes_ptr, slopes_b, slopes_h = slopes
        slope_address_M = slopes_ptr + sequence * slopes_b + head_M * slopes_h
        slope_M = tl.load(slope_address_M, mask=row_exists_M, other=1.0).to(tl.float32)

    # The first key that any row sees. The last one is the last key of the sequence.
    first = 0
    if LEFT >= 0:
        first = tokens - QUERIES - LEFT
    if HAS_REACH:
        reach_M = reach(slope_M, bias_M, softcap, tolerance, capacity + 0.0, RELATIVE)
        first_M = tl.where(row_exists_M, position_M - reach_M.to(tl.int32), tokens)
        first = tl.maximum(first, tl.min(first_M, 0))
    first = tl.maximum(first, 0)
    # Parts start at whole blocks, as pages do.
    first_block = first // BLOCK_N
    blocks = tl.cdiv(tokens, BLOCK_N) - first_block
    each = tl.cdiv(blocks, splits)
    begin = (first_block + split * each) * BLOCK_N
    end = tl.minimum(begin + each * BLOCK_N, tokens)

    offset_D, offset_E = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    query_row_M = query_ptr + sequence * query_b + head_M * query_h + query_M * query_q
    query_MD = tl.load(
        query_row_M[:, None] + offset_D[None, :] * query_d,
        mask=row_exists_M[:, None] & (offset_D[None, :] < D),
        other=0.0,
    )
    key_head_ptr = key_ptr + key_head * key_h
    value_head_ptr = value_ptr + key_head * value_h
    if table is not None:
        table_ptr, table_b, table_m = table
    else:
        key_head_ptr += sequence * key_b
        value_head_ptr += sequence * value_b
    out_ME = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    mass_M = tl.zeros((BLOCK_M,), tl.float32)
    for start in tl.range(begin, end, BLOCK_N):
        key_N = start + tl.arange(0, BLOCK_N)
        read_N = (key_N >= first) & (key_N < end)
        if table is not None:
            entry_N = table_ptr + sequence * table_b + (key_N // PAGE).to(tl.int64) * table_m
            page_N = tl.load(entry_N, mask=read_N, other=0).to(tl.int64)
            token_N = (key_N % PAGE).to(tl.int64)
            key_row_N = key_head_ptr + page_N * key_b + token_N * key_n
            value_row_N = value_head_ptr + page_N * value_b + token_N * value_n
        else:
            key_row_N = key_head_ptr + key_N.to(tl.int64) * key_n
            value_row_N = value_head_ptr + key_N.to(tl.int64) * value_n
        key_ND = tl.load(
            key_row_N[:, None] + offset_D[None, :] * key_d,
            mask=read_N[:, None] & (offset_D[None, :] < D),
            other=0.0,
        )
        value_NE = tl.load(
            value_row_N[:, None] + offset_E[None, :] * value_e,
            mask=read_N[:, None] & (offset_E[None, :] < E),
            other=0.0,
        )
        logit_MN = tile.dot(query_MD, tl.trans(key_ND), None, "ieee") * scale
        if HAS_SOFTCAP:
            logit_MN = softcap * cap(logit_MN / softcap, key_ptr.dtype.element_ty == tl.float32)
        logit_MN += bias_M[:, None]
        if BIAS_BY_KEY:
            logit_MN += tl.load(
                bias_row_M[:, None] + key_N[None, :].to(tl.int64) * bias_n,
                mask=row_exists_M[:, None] & read_N[None, :],
                other=0.0,
            ).to(tl.float32)
        offset_MN = position_M[:, None] - key_N[None, :]
        if slopes is not None:
            logit_MN -= slope_M[:, None] * tl.abs(offset_MN).to(tl.float32)
        weight_MN = full(logit_MN * LOG2E + SHIFT, SHIFT)
        visible_MN = read_N[None, :]
        if LEFT >= 0:
            visible_MN &= offset_MN <= LEFT
        if RIGHT >= 0:
            visible_MN &= offset_MN >= -RIGHT
        weight_MN = tl.where(visible_MN, weight_MN, 0.0)
        if mass is not None:
            mass_M += tl.sum(weight_MN, 1)
        out_ME = tile.dot(weight_MN.to(value_NE.dtype), value_NE, out_ME, "ieee")
    out_ME *= 1.0 / (1 << SHIFT)
    out_row_M = out_ptr + sequence * out_b + head_M * out_h + query_M * out_q + split * out_s
    tl.store(
        out_row_M[:, None] + offset_E[None, :] * out_e,
        out_ME.to(out_ptr.dtype.element_ty),
        mask=row_exists_M[:, None] & (offset_E[None, :] < E),
    )
    if mass is not None:
        mass_ptr, mass_b, mass_h, mass_q, mass_s = mass
        mass_row_M = mass_ptr + sequence * mass_b + head_M * mass_h + query_M * mass_q
        mass_M *= 1.0 / (1 << SHIFT)
        tl.store(mass_row_M + split * mass_s, mass_M, mask=row_exists_M)


@triton.jit
def add_parts(
    parts_ptr, out_ptr, mass_parts_ptr, mass_ptr, splits,
    E: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Add the parts of a row of the output, (rows, S, E) to (rows, E), and those of its mass."""
    row = tl.program_id(0).to(tl.int64)
    offset_E = tl.arange(0, BLOCK_E)
    row_ptr = parts_ptr + row * splits * E
    out_SE = tl.zeros((BLOCK_S, BLOCK_E), tl.float32)
    mass_S = tl.zeros((BLOCK_S,), tl.float32)
    for start in tl.range(0, splits, BLOCK_S):
        split_S = start + tl.arange(0, BLOCK_S)
        out_SE += tl.load(
            row_ptr + split_S[:, None] * E + offset_E[None, :],
            mask=(split_S[:, None] < splits) & (offset_E[None, :] < E),
            other=0.0,
        )
        if mass_ptr is not None:
            mass_row_S = mass_parts_ptr + row * splits + split_S
            mass_S += tl.load(mass_row_S, mask=split_S < splits, other=0.0)
    out_E = tl.sum(out_SE, 0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * E + offset_E, out_E, mask=offset_E < E)
    if mass_ptr is not None:
        tl.store(mass_ptr + row, tl.sum(mass_S, 0))
