"""Rates of the instructions that a sigmoid needs, measured in loops of one instruction.

A thread works on several independent chains of numbers, so that only the rate of the instruction
limits it. Rates are relative to that of `fma.rn.f32`, of which a multiprocessor executes 128 a
clock, so that the clock frequency need not be known.
"""

from typing import Any

import triton
import triton.language as tl

# PTX, and the results of one instruction: two if it takes a pair of half-precision numbers.
INSTRUCTIONS = {
    "fma.rn.f32": 1,
    "tanh.approx.f32": 1,
    "ex2.approx.ftz.f32": 1,
    "rcp.approx.ftz.f32": 1,
    "tanh.approx.bf16x2": 2,
    "tanh.approx.f16x2": 2,
    "ex2.approx.ftz.bf16x2": 2,
    "ex2.approx.f16x2": 2,
}
FMA = "fma.rn.f32"
FMA_A_CLOCK = 128
WARPS, NUMBERS_A_THREAD, UNROLLED, STEPS, PROGRAMS = 32, 4, 16, 256, 2
SIZE = 32 * WARPS * NUMBERS_A_THREAD
# The results of one launch, for each multiprocessor.
REPETITIONS = SIZE * UNROLLED * STEPS * PROGRAMS


@triton.jit
def chain(
    out, STEPS: tl.constexpr, UNROLLED: tl.constexpr, SIZE: tl.constexpr,
    ASM: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """x = f(f(f(...))) for SIZE numbers; of pairs, for as many of two numbers."""
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    x = place.to(tl.float32) * 1e-6
    if PAIRS:
        x = place.to(tl.int32)
    for _ in tl.range(STEPS, loop_unroll_factor=1):
        for _ in tl.static_range(UNROLLED):
            if PAIRS:
                x = tl.inline_asm_elementwise(ASM, "=r,r", [x], tl.int32, is_pure=True, pack=1)
            else:
                x = tl.inline_asm_elementwise(ASM, "=f,f", [x], tl.float32, is_pure=True, pack=1)
    tl.store(out + place, x.to(tl.float32))


@triton.jit
def hardware_tanh(x, out, size, BLOCK: tl.constexpr):
    """tanh.approx.f32 of every number."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    given = tl.load(x + place, mask=place < size)
    found = tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [given], tl.float32, is_pure=True, pack=1
    )
    tl.store(out + place, found, mask=place < size)


def asm(instruction: str) -> str:
    """The instruction as inline assembly of one result and one operand.

    Example:
        >>> asm("ex2.approx.ftz.f32"), asm("fma.rn.f32")
        ('ex2.approx.ftz.f32 $0, $1;', 'fma.rn.f32 $0, $1, $1, $1;')
    """
    if instruction.startswith("rcp"):
        # Two of them in a row would be nothing; an addition in between costs an eighth of one.
        return "{ .reg .f32 r; rcp.approx.ftz.f32 r, $1; add.f32 $0, r, 0f3F800000; }"
    operands = "$1, $1, $1" if instruction == FMA else "$1"
    return f"{instruction} $0, {operands};"


def launch_chain(out: Any, instruction: str, multiprocessors: int) -> None:
    """Queue one launch: REPETITIONS instructions on each multiprocessor."""
    kernel: Any = chain
    kernel[(PROGRAMS * multiprocessors,)](
        out, STEPS=STEPS, UNROLLED=UNROLLED, SIZE=SIZE, ASM=asm(instruction),
        PAIRS=INSTRUCTIONS[instruction] == 2, num_warps=WARPS,
    )  # fmt: skip
