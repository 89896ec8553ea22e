# type: ignore - in a kernel, names mean what Gluon's compiler makes of them.
"""The forward kernel: one warp fetches, two or three warp groups multiply in turns.

A thread block runs for the whole call and processes its part of a list (``schedule.py``). An item
is a block of queries of one head, of which every consumer has 64. All consumers visit the item's
tiles of keys in the same order, but at different times:

    producer                      consumer, tile t
    key t, value t -> shared      wait for key t and for the turn
                                  start   scores_t = query key_t
                                  start   out += weights_{t-1} value_{t-1}
                                  pass the turn on
                                  weights_t = sigmoid(scores_t), as soon as scores_t is there

While one consumer computes sigmoids, the products of another one, and its own last product, keep
the tensor cores busy. There is no maximum, no sum and no rescaling as in a softmax. The weights
stay in registers and are the next product's left operand.

There are three classes of tiles, with a loop for each: those on an edge of the window, which need a
mask; those that need the full sigmoid; those that the certificate proves to lie in its tail. An
item's first tile is computed before the loops, as no product precedes it.

Shape letters: Q queries of a consumer, K keys of a tile, D head dim.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from sigmoid_attention.attention.impl.experimental.gluon import activation, ring, walk
from sigmoid_attention.attention.impl.experimental.gluon.tile import (
    ROWS,
    attention_weights,
    product,
)
from sigmoid_attention.attention.impl.triton.activation import LOG2E

# Classes of tiles, in the order in which they are walked.
MASKED = gl.constexpr(0)
FULL = gl.constexpr(1)
TAIL = gl.constexpr(2)


@gluon.jit(do_not_specialize=walk.NUMBERS)
def forward(query, key, value, out, work, items, bias, slopes, scale, constant, left, right,
            queries, keys, heads, group, CONFIG: gl.constexpr):  # fmt: skip
    """Outputs of all items; CONFIG is a :class:`configs.Forward`.

    query, key, value, out: descriptors of (B, H, N, D), boxes of ROWS or CONFIG.block_k rows.
    work: (items, walk.COLUMNS), or None. bias, slopes: (B, H) fp32. group: heads of a key head.
    """
    rings = (
        ring.make(query, CONFIG.q_stages, CONFIG.consumers, CONFIG.consumers),
        ring.make(key, CONFIG.stages, 1, CONFIG.consumers),
        ring.make(value, CONFIG.stages, 1, CONFIG.consumers),
        ring.barriers(CONFIG.consumers, 1),
    )
    # Makes the initialised barriers visible to the copy engine.
    fence_async_shared()
    calls = (work, (items, queries, keys, heads, 1), (left, right))
    terms = (bias, slopes, scale, constant)
    # The registers of 512 threads are shared out; the producer's 128 threads need few.
    if CONFIG.consumers == 2:
        gl.warp_specialize(
            [
                (consume, (rings, out, calls, terms, CONFIG, 0)),
                (consume, (rings, out, calls, terms, CONFIG, 1)),
                (produce, (rings, query, key, value, calls, group, CONFIG)),
            ],
            [4, 1],
            [240, 24],
        )
    else:
        gl.warp_specialize(
            [
                (consume, (rings, out, calls, terms, CONFIG, 0)),
                (consume, (rings, out, calls, terms, CONFIG, 1)),
                (consume, (rings, out, calls, terms, CONFIG, 2)),
                (produce, (rings, query, key, value, calls, group, CONFIG)),
            ],
            [4, 4, 1],
            [160, 160, 32],
        )


@gluon.jit
def produce(rings, query, key, value, calls, group, CONFIG: gl.constexpr):
    """Fetch all tiles of the consumers, in the order in which they wait for them."""
    queries, keys, values, _ = rings
    rows: gl.constexpr = CONFIG.consumers * ROWS
    tick = 0
    for turn in range(walk.item_count(calls[1])):
        batch, head, block, visited = visit(calls, turn, CONFIG)
        ring.fill(
            queries, turn, CONFIG.q_stages, CONFIG.consumers, query, batch, head, block * rows
        )
        # At least one tile: an item without any ignores its weights.
        steps = gl.maximum(walk.tile_count(visited), 1)
        for step in range(steps):
            first_k = walk.tile_at(step, visited) * CONFIG.block_k
            now = tick + step
            ring.fill(keys, now, CONFIG.stages, 1, key, batch, head // group, first_k)
            ring.fill(values, now, CONFIG.stages, 1, value, batch, head // group, first_k)
        tick += steps


@gluon.jit
def visit(calls, turn, CONFIG: gl.constexpr):
    """Batch, head and block of a turn's item, and the tiles that it visits."""
    work, sizes, window = calls
    row = walk.item_at(turn)
    BLOCK: gl.constexpr = CONFIG.consumers * ROWS
    batch, head, block = walk.locate(work, row, sizes, BLOCK, True)
    visited = walk.visited_tiles(
        work, row, block, sizes, window, BLOCK, CONFIG.block_k, CONFIG.window
    )
    return batch, head, block, visited


