# type: ignore - in a kernel, names mean what Gluon's compiler makes of them.
"""A warp group's tile: its layout in registers, its weights, and its addition to global memory.

Shape letters: R rows of a tile, C its columns; queries by keys, or in the backward pass keys by
queries.
"""

from typing import Any

from triton._C.libtriton import ir
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import builtin

from sigmoid_attention.attention.impl.experimental.gluon import activation

ROWS = gl.constexpr(64)  # of a warp group's product


@gluon.constexpr_function
def product(columns):
    """The layout in which a warp group holds a product of ROWS rows."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])


@builtin
def async_reduce(descriptor, place, tile, _semantic: Any = None):
    """Start to add a tile in shared memory to the box at ``place`` in global memory.

    Gluon has no function for that. The copy engine adds in the second-level cache, in fp32 and in
    no fixed order; ``tma.store_wait`` waits until the tile is read.
    """
    where = _semantic._convert_to_ir_values(place, require_i64=False)
    kind = ir.DESCRIPTOR_REDUCE_KIND.ADD
    _semantic.builder.create_async_tma_reduce(kind, descriptor.handle, where, tile.handle)


@gluon.jit
def attention_weights(
    scores_RC, first, term, MASK: gl.constexpr, TAILED: gl.constexpr, CONFIG: gl.constexpr
):
    """2^shift sigmoid(scale scores + extra - slope |r - c|), and 0 outside of the window.

    ``term`` is (scale, extra, slope, position, before, after), the first three times log2(e) and
    ``extra`` with the shift in it. The position of a row is ``position`` plus its number, that of a
    column ``first`` plus its number. A row sees ``before`` columns to its left and ``after`` to its
    right.
    """
    scale, extra, slope, position, before, after = term
    if CONFIG.slopes or MASK:
        LAYOUT: gl.constexpr = scores_RC.type.layout
        row = gl.arange(0, scores_RC.shape[0], gl.SliceLayout(1, LAYOUT)) + (position - first)
        column = gl.arange(0, scores_RC.shape[1], gl.SliceLayout(0, LAYOUT))
        # Two bits of a column depend on the thread. The compiler knows the others, so that they
        # take no registers.
        near = row[:, None] - (column & 6)[None, :]
        rest = (column & ~6)[None, :]
    if CONFIG.slopes:
        away = near.to(gl.float32) - rest.to(gl.float32)
        x = scores_RC * scale + (extra - gl.abs(away) * slope)
    else:
        x = scores_RC * scale + extra
    if MASK:
        visible = (rest >= near - before) & (rest <= near + after)
        x = gl.where(visible, x, -float("inf"))
    return activation.weights(x, MASK, TAILED, CONFIG.shift)
