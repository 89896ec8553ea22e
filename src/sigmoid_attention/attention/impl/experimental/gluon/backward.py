# type: ignore - in a kernel, names mean what Gluon's compiler makes of them.
"""The backward kernel: one pass, five products for each tile; keys stay, and queries stream.

An item of the list is a block of 128 keys of one key head. Tiles of queries, of all heads that
share the keys, are loaded one after the other. Two consumers have 64 keys each. They compute their
tiles transposed, so that weights and their gradients are in registers, as left operands of the next
products:

    scores    = key query^T               from shared memory
    on_weight = value on_out^T            from shared memory
    on_value += weights on_out            weights = sigmoid(scores), from registers
    on_score  = weights (1 - weights) on_weight
    on_key   += on_score query            on_score from registers
    on_query  = on_score^T key            on_score of both consumers, from shared memory

The last product sums over both consumers' keys. So each consumer writes its ``on_score`` to shared
memory and computes its half of ``on_query``: half of the columns, or of the rows. If each waited
for the other in every tile, both would leave the tensor cores idle at the same time. So a tile's
``on_query`` is computed one tile later, and the consumers may be one tile apart. The copy engine
adds it in fp32 to the sums of other thread blocks.

An item's first tile has no previous tile. Its product is computed all the same, from stale shared
memory, and sent to rows past the last one, which the copy engine drops. So the loop needs no
branch, and takes one product more for each item.

A sigmoid needs no row sums, so nothing of the forward pass is read.

Shape letters: Q queries of a tile, K keys of a consumer, N keys of the block, D head dim.
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
    async_reduce,
    attention_weights,
    product,
)
from sigmoid_attention.attention.impl.triton.activation import LOG2E

CONSUMERS = gl.constexpr(2)
KEYS = gl.constexpr(128)  # CONSUMERS x ROWS
HALVES = gl.constexpr(2)  # tiles whose on_score is kept


@gluon.jit(do_not_specialize=walk.NUMBERS)
def backward(query, key, value, on_out, on_query, on_key, on_value, work, items, bias, slopes,
             scale, constant, left, right, queries, keys, heads, group,
             CONFIG: gl.constexpr):  # fmt: skip
    """Gradients of all items' keys and values, and their shares of the gradients of queries.

    query, on_out: descriptors of (B, H, Q, D), boxes of CONFIG.block_q rows. key: of (B, G, K, D),
    boxes of KEYS rows; value, on_key, on_value: likewise, boxes of ROWS rows. on_query: of
    (B, H, Q, D) in fp32, without the factor ``scale``, boxes of ROWS x 64. work: (items, group,
    walk.COLUMNS), or None. group: heads of a key head.
    """
    # The order matters: a buffer's address decides how many registers spill.
    key_ring = ring.make(key, 1, 1, CONSUMERS)
    value_ring = ring.make(value, 1, CONSUMERS, CONSUMERS)
    query_ring = ring.make(query, CONFIG.stages, 1, CONSUMERS)
    on_out_ring = ring.make(on_out, CONFIG.stages, 1, CONSUMERS)
    SCORES: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, CONFIG.block_q], key.dtype)
    scores = (
        gl.allocate_shared_memory(key.dtype, [HALVES, KEYS, CONFIG.block_q], SCORES),
        ring.barriers(HALVES, CONSUMERS),
        ring.barriers(HALVES, CONSUMERS),
    )
    staged = gl.allocate_shared_memory(gl.float32, [CONSUMERS, 1, 1, ROWS, 64], on_query.layout)
    rings = (key_ring, value_ring, query_ring, on_out_ring, scores, staged)
    # Makes the initialised barriers visible to the copy engine.
    fence_async_shared()
    outs = (on_query, on_key, on_value)
    # The window of a key is the mirror image of that of a query.
    calls = (work, (items, keys, queries, heads, group), (right, left))
    terms = (bias, slopes, scale, constant)
    gl.warp_specialize(
        [
            (consume, (rings, outs, calls, terms, CONFIG, 0)),
            (consume, (rings, outs, calls, terms, CONFIG, 1)),
            (produce, (rings, query, key, value, on_out, calls, CONFIG)),
        ],
        [4, 1],
        [240, 24],
    )


@gluon.jit
def locate_item(calls, turn):
    """Batch, first head and block of a turn's item."""
    work, sizes = calls[0], calls[1]
    return walk.locate(work, walk.item_at(turn) * sizes[4], sizes, KEYS, False)


@gluon.jit
def item_tiles(calls, turn, member, block, CONFIG: gl.constexpr):
    """The tiles of queries of one of an item's heads."""
    work, sizes, window = calls
    row = walk.item_at(turn) * sizes[4] + member
    return walk.visited_tiles(work, row, block, sizes, window, KEYS, CONFIG.block_q, CONFIG.window)


