"""Which cases are measured with which peers on one kind of machine."""

from dataclasses import dataclass, replace
from itertools import product
from typing import Self

import torch

from benchmarks.operations import MASKS, Case
from benchmarks.timing import Budget, Stopwatch, cpu_stopwatch

TRAINED = ("forward", "forward+backward")
LENGTHS = (1024, 2048, 4096, 8192)
HALVES = ("fp32", "bf16")
ALL_PEERS = ("sdpa", "flex", "eager-softmax", "eager-sigmoid", "tiled", "ours")


USUAL = Budget()
GLANCE = Budget(seconds=0.1, least=2, least_short=3, most=3)


@dataclass(frozen=True)
class Grid:
    """Every combination of its axes, each measured with the same peers.

    A `long` grid takes minutes for each case and is measured only with --long.
    """

    operations: tuple[str, ...]
    lengths: tuple[int, ...]
    peers: tuple[str, ...]
    dims: tuple[int, ...] = (64,)
    dtypes: tuple[str, ...] = HALVES
    masks: tuple[str, ...] = ("full",)
    heads: int = 8
    budget: Budget = USUAL
    long: bool = False
    quick_length: int = 128

    def quick(self) -> Self:
        """The same operations and peers at one small shape, which takes seconds."""
        return replace(
            self,
            lengths=(self.quick_length,),
            dims=self.dims[:1],
            masks=self.masks[-1:],
            budget=GLANCE,
        )

    def cases(self) -> list[Case]:
        """The combinations; the length varies fastest."""
        axes = product(self.operations, self.dtypes, self.masks, self.dims, self.lengths)
        return [
            Case(operation, dtype, length, dim, mask, self.heads)
            for operation, dtype, mask, dim, length in axes
        ]


@dataclass(frozen=True)
class Suite:
    """The grids of one kind of machine, and its stopwatch."""

    device: torch.device
    stopwatch: Stopwatch
    grids: tuple[Grid, ...]


CPU = Suite(
    torch.device("cpu"),
    cpu_stopwatch(),
    (
        Grid(("gemm",), (1024,), ("mm", "onednn"), dims=(1024,), heads=1, quick_length=1024),
        Grid(TRAINED, (1024, 2048), ALL_PEERS, masks=MASKS),
        # Here peers that keep all scores run out of memory, and tiles take minutes.
        Grid(TRAINED, (4096, 8192), ("sdpa", "flex", "ours"), masks=MASKS),
        Grid(TRAINED, LENGTHS, ("sdpa", "ours"), dims=(128,), masks=MASKS),
        Grid(("forward",), (2048,), ("sdpa", "ours"), dtypes=("fp16",), masks=("causal",)),
        Grid(TRAINED, (128, 256), ("sdpa", "eager-sigmoid", "ours"), dims=(64, 128), masks=MASKS),
        Grid(
            ("decode",),
            (4096, 8192, 16384, 32768),
            ("sdpa", "eager-softmax", "eager-sigmoid", "ours"),
            dims=(64, 128),
        ),
        Grid(
            ("alibi-forward", "alibi-forward+backward"),
            (4096, 8192, 16384),
            ("dense", "ours"),
            masks=("causal",),
        ),
        Grid(
            ("memory-forward", "memory-forward+backward"),
            (8192,),
            ("sdpa", "ours"),
            masks=("causal",),
            heads=4,
            budget=Budget(seconds=0, least=3, most=3),
            quick_length=2048,  # a shorter one may fit into memory that the process holds already
        ),
        Grid(
            ("headline",),
            (65536,),
            ("sdpa", "ours"),
            dtypes=("bf16",),
            masks=("causal",),
            budget=Budget(seconds=0, least=2, most=2),
            long=True,
        ),
    ),
)

SUITES = {"cpu": CPU}


@dataclass(frozen=True)
class Choice:
    """The part of a suite to measure: the values of each axis; an empty axis means all."""

    only: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    dims: tuple[int, ...] = ()
    masks: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    quick: bool = False
    long: bool = False


@dataclass(frozen=True)
class Task:
    """A case, its peers and its budget."""

    case: Case
    peers: tuple[str, ...]
    budget: Budget


def chosen(suite: Suite, choice: Choice) -> list[Task]:
    """The tasks of a suite that a choice selects, each case once.

    Raises:
        ValueError: the choice names a value that the suite does not have, or selects no case.
    """
    grids = [grid.quick() if choice.quick else grid for grid in suite.grids]
    for option, values, axis in (
        ("--only", choice.only, "operations"),
        ("--dtype", choice.dtypes, "dtypes"),
        ("--length", choice.lengths, "lengths"),
        ("--dim", choice.dims, "dims"),
        ("--mask", choice.masks, "masks"),
        ("--peers", choice.peers, "peers"),
    ):
        known = list(dict.fromkeys(value for grid in grids for value in getattr(grid, axis)))
        for value in values:
            if value not in known:
                raise ValueError(f"{option} must be of {', '.join(map(str, known))}, got {value}")
    tasks: dict[Case, Task] = {}
    for grid in grids:
        peers = _kept(grid.peers, choice.peers)
        if (grid.long and not choice.long) or not peers:
            continue
        kept = replace(
            grid,
            operations=_kept(grid.operations, choice.only),
            dtypes=_kept(grid.dtypes, choice.dtypes),
            lengths=_kept(grid.lengths, choice.lengths),
            dims=_kept(grid.dims, choice.dims),
            masks=_kept(grid.masks, choice.masks),
        )
        for case in kept.cases():
            tasks.setdefault(case, Task(case, peers, grid.budget))
    if not tasks:
        raise ValueError("no case of the suite matches all options at once")
    return list(tasks.values())


def _kept(values: tuple, selected: tuple) -> tuple:
    return tuple(value for value in values if not selected or value in selected)
