"""What the kernels share: where a sequence lies, which blocks see which, the logits of a tile.

A tensor of rows comes as ``(pointer, batch, head, row)``, its strides behind it, a term of the
logits as ``(pointer, batch, head, query, key)`` with a stride of 0 where it broadcasts. Offsets to
the beginning of a tile are 64 bits wide, those within it 32.

The backward pass computes its tiles transposed, keys by queries. So every helper takes the indices
of queries and keys in the shape in which the tile has them: (Q, 1) and (1, K), or (1, Q) and
(K, 1).

Shape letters: Q queries of a tile, K keys of a tile, D head dim, E value dim.
"""

import triton
import triton.language as tl

from sigmoid_attention.attention.impl.triton import activation
from sigmoid_attention.attention.impl.triton.activation import INTERPRETED

# The forms of a term: what it depends on beside batch and head.
NONE = tl.constexpr(0)
HEADS = tl.constexpr(1)
ROWS = tl.constexpr(2)
COLUMNS = tl.constexpr(3)
PAIRS = tl.constexpr(4)
FLAGS = tl.constexpr(5)  # a boolean mask, of whatever shape

# What every kernel is called with beside tensors. Compiled code serves any value of these: to be a
# multiple of 16, which Triton looks for, helps no one here.
NUMBERS = (
    "sequences", "heads", "group", "longest_q", "longest_k", "units",
    "scale", "constant", "softcap", "left", "right",
)  # fmt: skip

# How a tile's weights are computed.
ACCURATE = tl.constexpr(0)
TANH = tl.constexpr(1)


@triton.jit
def place(places, sequences, s, longest_q, longest_k):
    """Start and length of the queries and of the keys of sequence s; ``places`` is (4, B)."""
    if places is None:
        start_q, length_q, start_k, length_k = 0, longest_q, 0, longest_k
    else:
        start_q = tl.load(places + s)
        # On a GPU nobody has looked at these numbers.
        length_q = tl.minimum(tl.load(places + sequences + s), longest_q).to(tl.int32)
        start_k = tl.load(places + 2 * sequences + s)
        length_k = tl.minimum(tl.load(places + 3 * sequences + s), longest_k).to(tl.int32)
    return start_q, length_q, start_k, length_k


@triton.jit
def by_8(tensor, BY_8: tl.constexpr):
    """A tensor of rows whose strides are multiples of 8, if BY_8 says so.

    Of a stride Triton itself finds out only whether it is a multiple of 16, and without either
    each element of a row would be read alone.
    """
    if BY_8:
        found = (tensor[0], tensor[1] // 8 * 8, tensor[2] // 8 * 8, tensor[3] // 8 * 8)
    else:
        found = tensor
    return found


@triton.jit
def rows_of(tensor, s, head, start):
    """Where the rows of one head of one sequence begin."""
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
    """The ROWS rows from ``first`` on of one head, as ``load_rows`` does, or by a descriptor.

    A descriptor knows where rows and dims end, and leaves it to the memory's own machinery to
    find addresses: it takes no registers and no instructions here.
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
    """Blocks of keys that queries from ``position`` to ``last`` on the keys' axis visit.

    They see from ``before`` keys before their own to ``after`` behind it, of ``length`` keys. The
    other way round it is blocks of queries that visit keys. Returns the first block and the one
    behind the last; the same of those inside, all of whose pairs are in the window; the same of
    those that need the full sigmoid.
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
    FORM: tl.constexpr, WHOLE: tl.constexpr = NONE,
):  # fmt: skip
    """What a term holds for a tile, in the shape that its form has.

    WHOLE: COLUMNS if all keys of the tile exist, ROWS if all queries do. A test of each key would
    keep those of a row from being read together.
    """
    corner = term[0] + s.to(tl.int64) * term[1] + h.to(tl.int64) * term[2]
    if (FORM == FLAGS) | (FORM == PAIRS):
        if WHOLE == COLUMNS:
            exists = q < length_q - first_q
        elif WHOLE == ROWS:
            exists = k < length_k - first_k
        else:
            exists = (q < length_q - first_q) & (k < length_k - first_k)
        corner += first_q.to(tl.int64) * term[3] + first_k.to(tl.int64) * term[4]
        found = tl.load(corner + (q * term[3] + k * term[4]), mask=exists, other=0)
    elif FORM == ROWS:
        corner += first_q.to(tl.int64) * term[3]
        found = tl.load(corner + q * term[3], mask=q < length_q - first_q, other=0)
    elif FORM == COLUMNS:
        corner += first_k.to(tl.int64) * term[4]
        found = tl.load(corner + k * term[4], mask=k < length_k - first_k, other=0)
    else:
        found = tl.load(corner)
    return found


