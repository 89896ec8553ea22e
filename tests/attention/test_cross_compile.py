"""The reader of the cross-compiler's output, on kernels whose machine code is known."""

import triton
import triton.language as tl

from tests.support.attention.cross_compile import cross_compile


@triton.jit
def exponentials(source, target, steps, SIZE: tl.constexpr, EACH: tl.constexpr):
    place = tl.arange(0, SIZE)
    for step in tl.range(0, steps, loop_unroll_factor=1):
        value = tl.load(source + step * SIZE + place)
        for _ in tl.static_range(EACH):
            value = tl.exp2(value)
        tl.store(target + step * SIZE + place, value)
        tl.debug_barrier()  # keeps the compiler from unrolling the loop


@triton.jit
def products(source, target, steps, SIZE: tl.constexpr):
    rows = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for step in range(steps):
        tile = tl.load(source + step * SIZE * SIZE + rows)
        total = tl.dot(tile, tile, total)
    tl.store(target + rows, total)


COPY = {"source": "*fp32", "target": "*fp32", "steps": "i32"}


def test_loops_instructions_are_counted_and_set_against_the_scores():
    constants = {"SIZE": 512, "EACH": 3}
    compiled = cross_compile(exponentials, COPY, constants, num_warps=4)
    (loop,) = compiled.inner("MUFU.EX2")
    assert loop.count("MUFU.EX2") == loop.count("MUFU") == 512 * 3 // 128
    assert loop.per_score(512, 4, "MUFU") == 3
    assert loop.per_score(512, 4) == len(loop) / 4
    assert loop.count("MUFU.RCP") == 0
    assert loop.count("MUF") == 0
    assert len(loop) < len(compiled)


def test_tight_registers_spill_to_the_stack():
    source = {"source": "*fp16", "target": "*fp32", "steps": "i32"}
    loose = cross_compile(products, source, {"SIZE": 128}, num_warps=8)
    tight = cross_compile(products, source, {"SIZE": 128}, num_warps=8, maxnreg=104)
    assert loose.spills == loose.stack == 0
    assert tight.spills > 0 and tight.stack > 0
    assert tight.registers <= 104 < loose.registers


def test_products_are_warp_groups_on_hopper_and_warps_before():
    source = {"source": "*fp16", "target": "*fp32", "steps": "i32"}
    hopper = cross_compile(products, source, {"SIZE": 64}, num_warps=4)
    ampere = cross_compile(products, source, {"SIZE": 64}, num_warps=4, target=80)
    assert [loop.count("HGMMA") for loop in hopper.inner("HGMMA")] == [4]
    assert hopper.count("HMMA") == 0
    assert ampere.count("HGMMA") == 0
    assert [loop.count("HMMA") for loop in ampere.inner("HMMA")] == [
        2 * 64 * 64 * 64 // (16 * 8 * 16) // 8
    ]
    assert hopper.shared >= 64 * 64 * 2


def test_alignment_widens_loads():
    constants = {"SIZE": 512, "EACH": 1}
    plain = cross_compile(exponentials, COPY, constants, num_warps=4)
    wide = cross_compile(exponentials, COPY, constants, num_warps=4, aligned=("source", "target"))
    assert plain.count("LDG.E.128") == 0 < wide.count("LDG.E.128")
