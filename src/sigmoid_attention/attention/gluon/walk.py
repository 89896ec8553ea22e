# type: ignore - in a kernel, names mean what Gluon's compiler makes of them.
"""How a thread block walks through the list of work (``schedule.py``) and through an item's tiles.

Every warp group walks by itself, with these functions, so that none has to tell another.

A row of the list is (batch, head, block, first, inner, full, full_end, inner_end, end): a block of
rows, and the tiles that it visits, first <= tile < end. Between ``inner`` and ``inner_end`` they
need no mask, and of these, between ``full`` and ``full_end``, the full sigmoid. They are walked
class by class: masked, full, tail.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

COLUMNS = gl.constexpr(9)


@gluon.jit
def rounds(items):
    """How many items this thread block works through."""
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
def place(work, row):
    """Batch, head and block of a row of the list."""
    start = work + row * COLUMNS
    return gl.load(start), gl.load(start + 1), gl.load(start + 2)


@gluon.jit
def tiles(work, row):
    """The tiles of a row of the list."""
    start = work + row * COLUMNS + 3
    first, inner, full = gl.load(start), gl.load(start + 1), gl.load(start + 2)
    full_end, inner_end, end = gl.load(start + 3), gl.load(start + 4), gl.load(start + 5)
    return first, inner, full, full_end, inner_end, end


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