@triton.jit
def distance(q, k, first_q, first_k, shift):
    """p_i - j of a tile in fp32, exact below 2^24."""
    return (q + (first_q + shift - first_k)).to(tl.float32) - k.to(tl.float32)


@triton.jit
def in_window(q, k, first_q, first_k, shift, left, right, LEFT: tl.constexpr,
              RIGHT: tl.constexpr):  # fmt: skip
    """Which pairs of a tile lie in the window; there is one.

    Whether a key or a query exists is not asked: where none is, zeros were loaded, and whatever
    weight they have adds nothing.
    """
    offset = (q + (first_q + shift - first_k)) - k
    if LEFT and RIGHT:
        seen = (offset <= left) & (offset >= -right)
    elif LEFT:
        seen = offset <= left
    else:
        seen = offset >= -right
    return seen


@triton.jit
def weights(x, TAIL: tl.constexpr, SHIFT: tl.constexpr, ACTIVATION: tl.constexpr):
    """2^SHIFT sigmoid of a tile of logits as :func:`logits` gives them."""
    if ACTIVATION == TANH:
        found = activation.by_tanh(x, SHIFT)
    elif TAIL:
        found = activation.tail(x, SHIFT)
    else:
        found = activation.full(x, SHIFT)
    return found


@triton.jit
def plus(
    extra, term, s, h, q, k, first_q, first_k, length_q, length_k,
    FORM: tl.constexpr, EITHER: tl.constexpr, OR: tl.constexpr, UNIT: tl.constexpr,
    WHOLE: tl.constexpr = NONE,
):  # fmt: skip
    """``extra`` with a term in units of UNIT, if the term has one of two forms."""
    if (FORM == EITHER) | (FORM == OR):
        found = load_term(term, s, h, q, k, first_q, first_k, length_q, length_k, FORM, WHOLE)
        extra = extra + found.to(tl.float32) * UNIT
    return extra


@triton.jit
def slope_of(slopes, s, h, SLOPES: tl.constexpr):
    slope = 0.0
    if SLOPES:
        slope = tl.load(slopes[0] + s * slopes[1] + h * slopes[2]).to(tl.float32)
    return slope


@triton.jit
def logits(
    scores, extra, slope, bias, mask, s, h, q, k, first_q, first_k, length_q, length_k,
    scale, softcap, BIAS: tl.constexpr, MASK: tl.constexpr, ALONG: tl.constexpr,
    SLOPES: tl.constexpr, SOFTCAP: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr,
    WHOLE: tl.constexpr = NONE,
):  # fmt: skip
    """Logits of a tile in units of UNIT, cap' at the scores, and the distance p_i - j.

    ``extra`` holds what does not change from tile to tile; terms of the form ALONG do.
    """
    extra = plus(
        extra, bias, s, h, q, k, first_q, first_k, length_q, length_k, BIAS, ALONG, PAIRS, UNIT,
        WHOLE,
    )  # fmt: skip
    extra = plus(
        extra, mask, s, h, q, k, first_q, first_k, length_q, length_k, MASK, ALONG, PAIRS, UNIT,
        WHOLE,
    )  # fmt: skip
    away = 0.0
    if SLOPES:
        away = distance(q, k, first_q, first_k, length_k - length_q)
        extra = extra - tl.abs(away) * slope
    bend = 1.0
    if SOFTCAP:
        capped = activation.cap(scores * (scale / softcap), PRECISION == "tf32x3")
        x = capped * (softcap * UNIT) + extra
        bend = 1.0 - capped * capped
    else:
        x = scores * (scale * UNIT) + extra
    return x, bend, away


