"""Compiles a Triton or Gluon kernel for an absent GPU, and reads the compiler's output.

Triton's wheel bundles the assembler and its disassembler, so registers, spills and the instructions
of the inner loops are known on any machine. Their speed is not.

    compiled = cross_compile(kernel, {"out": "*fp32", "n": "i32"}, {"BLOCK": 128}, num_warps=4)
    assert compiled.spills == 0
    loop, = compiled.inner("HGMMA")
    assert loop.per_score(128 * 128, warps=4) < 8

Constants belong to ``constexprs`` alone. ``aligned`` names the arguments (pointers, strides) that
are multiples of 16; Triton detects these at a launch. The elements of a tuple argument are named by
position: the stride behind the pointer of the first argument is (0, 1).
"""

import functools
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HOPPER = 90

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", re.MULTILINE)
_GUARD = re.compile(r"^@!?U?P\w+\s+")
_TARGET = re.compile(r"\b0x([0-9a-f]+)\b")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")
_BRANCHES = ("BRA", "BRX", "JMP", "JMX", "BRXU", "JMXU")
_ENDS = ("EXIT", "RET", "KILL", "BPT")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction, e.g. ``@!P0 MUFU.EX2 R4, R7``."""

    address: int
    text: str

    @property
    def guarded(self) -> bool:
        return _GUARD.match(self.text) is not None

    @property
    def name(self) -> str:
        """With its modifiers: MUFU.EX2."""
        return _GUARD.sub("", self.text).split()[0]

    @property
    def opcode(self) -> str:
        """Without: MUFU."""
        return self.name.split(".")[0]


@dataclass(frozen=True)
class Code:
    """Instructions of a kernel or of one of its loops."""

    instructions: tuple[Instruction, ...] = field(repr=False)

    def count(self, name: str) -> int:
        """How many begin with ``name``: MUFU counts them all, MUFU.EX2 the exponentials."""
        parts = name.split(".")
        return sum(
            instruction.name.split(".")[: len(parts)] == parts for instruction in self.instructions
        )

    @property
    def mix(self) -> Counter[str]:
        """How often each instruction occurs, for a human's eyes."""
        return Counter(instruction.name for instruction in self.instructions)

    @property
    def spills(self) -> int:
        return self.count("LDL") + self.count("STL")

    def __len__(self) -> int:
        return len(self.instructions)

    def per_score(self, scores: int, warps: int, name: str | None = None) -> float:
        """Instructions that a thread issues for each score of a tile that ``warps`` share."""
        issued = len(self) if name is None else self.count(name)
        return issued * 32 * warps / scores


@dataclass(frozen=True)
class Compiled(Code):
    """A kernel as the GPU would run it.

    ``registers`` are those at the launch; warp groups that change theirs do so by USETMAXREG.
    ``columns`` of tensor memory, which only sm_100 has, are 512 at most.
    """

    registers: int
    stack: int
    shared: int
    columns: int
    num_warps: int
    ptx: str = field(repr=False)
    loops: tuple[Code, ...]

    def inner(self, name: str) -> tuple[Code, ...]:
        """Loops that hold ``name`` and no smaller such loop, in the order of their addresses.

        Loops that merely wait for a barrier hold nothing and so do not split others.
        """
        loops = [loop for loop in self.loops if loop.count(name)]
        sets = [set(loop.instructions) for loop in loops]
        return tuple(
            loop
            for loop, blocks in zip(loops, sets, strict=True)
            if not any(other < blocks for other in sets)
        )


def cross_compile(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    *,
    aligned: Iterable[str | tuple[int, ...]] = (),
    target: int = HOPPER,
    **options: Any,
) -> Compiled:
    """The kernel's machine code; ``options`` are Triton's (num_warps, num_stages, maxnreg).

    Triton keeps what it compiled on disk, this function what it read for the length of a process.
    """
    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    index = kernel.arg_names.index
    places = tuple((index(name),) if isinstance(name, str) else name for name in aligned)
    return _read(kernel, _Frozen(types), _Frozen(constexprs), places, target, _Frozen(options))


