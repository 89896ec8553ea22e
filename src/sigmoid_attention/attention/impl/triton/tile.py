"""What the kernels share: bounds of sequences, visited blocks, and logits and weights of a tile.

A tensor of rows is passed with its strides, as ``(pointer, batch, head, row)``. A term of the
logits is passed as ``(pointer, batch, head, query, key)``, with a stride of 0 where it broadcasts.
Offsets to the start of a tile have 64 bits, those within a tile have 32.

The backward pass computes its tiles transposed, keys by queries. So every function takes the
indices of queries and keys in the shape of its tile: (Q, 1) and (1, K), or (1, Q) and (K, 1).

Shape letters: Q queries of a tile, K keys of a tile, D head dim, E value dim.
"""

import triton
import triton.language as tl

from sigmoid_attention.attention.impl.triton import activation
from sigmoid_attention.attention.impl.triton.activation import INTERPRETED

# The kinds of a term: what it depends on beside batch and head.
NONE = tl.constexpr(0)
HEADS = tl.constexpr(1)
ROWS = tl.constexpr(2)
COLUMNS = tl.constexpr(3)
PAIRS = tl.constexpr(4)
FLAGS = tl.constexpr(5)  # a boolean mask of any shape

# The numbers that every kernel takes beside tensors. They are not specialised: Triton would compile
# for multiples of 16 and for the value 1, which makes no kernel here faster.
NUMBERS = (
    "sequences", "heads", "group", "longest_q", "longest_k", "units",
    "scale", "constant", "softcap", "left", "right",
)  # fmt: skip

# How a tile's weights are computed.
ACCURATE = tl.constexpr(0)
TANH = tl.constexpr(1)


@triton.jit
def sequence_bounds(offsets_and_lengths, sequences, s, longest_q, longest_k):
    """Start and length of the queries and of the keys of sequence s, from a table (4, B)."""
    if offsets_and_lengths is None:
        start_q, length_q, start_k, length_k = 0, longest_q, 0, longest_k
    else:
        start_q = tl.load(offsets_and_lengths + s)
        # On a GPU these numbers are not validated.
        length_q = tl.minimum(tl.load(offsets_and_lengths + sequences + s), longest_q).to(tl.int32)
        start_k = tl.load(offsets_and_lengths + 2 * sequences + s)
        length_k = tl.minimum(tl.load(offsets_and_lengths + 3 * sequences + s), longest_k).to(
            tl.int32
        )
    return start_q, length_q, start_k, length_k