@triton.jit
def part_of(PART: tl.constexpr, first, inner_first, inner_end, end):
    """The blocks of one of three loops: the window's first edge, its inside, its other edge.

    The last block, part of which lies behind the sequence's end, belongs to that other edge.
    """
    if PART == 0:
        begin, stop = first, inner_first
    elif PART == 1:
        begin, stop = inner_first, inner_end
    else:
        begin, stop = inner_end, end
    return begin, stop


@triton.jit
def weigh(
    scores, extra, slope, bias, mask, s, h, q, k, first_q, first_k, length_q, length_k, numbers,
    block, full_first, full_end,
    BIAS: tl.constexpr, MASK: tl.constexpr, ALONG: tl.constexpr, SLOPES: tl.constexpr,
    SOFTCAP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, INSIDE: tl.constexpr,
    SPANS: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr, SHIFT: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """2^SHIFT sigmoid of a tile, 0 for pairs that do not see each other; then as ``logits``.

    numbers: the last five of NUMBERS. INSIDE: all pairs are in the window, and whatever the tiles
    go along exists. There, if a plan was made (SPANS), blocks from ``full_first`` to ``full_end``
    need the full sigmoid and no others.
    """
    WHOLE: tl.constexpr = ALONG if INSIDE else NONE
    scale, softcap, left, right = numbers[0], numbers[2], numbers[3], numbers[4]
    x, bend, away = logits(  # type: ignore - it does return
        scores, extra, slope, bias, mask, s, h, q, k, first_q, first_k, length_q, length_k,
        scale, softcap, BIAS, MASK, ALONG, SLOPES, SOFTCAP, UNIT, PRECISION, WHOLE,
    )  # fmt: skip
    if INSIDE and SPANS:
        if (block >= full_first) & (block < full_end):
            found = weights(x, False, SHIFT, ACTIVATION)
        else:
            found = weights(x, True, SHIFT, ACTIVATION)
    else:
        found = weights(x, False, SHIFT, ACTIVATION)
    if MASK == FLAGS:
        attended = load_term(mask, s, h, q, k, first_q, first_k, length_q, length_k, MASK, WHOLE)
        found = tl.where(attended != 0, found, 0.0)
    if not INSIDE and (LEFT or RIGHT):
        seen = in_window(q, k, first_q, first_k, length_k - length_q, left, right, LEFT, RIGHT)
        found = tl.where(seen, found, 0.0)
    return found, x, bend, away


@triton.jit
def steepness(weights, x, up, SHIFT: tl.constexpr, PRECISE: tl.constexpr):
    """w (1 - w), times ``up``, of weights that are 2^SHIFT w."""
    if PRECISE:
        # 1 - w is 2^-x w, of which the difference loses the digits where w is nearly 1.
        found = weights * activation.exp2_of_minus(tl.maximum(x, -126.0)) * weights
    elif SHIFT == 0:
        found = weights - weights * weights
    else:
        unit: tl.constexpr = 2.0**-SHIFT
        found = weights * (up * unit - weights * (up * (unit * unit)))
    return found


@triton.jit
def give_pairs(pairs, s, h, q, k, first_q, first_k, length_q, length_k, grad, ADDED: tl.constexpr):
    own = pairs[0] + s.to(tl.int64) * pairs[1] + h.to(tl.int64) * pairs[2]
    own += first_q.to(tl.int64) * pairs[3] + first_k
    exists = (q < length_q - first_q) & (k < length_k - first_k)
    if ADDED:
        tl.atomic_add(own + (q * pairs[3] + k), grad, mask=exists, sem="relaxed")
    else:
        tl.store(own + (q * pairs[3] + k), grad, mask=exists)


@triton.jit
def add_rows(
    pointer, stride, first, rows, index, tile,
    DIM: tl.constexpr, PADDED: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """Add a tile to what memory holds; where nothing has to be checked, four numbers at a time."""
    dim = tl.arange(0, PADDED)[None, :]
    there = pointer + first.to(tl.int64) * stride + (index[:, None] * stride + dim)
    if CHECK or DIM < PADDED:
        exists = (index[:, None] < rows - first) & (dim < DIM)
        tl.atomic_add(there, tile, mask=exists, sem="relaxed")
    else:
        tl.atomic_add(there, tile, sem="relaxed")
