"""Adding a tile in shared memory to one in global memory, which Gluon has no function for."""

from typing import Any

from triton._C.libtriton import ir
from triton.experimental.gluon.language._core import builtin


@builtin
def async_reduce(descriptor, place, tile, _semantic: Any = None):
    """Start to add ``tile`` to the box at ``place``; ``tma.store_wait`` waits until it is read.

    The copy engine adds in the second-level cache, in fp32 and in no order.
    """
    where = _semantic._convert_to_ir_values(place, require_i64=False)
    kind = ir.DESCRIPTOR_REDUCE_KIND.ADD
    _semantic.builder.create_async_tma_reduce(kind, descriptor.handle, where, tile.handle)