class _Frozen(dict):
    """A dictionary that a cache can look up: by what it prints, since layouts may not hash."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(repr(sorted(self.items())))


@functools.cache
def _read(
    kernel: Any, types: _Frozen, constexprs: _Frozen, places: tuple, target: int, options: _Frozen
) -> Compiled:
    source = ASTSource
    if kernel.is_gluon():
        # Gluon is an experiment of Triton's: only kernels written in it need it to be there.
        from triton.experimental.gluon._runtime import GluonASTSource as source
    attributes = {place: [["tt.divisibility", 16]] for place in places}
    compiled = triton.compile(
        source(kernel, dict(types), dict(constexprs), attributes),
        target=GPUTarget("cuda", target, 32),
        options=dict(options),
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _USAGE.search(_dump("-res-usage", cubin))
        instructions = _instructions(_dump("-sass", cubin))
    assert usage is not None
    registers, stack, _ = map(int, usage.groups())
    return Compiled(
        instructions,
        registers=registers,
        stack=stack,
        shared=compiled.metadata.shared,
        columns=compiled.metadata.tmem_size,
        num_warps=compiled.metadata.num_warps,
        ptx=compiled.asm["ptx"],
        loops=_loops(instructions),
    )


def _dump(what: str, cubin: Path) -> str:
    command = [triton.knobs.nvidia.cuobjdump.path, what, str(cubin)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _instructions(listing: str) -> tuple[Instruction, ...]:
    return tuple(Instruction(int(place, 16), text) for place, text in _LINE.findall(listing))


def _loops(instructions: tuple[Instruction, ...]) -> tuple[Code, ...]:
    """The natural loops: an edge back to a block that every way to it passes through.

    A mere jump backwards would not do, as the assembler moves rare paths behind the exit.
    """
    starts, follows = _graph(instructions)
    dominators = _dominators(follows)
    before: list[set[int]] = [set() for _ in follows]
    for block, after in enumerate(follows):
        for successor in after:
            before[successor].add(block)
    bodies: dict[int, set[int]] = {}
    for block, after in enumerate(follows):
        for head in after & dominators[block]:
            body = bodies.setdefault(head, {head})
            waiting = [block]
            while waiting:
                if (current := waiting.pop()) not in body:
                    body.add(current)
                    waiting += before[current]
    ends = [*starts[1:], len(instructions)]
    return tuple(
        Code(
            tuple(
                instruction
                for block in sorted(body)
                for instruction in instructions[starts[block] : ends[block]]
            )
        )
        for _, body in sorted(bodies.items())
    )


def _graph(instructions: tuple[Instruction, ...]) -> tuple[list[int], list[set[int]]]:
    """First instruction of each basic block, and the blocks that may follow it."""
    index = {instruction.address: place for place, instruction in enumerate(instructions)}
    jumps: dict[int, set[int]] = {}
    for place, instruction in enumerate(instructions):
        if instruction.opcode in _BRANCHES:
            goals = [int(address, 16) for address in _TARGET.findall(instruction.text)]
            jumps[place] = {index[goal] for goal in goals if goal in index}
    ends = [
        place
        for place, instruction in enumerate(instructions)
        if instruction.opcode in _BRANCHES + _ENDS
    ]
    cuts = {0} | {place + 1 for place in ends} | set().union(*jumps.values())
    starts = sorted(cut for cut in cuts if cut < len(instructions))
    number = {start: block for block, start in enumerate(starts)}
    follows: list[set[int]] = []
    for block, stop in enumerate([*starts[1:], len(instructions)]):
        last = instructions[stop - 1]
        after = {number[goal] for goal in jumps.get(stop - 1, ())}
        falls = last.guarded or last.opcode not in _BRANCHES + _ENDS
        if falls and block + 1 < len(starts):
            after.add(block + 1)
        follows.append(after)
    # A jump through a table, which separates warp groups, leads to the labels without other jumps.
    tables = [
        block
        for block, stop in enumerate([*starts[1:], len(instructions)])
        if instructions[stop - 1].opcode in ("BRX", "BRXU", "JMX", "JMXU")
    ]
    while tables and len(seen := _reachable(follows)) < len(follows):
        entry = min(set(range(len(follows))) - set(seen))
        for block in tables:
            follows[block].add(entry)
    return starts, follows


def _reachable(follows: list[set[int]]) -> dict[int, None]:
    """The blocks that some way from the entry leads to, in the order in which they are found."""
    seen: dict[int, None] = {0: None}
    stack = [0]
    while stack:
        for successor in follows[stack.pop()]:
            if successor not in seen:
                seen[successor] = None
                stack.append(successor)
    return seen


def _dominators(follows: list[set[int]]) -> list[set[int]]:
    """For each block those that every way from the entry to it passes; none if unreachable."""
    seen = _reachable(follows)
    before = {block: {other for other in seen if block in follows[other]} for block in seen}
    dominators = {block: set(seen) for block in seen}
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for block in list(seen)[1:]:
            common = set.intersection(*(dominators[other] for other in before[block])) | {block}
            if common != dominators[block]:
                dominators[block], changed = common, True
    return [dominators.get(block, set()) for block in range(len(follows))]
