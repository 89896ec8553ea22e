# type: ignore - in a kernel, names mean what Gluon's compiler makes of them.
"""Rings of buffers in shared memory: one warp group fills them, and others read them.

A ring is (buffers, full, free). Tile n uses slot n mod STAGES. Both barriers of a slot complete one
phase for every tile. A reader of tile n waits until phase n // STAGES of ``full`` is complete; the
writer waits for the phase of ``free`` before that. A barrier has two phases, so a wait names the
parity of its phase. The phase before the first one counts as complete, so that an empty ring needs
no release.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma


@gluon.jit
def barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """Barriers that complete a phase when ARRIVALS warp groups, or one copy, have arrived."""
    made = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for each in gl.static_range(COUNT):
        mbarrier.init(made.index(each), count=ARRIVALS)
    return made


@gluon.jit
def make(descriptor, STAGES: gl.constexpr, PARTS: gl.constexpr, READERS: gl.constexpr):
    """A ring of STAGES tiles, each of PARTS boxes of the descriptor, that READERS groups empty."""
    # Gluon has no starred expressions.
    shape: gl.constexpr = [STAGES * PARTS] + descriptor.block_type.shape  # noqa: RUF005
    buffers = gl.allocate_shared_memory(descriptor.dtype, shape, descriptor.layout)
    return buffers, barriers(STAGES, 1), barriers(STAGES, READERS)


@gluon.jit
def fill(ring, tick, STAGES: gl.constexpr, PARTS: gl.constexpr, descriptor, batch, head, row):
    """Copy the tile with number ``tick``, whose first row is ``row``, once its slot is free."""
    slot = tick % STAGES
    full = ring[1].index(slot)
    rows: gl.constexpr = descriptor.block_type.shape[2]
    mbarrier.wait(ring[2].index(slot), (tick // STAGES & 1) ^ 1)
    mbarrier.expect(full, PARTS * descriptor.block_type.nbytes)
    for part in gl.static_range(PARTS):
        tma.async_copy_global_to_shared(
            descriptor,
            [batch, head, row + part * rows, 0],
            full,
            ring[0].index(slot * PARTS + part),
        )


@gluon.jit
def ready(ring, tick, STAGES: gl.constexpr, PARTS: gl.constexpr, PART: gl.constexpr):
    """The tile with number ``tick``, or one of its boxes, as a matrix, once it has arrived."""
    slot = tick % STAGES
    mbarrier.wait(ring[1].index(slot), tick // STAGES & 1)
    box = ring[0].index(slot * PARTS + PART)
    return box.reshape([box.shape[2], box.shape[3]])


@gluon.jit
def release(ring, tick, STAGES: gl.constexpr):
    """Free the slot of the tile with number ``tick``, which this warp group reads no more."""
    mbarrier.arrive(ring[2].index(tick % STAGES), count=1)
