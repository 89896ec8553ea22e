# type: ignore - in a kernel, names mean what Gluon's compiler makes of them.
"""How a thread block walks through the items of a call, and through an item's tiles.

Every warp group walks by itself, with these functions, so that none has to tell another.

An item is a block of rows of one head, or of as many heads as share their keys. The tiles that it
visits are (first, inner, full, full_end, inner_end, end): first <= tile < end, those between
``inner`` and ``inner_end`` need no mask, and of these, those between ``full`` and ``full_end`` the
full sigmoid. They are walked class by class: masked, full, tail.

What a plan has left is in a list of work (``schedule.py``), whose rows are (batch, head, block) and
these six. Without a plan there is no list: both follow from sizes. Then, too, some heads are worked
through together, so that not all heads' keys pass through the cache at the same time, and of these
heads those blocks come first that see most under causality: of queries the last, of keys the first.

``sizes`` is (items, rows, columns, heads, group): how many there are, and of heads how many in all
and how many of an item. ``window`` is (before, after): a row sees columns up to so many to the left
and to the right of its own place; the last row's is the last column.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

COLUMNS = gl.constexpr(9)
# What both kernels are called with beside tensors: code that is compiled once serves any of these.
NUMBERS = ("items", "left", "right", "queries", "keys", "heads", "group")
# As far as no two positions are apart.
UNLIMITED = gl.constexpr(2**29)
# Items that are worked through together, or more; with fewer they would not come out even.
TOGETHER = gl.constexpr(2048)


@gluon.jit
def rounds(sizes):
    """How many items this thread block works through."""
    items = sizes[0]
    blocks = gl.num_programs(0)
    whole = items // blocks
    rest = items - whole * blocks
    return whole + gl.where(_place(whole, blocks) < rest, 1, 0)


@gluon.jit
def item(turn):
    """The item of a turn: dealt out to and fro, as the list begins with the longest."""
    blocks = gl.num_programs(0)
    return turn * blocks + _place(turn, blocks)


@gluon.jit
def _place(turn, blocks):
    block = gl.program_id(0)
    return gl.where(turn % 2 == 0, block, blocks - 1 - block)


@gluon.jit
def place(work, row, sizes, ROWS: gl.constexpr, LAST_FIRST: gl.constexpr):
    """Batch, head and block of a row of the list; of an item of several heads, the first of them.

    ROWS are those of a block.
    """
    if work is None:
        items, rows, _, heads, group = sizes
        blocks = (rows + ROWS - 1) // ROWS
        together = (TOGETHER + blocks - 1) // blocks
        number = row // group
        before = number // (together * blocks) * together
        here = gl.minimum(together, items // blocks - before)
        nth = number - before * blocks
        pair = before + nth % here
        block = nth // here
        if LAST_FIRST:
            block = blocks - 1 - block
        batch = pair * group // heads
        found = batch, pair * group - batch * heads, block
    else:
        start = work + row * COLUMNS
        found = gl.load(start), gl.load(start + 1), gl.load(start + 2)
    return found


@gluon.jit
def tiles(
    work, row, block, sizes, window,
    ROWS: gl.constexpr, TILE: gl.constexpr, WINDOW: gl.constexpr,
):  # fmt: skip
    """The tiles of a row of the list, of TILE columns each; without WINDOW every one."""
    if work is not None:
        start = work + row * COLUMNS + 3
        first, inner, full = gl.load(start), gl.load(start + 1), gl.load(start + 2)
        full_end, inner_end, end = gl.load(start + 3), gl.load(start + 4), gl.load(start + 5)
        found = first, inner, full, full_end, inner_end, end
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
            found = first, inner, inner, inner_end, inner_end, end
        else:
            found = 0, 0, 0, every, every, every
    return found


@gluon.jit
def count(seen):
    return seen[5] - seen[0]


@gluon.jit
def parts(seen):
    """The step behind the last masked tile, behind the last full one, and behind the last."""
    first, inner, full, full_end, inner_end, end = seen
    masked = inner - first + end - inner_end
    return masked, masked + full_end - full, end - first


@gluon.jit
def tile(step, seen):
    """The tile that is walked as number ``step``."""
    first, inner, full, full_end, inner_end, _ = seen
    masked, wide, _ = parts(seen)
    edge = first + step + gl.where(step < inner - first, 0, inner_end - inner)
    tail = inner + step - wide
    tail += gl.where(tail < full, 0, full_end - full)
    return gl.where(step < masked, edge, gl.where(step < wide, full + step - masked, tail))