@gluon.jit
def consume(rings, out, calls, terms, CONFIG: gl.constexpr, OWN: gl.constexpr):
    """Outputs of the OWN-th ROWS queries of each item."""
    OUT: gl.constexpr = product(CONFIG.head_dim)
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=OUT, k_width=2)
    queries, keys, values, turns = rings
    bias, slopes, scale, constant = terms
    sizes, window = calls[1], calls[2]
    tick = 0
    for turn in range(walk.item_count(sizes)):
        batch, head, block, visited = visit(calls, turn, CONFIG)
        masked, wide, steps = walk.class_ends(visited)
        steps = gl.maximum(steps, 1)
        first_q = (block * CONFIG.consumers + OWN) * ROWS
        extra = constant
        if CONFIG.bias:
            extra = gl.load(bias + batch * sizes[3] + head)
        slope = 0.0
        if CONFIG.slopes:
            slope = gl.load(slopes + batch * sizes[3] + head) * LOG2E
        extra = extra * LOG2E + CONFIG.shift
        position = first_q + sizes[2] - sizes[1]
        term = (scale * LOG2E, extra, slope, position, window[0], window[1])

        query_QD = ring.ready(queries, turn, CONFIG.q_stages, CONFIG.consumers, OWN)
        scores_QK = start_scores(query_QD, keys, turns, tick, CONFIG, OWN)
        pass_on(turns, CONFIG, OWN)
        scores_QK = warpgroup_mma_wait(0, [scores_QK])
        ring.release(keys, tick, CONFIG.stages)
        first_k = walk.tile_at(0, visited) * CONFIG.block_k
        scores_QK = attention_weights(scores_QK, first_k, term, CONFIG.window, False, CONFIG)
        weights_QK = gl.convert_layout(activation.rounded(scores_QK, out.dtype), WEIGHTS)
        out_QD = gl.full([ROWS, CONFIG.head_dim], 0.0, gl.float32, OUT)

        for CLASS in gl.static_range(3):
            if CLASS == MASKED:
                begin, end = 1, masked
            elif CLASS == FULL:
                begin, end = gl.maximum(masked, 1), wide
            else:
                begin, end = gl.maximum(wide, 1), steps
            if (CLASS != MASKED or CONFIG.window) and (CLASS != TAIL or CONFIG.tails):
                for step in range(begin, end):
                    now = tick + step
                    scores_QK = start_scores(query_QD, keys, turns, now, CONFIG, OWN)
                    value_KD = ring.ready(values, now - 1, CONFIG.stages, 1, 0)
                    out_QD = warpgroup_mma(weights_QK, value_KD, out_QD, is_async=True)
                    pass_on(turns, CONFIG, OWN)
                    scores_QK = warpgroup_mma_wait(1, [scores_QK])
                    ring.release(keys, now, CONFIG.stages)
                    first_k = walk.tile_at(step, visited) * CONFIG.block_k
                    scores_QK = attention_weights(
                        scores_QK, first_k, term, CLASS == MASKED, CLASS == TAIL, CONFIG
                    )
                    # The wait for the sum includes the new weights, so that they are rounded after
                    # it, into the registers of the old ones.
                    out_QD, scores_QK = warpgroup_mma_wait(0, [out_QD, scores_QK])
                    ring.release(values, now - 1, CONFIG.stages)
                    weights_QK = gl.convert_layout(
                        activation.rounded(scores_QK, out.dtype), WEIGHTS
                    )

        tick += steps
        value_KD = ring.ready(values, tick - 1, CONFIG.stages, 1, 0)
        out_QD = warpgroup_mma(weights_QK, value_KD, out_QD, is_async=True)
        out_QD = warpgroup_mma_wait(0, [out_QD])
        ring.release(values, tick - 1, CONFIG.stages)
        unit: gl.constexpr = 1.0 / (1 << CONFIG.shift)
        out_QD = gl.where(walk.tile_count(visited) > 0, out_QD * unit, 0.0)
        # The buffer of the queries is free now, and takes the outputs.
        query_QD.store(activation.rounded(out_QD, out.dtype))
        fence_async_shared()
        # Loaded again, so that it takes no registers during the loops.
        batch, head, block, visited = visit(calls, turn, CONFIG)
        first_q = (block * CONFIG.consumers + OWN) * ROWS
        box = query_QD.reshape([1, 1, ROWS, CONFIG.head_dim])
        tma.async_copy_shared_to_global(out, [batch, head, first_q, 0], box)
        tma.store_wait(0)
        ring.release(queries, turn, CONFIG.q_stages)


@gluon.jit
def start_scores(query_QD, keys, turns, tick, CONFIG: gl.constexpr, OWN: gl.constexpr):
    """Wait for a tile of keys and for this consumer's turn, and start its product."""
    key_KD = ring.ready(keys, tick, CONFIG.stages, 1, 0)
    # The first consumer starts: for it the turn before the first one counts as passed on.
    mbarrier.wait(turns.index(OWN), (tick & 1) ^ (OWN == 0))
    empty = gl.full([ROWS, CONFIG.block_k], 0.0, gl.float32, product(CONFIG.block_k))
    return warpgroup_mma(query_QD, key_KD.permute((1, 0)), empty, use_acc=False, is_async=True)


@gluon.jit
def pass_on(turns, CONFIG: gl.constexpr, OWN: gl.constexpr):
    mbarrier.arrive(turns.index((OWN + 1) % CONFIG.consumers), count=1)
