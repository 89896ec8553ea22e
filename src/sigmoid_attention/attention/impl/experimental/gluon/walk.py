# type: ignore - in a kernel, names mean what Gluon's compiler makes of them.
"""The order in which a thread block processes the items of a call and the tiles of an item.

Every warp group calls these functions on its own, so no warp group has to inform another.

An item is a block of rows of one head, or of all heads that share their keys. A tile range is the
tuple (first, inner, full, full_end, inner_end, end). The item visits the tiles from ``first`` to
``end``. Those between ``inner`` and ``inner_end`` need no mask; of these, those between ``full``
and ``full_end`` need the full sigmoid. Tiles are visited by class: masked, full, tail.

A planned call has a list of work (``schedule.py``), whose rows are (batch, head, block) and a tile
range. Without a plan both follow from sizes. Then, too, a group of heads is processed at a time, so
that not all heads' keys pass through the cache together, and of these heads the blocks that see
most under causality are processed first: the last queries, or the first keys.

``sizes`` is (items, rows, columns, heads, group): how many there are; of heads how many in all and
how many of an item. ``window`` is (before, after): a row sees this many columns to the left and to
the right of its own position; the last row's position is the last column.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

COLUMNS = gl.constexpr(9)
# The numbers that both kernels take beside tensors. They are not specialised.
NUMBERS = ("items", "left", "right", "queries", "keys", "heads", "group")
# More than the distance of any two positions.
UNLIMITED = gl.constexpr(2**29)
# Items that are processed together, at least; fewer would occupy the thread blocks unevenly.
TOGETHER = gl.constexpr(2048)


@gluon.jit
def item_count(sizes):
    """The number of items of this thread block."""
    items = sizes[0]
    blocks = gl.num_programs(0)
    whole = items // blocks
    rest = items - whole * blocks
    return whole + gl.where(_position(whole, blocks) < rest, 1, 0)


@gluon.jit
def item_at(turn):
    """The item of a turn. The order alternates, as the list starts with the longest items."""
    blocks = gl.num_programs(0)
    return turn * blocks + _position(turn, blocks)


@gluon.jit
def _position(turn, blocks):
    block = gl.program_id(0)
    return gl.where(turn % 2 == 0, block, blocks - 1 - block)


@gluon.jit
def locate(work, row, sizes, ROWS: gl.constexpr, LAST_FIRST: gl.constexpr):
    """Batch, head and block of a row of the list; the first head of an item of several heads.

    ROWS is the number of rows of a block.
    """
    if work is None:
        items, rows, _, heads, group = sizes
        blocks = (rows + ROWS - 1) // ROWS
        together = (TOGETHER + blocks - 1) // blocks
        number = row // group
        heads_before = number // (together * blocks) * together
        here = gl.minimum(together, items // blocks - heads_before)
        nth = number - heads_before * blocks
        pair = heads_before + nth % here
        block = nth // here
        if LAST_FIRST:
            block = blocks - 1 - block
        batch = pair * group // heads
        location = batch, pair * group - batch * heads, block
    else:
        start = work + row * COLUMNS
        location = gl.load(start), gl.load(start + 1), gl.load(start + 2)
    return location


@gluon.jit
def visited_tiles(
    work, row, block, sizes, window,
    ROWS: gl.constexpr, TILE: gl.constexpr, WINDOW: gl.constexpr,
):  # fmt: skip
    """The tile range of a row of the list, in tiles of TILE columns; all tiles without WINDOW."""
    if work is not None:
        start = work + row * COLUMNS + 3
        first, inner, full = gl.load(start), gl.load(start + 1), gl.load(start + 2)
        full_end, inner_end, end = gl.load(start + 3), gl.load(start + 4), gl.load(start + 5)
        visited = first, inner, full, full_end, inner_end, end
    else:
        _, rows, columns, _, _ = sizes
        every = (columns + TILE - 1) // TILE
        if WINDOW:
            before, after = window
            position = block * ROWS + columns - rows
            last = gl.minimum(block * ROWS + ROWS, rows) - 1 + columns - rows
            high = gl.minimum(gl.maximum(last + after + 1, 0), columns)
            end = (high + TILE - 1) // TILE
            first = gl.minimum(gl.maximum(position - before, 0) // TILE, end)
            inner = (gl.maximum(last - before, 0) + TILE - 1) // TILE
            inner = gl.minimum(gl.maximum(inner, first), end)
            edge = gl.maximum(position + after + 1, 0)
            inner_end = gl.where(edge >= columns, every, edge // TILE)
            inner_end = gl.minimum(gl.maximum(inner_end, inner), end)
            visited = first, inner, inner, inner_end, inner_end, end
        else:
            visited = 0, 0, 0, every, every, every
    return visited


@gluon.jit
def tile_count(visited):
    """The number of tiles of a tile range."""
    return visited[5] - visited[0]


@gluon.jit
def class_ends(visited):
    """The steps behind the last masked tile, behind the last full one, and behind the last one."""
    first, inner, full, full_end, inner_end, end = visited
    masked = inner - first + end - inner_end
    return masked, masked + full_end - full, end - first


@gluon.jit
def tile_at(step, visited):
    """The tile of a step."""
    first, inner, full, full_end, inner_end, _ = visited
    masked, wide, _ = class_ends(visited)
    edge = first + step + gl.where(step < inner - first, 0, inner_end - inner)
    tail = inner + step - wide
    tail += gl.where(tail < full, 0, full_end - full)
    return gl.where(step < masked, edge, gl.where(step < wide, full + step - masked, tail))