@gluon.jit
def produce(rings, query, key, value, on_out, calls, CONFIG: gl.constexpr):
    """Fetch an item's keys and values, and then its tiles of queries."""
    keys, values, queries, on_outs, _, _ = rings
    group = calls[1][4]
    tick = 0
    for turn in range(walk.item_count(calls[1])):
        batch, head, block = locate_item(calls, turn)
        ring.fill(keys, turn, 1, 1, key, batch, head // group, block * KEYS)
        ring.fill(values, turn, 1, CONSUMERS, value, batch, head // group, block * KEYS)
        for member in range(group):
            visited = item_tiles(calls, turn, member, block, CONFIG)
            steps = walk.tile_count(visited)
            for step in range(steps):
                row = walk.tile_at(step, visited) * CONFIG.block_q
                now = tick + step
                ring.fill(queries, now, CONFIG.stages, 1, query, batch, head + member, row)
                ring.fill(on_outs, now, CONFIG.stages, 1, on_out, batch, head + member, row)
            tick += steps


@gluon.jit
def consume(rings, outs, calls, terms, CONFIG: gl.constexpr, OWN: gl.constexpr):
    """Gradients of the OWN-th ROWS keys of each item, and OWN-th halves of the queries'."""
    SUM: gl.constexpr = product(CONFIG.head_dim)
    LEFT: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUM, k_width=2)
    keys, values, queries, on_outs, scores, staged = rings
    on_query, on_key, on_value = outs
    bias, slopes, scale, constant = terms
    sizes, window = calls[1], calls[2]
    keys_there, queries_there, heads, group = sizes[1], sizes[2], sizes[3], sizes[4]
    tick = 0
    for turn in range(walk.item_count(calls[1])):
        batch, head, block = locate_item(calls, turn)
        first_k = block * KEYS + OWN * ROWS
        key_ND = ring.ready(keys, turn, 1, 1, 0)
        key_KD = key_ND.slice(OWN * ROWS, ROWS, 0)
        value_KD = ring.ready(values, turn, 1, CONSUMERS, OWN)
        on_key_KD = gl.full([ROWS, CONFIG.head_dim], 0.0, gl.float32, SUM)
        on_value_KD = gl.full([ROWS, CONFIG.head_dim], 0.0, gl.float32, SUM)
        previous_head, previous_row = head, queries_there
        # Each item counts one stale tile before its own ones.
        stale = (tick + turn) % HALVES
        mbarrier.wait(scores[2].index(stale), ((tick + turn) // HALVES & 1) ^ 1)
        mbarrier.arrive(scores[1].index(stale), count=1)
        for member in range(group):
            masked, wide, steps = walk.class_ends(item_tiles(calls, turn, member, block, CONFIG))
            extra = constant
            if CONFIG.bias:
                extra = gl.load(bias + batch * heads + head + member)
            slope = 0.0
            if CONFIG.slopes:
                slope = gl.load(slopes + batch * heads + head + member) * LOG2E
            position = first_k + queries_there - keys_there
            term = (scale * LOG2E, extra * LOG2E, slope, position, window[0], window[1])
            for step in range(steps):
                # Loaded in every step, so that it takes no registers between steps.
                visited = item_tiles(calls, turn, member, block, CONFIG)
                first_q = walk.tile_at(step, visited) * CONFIG.block_q
                now = tick + step
                before = now + turn
                query_QD = ring.ready(queries, now, CONFIG.stages, 1, 0)
                on_out_QD = ring.ready(on_outs, now, CONFIG.stages, 1, 0)
                empty = gl.full([ROWS, CONFIG.block_q], 0.0, gl.float32, product(CONFIG.block_q))
                weights_KQ = warpgroup_mma(
                    key_KD, query_QD.permute((1, 0)), empty, use_acc=False, is_async=True
                )
                on_score_KQ = warpgroup_mma(
                    value_KD, on_out_QD.permute((1, 0)), empty, use_acc=False, is_async=True
                )
                weights_KQ = warpgroup_mma_wait(1, [weights_KQ])
                # One loop for all classes: three would need three times the address registers.
                if CONFIG.window and step < masked:
                    weights_KQ = attention_weights(weights_KQ, first_q, term, True, False, CONFIG)
                elif CONFIG.tails and step >= wide:
                    weights_KQ = attention_weights(weights_KQ, first_q, term, False, True, CONFIG)
                else:
                    weights_KQ = attention_weights(weights_KQ, first_q, term, False, False, CONFIG)
                on_score_KQ = warpgroup_mma_wait(0, [on_score_KQ])
                on_score_KQ = (weights_KQ - weights_KQ * weights_KQ) * on_score_KQ
                weights_KQ = activation.rounded(weights_KQ, on_key.dtype)
                on_score_KQ = activation.rounded(on_score_KQ, on_key.dtype)
                on_value_KD = warpgroup_mma(
                    gl.convert_layout(weights_KQ, LEFT), on_out_QD, on_value_KD,
                    is_async=True,
                )  # fmt: skip
                on_query_QD = start_query_product(scores, key_ND, before, CONFIG, OWN)
                publish_score(scores, before + 1, on_score_KQ, OWN)
                on_key_KD = warpgroup_mma(
                    gl.convert_layout(on_score_KQ, LEFT), query_QD, on_key_KD,
                    is_async=True,
                )  # fmt: skip
                on_query_QD, on_value_KD = warpgroup_mma_wait(1, [on_query_QD, on_value_KD])
                ring.release(on_outs, now, CONFIG.stages)
                mbarrier.arrive(scores[2].index(before % HALVES), count=1)
                add_query_gradient(
                    on_query_QD, staged, on_query, batch, previous_head, previous_row, CONFIG, OWN
                )
                on_key_KD = warpgroup_mma_wait(0, [on_key_KD])
                ring.release(queries, now, CONFIG.stages)
                previous_head, previous_row = head + member, first_q
            tick += steps
        on_query_QD = start_query_product(scores, key_ND, tick + turn, CONFIG, OWN)
        on_query_QD = warpgroup_mma_wait(0, [on_query_QD])
        mbarrier.arrive(scores[2].index((tick + turn) % HALVES), count=1)
        ring.release(keys, turn, 1)
        add_query_gradient(
            on_query_QD, staged, on_query, batch, previous_head, previous_row, CONFIG, OWN
        )
        batch, head, block = locate_item(calls, turn)
        first_k = block * KEYS + OWN * ROWS
        # The buffer of this consumer's values is free now, and takes the results.
        store_key_gradient(on_value_KD, value_KD, on_value, batch, head // group, first_k, CONFIG)
        store_key_gradient(
            on_key_KD * scale, value_KD, on_key, batch, head // group, first_k, CONFIG
        )
        ring.release(values, turn, 1)
    tma.store_wait(0)


@gluon.jit
def publish_score(scores, number, on_score_KQ, OWN: gl.constexpr):
    """Write a tile's ``on_score`` to shared memory for both consumers."""
    slot = number % HALVES
    mbarrier.wait(scores[2].index(slot), (number // HALVES & 1) ^ 1)
    scores[0].index(slot).slice(OWN * ROWS, ROWS, 0).store(on_score_KQ)
    fence_async_shared()
    mbarrier.arrive(scores[1].index(slot), count=1)


@gluon.jit
def start_query_product(scores, key_ND, number, CONFIG: gl.constexpr, OWN: gl.constexpr):
    """Start this consumer's half of a tile's ``on_query``, once both have written ``on_score``."""
    slot = number % HALVES
    mbarrier.wait(scores[1].index(slot), number // HALVES & 1)
    on_score_QN = scores[0].index(slot).permute((1, 0))
    empty = gl.full([ROWS, 64], 0.0, gl.float32, product(64))
    if CONFIG.block_q == 64:
        half_ND = key_ND.slice(OWN * 64, 64, 1)
        on_query_QD = warpgroup_mma(on_score_QN, half_ND, empty, use_acc=False, is_async=True)
    else:
        half_QN = on_score_QN.slice(OWN * ROWS, ROWS, 0)
        on_query_QD = warpgroup_mma(half_QN, key_ND, empty, use_acc=False, is_async=True)
    return on_query_QD


@gluon.jit
def add_query_gradient(
    on_query_QD, staged, on_query, batch, head, row, CONFIG: gl.constexpr, OWN: gl.constexpr
):
    """Add this consumer's half of a tile's ``on_query`` to global memory."""
    tma.store_wait(0)
    box = staged.index(OWN)
    box.reshape([ROWS, 64]).store(on_query_QD)
    fence_async_shared()
    if CONFIG.block_q == 64:
        async_reduce(on_query, [batch, head, row, OWN * 64], box)
    else:
        async_reduce(on_query, [batch, head, row + OWN * ROWS, 0], box)


@gluon.jit
def store_key_gradient(sum_KD, buffer_KD, out, batch, head, row, CONFIG: gl.constexpr):
    """Write a consumer's sums of keys, by way of a buffer in shared memory."""
    tma.store_wait(0)
    buffer_KD.store(activation.rounded(sum_KD, out.dtype))
    fence_async_shared()
    box = buffer_KD.reshape([1, 1, ROWS, CONFIG.head_dim])
    tma.async_copy_shared_to_global(out, [batch, head, row, 0], box)
    tma.store_wait(0)