@triton.jit
def assume_multiple_of_8(tensor, MULTIPLE_OF_8: tl.constexpr):
    """The tensor of rows; with MULTIPLE_OF_8 the compiler learns that its strides are such.

    Triton itself detects only multiples of 16. Without either, every element of a row is loaded on
    its own.
    """
    if MULTIPLE_OF_8:
        rows = (tensor[0], tensor[1] // 8 * 8, tensor[2] // 8 * 8, tensor[3] // 8 * 8)
    else:
        rows = tensor
    return rows


@triton.jit
def rows_of(tensor, s, head, start):
    """The address of the first row of one head of one sequence."""
    offset = s.to(tl.int64) * tensor[1] + head.to(tl.int64) * tensor[2]
    return tensor[0] + (offset + start * tensor[3])


@triton.jit
def load_rows(
    pointer,
    stride,
    first,
    rows,
    index,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    CHECK: tl.constexpr,
):
    """Rows ``first + index`` of a head, zeros past the last row (if CHECK) and past DIM."""
    dim = tl.arange(0, PADDED)[None, :]
    tile = pointer + first.to(tl.int64) * stride + (index[:, None] * stride + dim)
    if CHECK and DIM < PADDED:
        loaded = tl.load(tile, mask=(index[:, None] < rows - first) & (dim < DIM), other=0.0)
    elif CHECK:
        loaded = tl.load(tile, mask=index[:, None] < rows - first, other=0.0)
    elif DIM < PADDED:
        loaded = tl.load(tile, mask=dim < DIM, other=0.0)
    else:
        loaded = tl.load(tile)
    return loaded


@triton.jit
def block_of(
    tensor, s, head, start, first, rows,
    ROWS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, CHECK: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    """The ROWS rows from ``first`` on of one head, by ``load_rows`` or by a descriptor.

    A descriptor holds the sizes of its tensor, and the tensor memory accelerator computes the
    addresses. So it takes no registers and no instructions here.
    """
    if DESCRIBED:
        loaded = tensor.load([s, head, first, 0]).reshape(ROWS, PADDED)
    else:
        loaded = load_rows(
            rows_of(tensor, s, head, start), tensor[3], first, rows, tl.arange(0, ROWS),
            DIM, PADDED, CHECK,
        )  # fmt: skip
    return loaded


@triton.jit
def store_rows(pointer, stride, first, rows, index, tile, DIM: tl.constexpr, PADDED: tl.constexpr):
    dim = tl.arange(0, PADDED)[None, :]
    tl.store(
        pointer + first.to(tl.int64) * stride + (index[:, None] * stride + dim),
        tile.to(pointer.dtype.element_ty),
        mask=(index[:, None] < rows - first) & (dim < DIM),
    )


@triton.jit
def dot(left, right, total, PRECISION: tl.constexpr):
    """left @ right, added to ``total`` where that is not None."""
    if INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def visited(
    position, last, length, before, after, span, span_step,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, SPANS: tl.constexpr, SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The blocks of keys that queries visit whose positions are ``position`` to ``last``.

    A query sees ``before`` keys before its position and ``after`` keys after it, of ``length`` keys
    in all. With the roles exchanged, the function gives the blocks of queries that visit keys.
    Returns three ranges, each as its first block and the one behind its last: all visited blocks;
    the inner ones, all of whose pairs are in the window; those that need the full sigmoid.
    """
    low = tl.maximum(position - before, 0) if BEFORE else 0
    high = tl.minimum(tl.maximum(last + after + 1, 0), length) if AFTER else length
    inner_low = tl.maximum(last - before, 0) if BEFORE else 0
    inner_high = tl.minimum(tl.maximum(position + after + 1, 0), length) if AFTER else length
    if SPANS:
        low = tl.maximum(low, tl.load(span) * SPAN)
        high = tl.minimum(high, tl.load(span + 3 * span_step) * SPAN)
    first, end = low // BLOCK, tl.cdiv(high, BLOCK)
    inner_first = tl.minimum(tl.maximum(tl.cdiv(inner_low, BLOCK), first), end)
    inner_end = tl.minimum(tl.maximum(inner_high // BLOCK, inner_first), end)
    full_first, full_end = first, end
    if SPANS:
        full_first = tl.load(span + span_step) * (SPAN // BLOCK)
        full_end = tl.load(span + 2 * span_step) * (SPAN // BLOCK)
    return first, end, inner_first, inner_end, full_first, full_end


@triton.jit
def load_term(
    term, s, h, q, k, first_q, first_k, length_q, length_k,
    KIND: tl.constexpr, WHOLE: tl.constexpr = NONE,
):  # fmt: skip
    """The numbers of a term for a tile, in the shape of its kind.

    WHOLE is COLUMNS if all keys of the tile exist, ROWS if all queries do. A check of each key
    would prevent the compiler from loading several keys of a row at once.
    """
    corner = term[0] + s.to(tl.int64) * term[1] + h.to(tl.int64) * term[2]
    if (KIND == FLAGS) | (KIND == PAIRS):
        if WHOLE == COLUMNS:
            exists = q < length_q - first_q
        elif WHOLE == ROWS:
            exists = k < length_k - first_k
        else:
            exists = (q < length_q - first_q) & (k < length_k - first_k)
        corner += first_q.to(tl.int64) * term[3] + first_k.to(tl.int64) * term[4]
        numbers = tl.load(corner + (q * term[3] + k * term[4]), mask=exists, other=0)
    elif KIND == ROWS:
        corner += first_q.to(tl.int64) * term[3]
        numbers = tl.load(corner + q * term[3], mask=q < length_q - first_q, other=0)
    elif KIND == COLUMNS:
        corner += first_k.to(tl.int64) * term[4]
        numbers = tl.load(corner + k * term[4], mask=k < length_k - first_k, other=0)
    else:
        numbers = tl.load(corner)
    return numbers


@triton.jit
def distance(q, k, first_q, first_k, shift):
    """p_i - j of a tile in fp32, exact below 2^24."""
    return (q + (first_q + shift - first_k)).to(tl.float32) - k.to(tl.float32)


@triton.jit
def in_window(q, k, first_q, first_k, shift, left, right, LEFT: tl.constexpr,
              RIGHT: tl.constexpr):  # fmt: skip
    """Which pairs of a tile lie in the window, which has a limit on one side at least.

    Queries and keys past the end of a sequence are not excluded: they were loaded as zeros, so
    their weights contribute nothing.
    """
    offset = (q + (first_q + shift - first_k)) - k
    if LEFT and RIGHT:
        visible = (offset <= left) & (offset >= -right)
    elif LEFT:
        visible = offset <= left
    else:
        visible = offset >= -right
    return visible


@triton.jit
def weights(x, TAIL: tl.constexpr, SHIFT: tl.constexpr, ACTIVATION: tl.constexpr):
    """2^SHIFT sigmoid of a tile of logits as :func:`logits` gives them."""
    if ACTIVATION == TANH:
        shifted = activation.by_tanh(x, SHIFT)
    elif TAIL:
        shifted = activation.tail(x, SHIFT)
    else:
        shifted = activation.full(x, SHIFT)
    return shifted


@triton.jit
def add_term(
    extra, term, s, h, q, k, first_q, first_k, length_q, length_k,
    KIND: tl.constexpr, KIND_A: tl.constexpr, KIND_B: tl.constexpr, UNIT: tl.constexpr,
    WHOLE: tl.constexpr = NONE,
):  # fmt: skip
    """``extra`` plus a term in units of UNIT, if the term is of one of two kinds."""
    if (KIND == KIND_A) | (KIND == KIND_B):
        numbers = load_term(term, s, h, q, k, first_q, first_k, length_q, length_k, KIND, WHOLE)
        extra = extra + numbers.to(tl.float32) * UNIT
    return extra


@triton.jit
def slope_of(slopes, s, h, SLOPES: tl.constexpr):
    slope = 0.0
    if SLOPES:
        slope = tl.load(slopes[0] + s * slopes[1] + h * slopes[2]).to(tl.float32)
    return slope


@triton.jit
def hide_missing_keys(extra, k, first_k, length_k):
    """``extra``, and -inf for keys past the end, so that their weights are 0.

    Only the mass needs it: to the output they contribute nothing, as their values are 0.
    """
    return tl.where(k < length_k - first_k, extra, float("-inf"))


@triton.jit
def logits(
    scores, extra, slope, bias, mask, s, h, q, k, first_q, first_k, length_q, length_k,
    scale, softcap, BIAS: tl.constexpr, MASK: tl.constexpr, ALONG: tl.constexpr,
    SLOPES: tl.constexpr, SOFTCAP: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr,
    WHOLE: tl.constexpr = NONE,
):  # fmt: skip
    """Logits of a tile in units of UNIT, cap' at the scores, and the distance p_i - j.

    ``extra`` holds the terms that are the same for all tiles of a block. Terms of the kinds ALONG
    and PAIRS are loaded for each tile.
    """
    extra = add_term(
        extra, bias, s, h, q, k, first_q, first_k, length_q, length_k, BIAS, ALONG, PAIRS, UNIT,
        WHOLE,
    )  # fmt: skip
    extra = add_term(
        extra, mask, s, h, q, k, first_q, first_k, length_q, length_k, MASK, ALONG, PAIRS, UNIT,
        WHOLE,
    )  # fmt: skip
    away = 0.0
    if SLOPES:
        away = distance(q, k, first_q, first_k, length_k - length_q)
        extra = extra - tl.abs(away) * slope
    cap_derivative = 1.0
    if SOFTCAP:
        capped = activation.cap(scores * (scale / softcap), PRECISION == "tf32x3")
        x = capped * (softcap * UNIT) + extra
        cap_derivative = 1.0 - capped * capped
    else:
        x = scores * (scale * UNIT) + extra
    return x, cap_derivative, away


@triton.jit
def loop_range(PART: tl.constexpr, first, inner_first, inner_end, end):
    """The blocks of one of three loops: the window's first edge, its inside, its second edge.

    The last block reaches past the end of the sequence, and belongs to the second edge.
    """
    if PART == 0:
        begin, stop = first, inner_first
    elif PART == 1:
        begin, stop = inner_first, inner_end
    else:
        begin, stop = inner_end, end
    return begin, stop


@triton.jit
def attention_weights(
    scores, extra, slope, bias, mask, s, h, q, k, first_q, first_k, length_q, length_k, numbers,
    block, full_first, full_end,
    BIAS: tl.constexpr, MASK: tl.constexpr, ALONG: tl.constexpr, SLOPES: tl.constexpr,
    SOFTCAP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, INSIDE: tl.constexpr,
    SPANS: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr, SHIFT: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """2^SHIFT sigmoid of a tile, 0 for pairs that are masked; then what ``logits`` returns.

    numbers: the last five of NUMBERS. INSIDE: all pairs of the tile are in the window, and all its
    keys (in the backward pass over keys, all its queries) exist. Of these tiles, with a plan
    (SPANS), only the blocks from ``full_first`` to ``full_end`` need the full sigmoid.
    """
    WHOLE: tl.constexpr = ALONG if INSIDE else NONE
    scale, softcap, left, right = numbers[0], numbers[2], numbers[3], numbers[4]
    x, cap_derivative, away = logits(  # type: ignore - it does return
        scores, extra, slope, bias, mask, s, h, q, k, first_q, first_k, length_q, length_k,
        scale, softcap, BIAS, MASK, ALONG, SLOPES, SOFTCAP, UNIT, PRECISION, WHOLE,
    )  # fmt: skip
    if INSIDE and SPANS:
        if (block >= full_first) & (block < full_end):
            shifted = weights(x, False, SHIFT, ACTIVATION)
        else:
            shifted = weights(x, True, SHIFT, ACTIVATION)
    else:
        shifted = weights(x, False, SHIFT, ACTIVATION)
    if MASK == FLAGS:
        attended = load_term(mask, s, h, q, k, first_q, first_k, length_q, length_k, MASK, WHOLE)
        shifted = tl.where(attended != 0, shifted, 0.0)
    if not INSIDE and (LEFT or RIGHT):
        visible = in_window(q, k, first_q, first_k, length_k - length_q, left, right, LEFT, RIGHT)
        shifted = tl.where(visible, shifted, 0.0)
    return shifted, x, cap_derivative, away


@triton.jit
def sigmoid_derivative(weights, x, up, SHIFT: tl.constexpr, PRECISE: tl.constexpr):
    """w (1 - w), times ``up``, of weights that are 2^SHIFT w."""
    if PRECISE:
        # 1 - w is 2^-x w. The difference would lose its digits where w is nearly 1.
        derivative = weights * activation.exp2_of_minus(tl.maximum(x, -126.0)) * weights
    elif SHIFT == 0:
        derivative = weights - weights * weights
    else:
        unit: tl.constexpr = 2.0**-SHIFT
        derivative = weights * (up * unit - weights * (up * (unit * unit)))
    return derivative


@triton.jit
def store_pair_gradients(
    pairs, s, h, q, k, first_q, first_k, length_q, length_k, grad, ADDED: tl.constexpr
):
    """Store the gradients of a tile's pairs, or add them to memory."""
    corner = pairs[0] + s.to(tl.int64) * pairs[1] + h.to(tl.int64) * pairs[2]
    corner += first_q.to(tl.int64) * pairs[3] + first_k
    exists = (q < length_q - first_q) & (k < length_k - first_k)
    if ADDED:
        tl.atomic_add(corner + (q * pairs[3] + k), grad, mask=exists, sem="relaxed")
    else:
        tl.store(corner + (q * pairs[3] + k), grad, mask=exists)


@triton.jit
def add_rows(
    pointer, stride, first, rows, index, tile,
    DIM: tl.constexpr, PADDED: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """Add a tile to memory. Without a mask the GPU adds four numbers at a time."""
    dim = tl.arange(0, PADDED)[None, :]
    target = pointer + first.to(tl.int64) * stride + (index[:, None] * stride + dim)
    if CHECK or DIM < PADDED:
        exists = (index[:, None] < rows - first) & (dim < DIM)
        tl.atomic_add(target, tile, mask=exists, sem="relaxed")
    else:
        tl.atomic_add(target, tile, sem="relaxed")
