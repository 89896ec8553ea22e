"""Study of the size of the proof's transformer against transformers trained to the same error.

Question: the universality theorem builds a transformer with a layer for every context; how small a
trained one with sigmoid, or with softmax, comes as near to the same function? For each function
the proof's size is counted for one grid after the other, with the L2 error of f at the centres of
cells; small transformers of this library (no positions, not causal, pre norm) are trained on
random sequences, and their L2 error is measured on others. For one error the construction is built
and measured, with sigmoids of many steepnesses.

Rule: a trained size *reaches* an error if the upper end of the 95% t-interval over seeds of its L2
error is at most that. The gap is the proof's number of parameters over those of the smallest
trained size that reaches it.

Shape letters: S sequences, N tokens, D channels, C model dim.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigmoid_attention.lab.rows import ARMS, ArmRow
from sigmoid_attention.lab.statistics import Interval, t_interval
from sigmoid_attention.lab.store import Store
from sigmoid_attention.nn import Attention, Block, GELUFeedForward, RMSNorm
from sigmoid_attention.theory.universality import function, universal_transformer
from sigmoid_attention.theory.universality.grid import Grid
from sigmoid_attention.theory.universality.measure import Target
from sigmoid_attention.theory.universality.plan import MAX_LAYERS, parameters_of
from sigmoid_attention.training.environment import describe_machine, describe_versions
from sigmoid_attention.training.seeds import step_generator
from sigmoid_attention.training.trainer import TrainConfig, train

PROOF = "proof"
HARD = "heaviside"
STEEP = "steepness"
L2 = 2.0
HEADS = 2
# Seeds of the sequences that models are trained on and tested on; runs differ in their own seeds.
TRAINING, TESTING = 11, 12


@dataclass(frozen=True)
class UniversalitySetting:
    """The functions, the error and the trained transformers of the study.

    ``sizes`` are (layers, dim) of the trained transformers. ``pool`` is the number of sequences for
    training, ``samples`` the number for measuring errors.

    Raises ``ValueError`` where seeds or steps are below one.
    """

    functions: tuple[str, ...]
    n: int = 3
    d: int = 1
    error: float = 0.1
    seeds: int = 3
    sizes: tuple[tuple[int, int], ...] = ((1, 2), (1, 4), (1, 8), (1, 16))
    steps: int = 600
    batch_size: int = 64
    lr: float = 1e-2
    warmup_steps: int = 40
    pool: int = 8192
    samples: int = 2048
    steepnesses: tuple[float, ...] = tuple(2.0 ** (quarter / 4) for quarter in range(18, 31))
    max_layers: int = MAX_LAYERS

    def __post_init__(self) -> None:
        for name in ("seeds", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class SequenceRegressor(nn.Module):
    """A transformer from (B, N, D) to (B, N, D) that is equivariant under permutations of tokens.

    Example:
        >>> model = SequenceRegressor(n=3, d=1, layers=1, dim=4, activation="sigmoid")
        >>> model(torch.zeros(2, 3, 1)).shape
        torch.Size([2, 3, 1])
    """

    def __init__(self, *, n: int, d: int, layers: int, dim: int, activation: str) -> None:
        super().__init__()
        self.embed = nn.Linear(d, dim)
        self.blocks = nn.ModuleList(
            Block(
                Attention(dim, HEADS, max_seq_len=n, is_causal=False, activation=activation),
                GELUFeedForward(dim, 4 * dim),
            )
            for _ in range(layers)
        )
        self.norm = RMSNorm(dim)
        self.head = nn.Linear(dim, d)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BNC = self.embed(x_BND)
        for block in self.blocks:
            x_BNC = block(x_BNC)
        return self.head(self.norm(x_BNC))

    def loss(self, inputs_BND: Tensor, targets_BND: Tensor) -> Tensor:
        return (self(inputs_BND) - targets_BND).square().mean()


class SequenceBatches:
    """Batches drawn from a pool of sequences and a function's values at them."""

    def __init__(self, target: Target, batch_size: int, seed: int) -> None:
        self.inputs_SND, self.outputs_SND = target.inputs_SND.float(), target.outputs_SND.float()
        self.batch_size, self.seed = batch_size, seed

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        draw = step_generator(self.seed, step)
        chosen = torch.randint(len(self.inputs_SND), (self.batch_size,), generator=draw)
        return self.inputs_SND[chosen], self.outputs_SND[chosen]

    def describe(self) -> dict[str, Any]:
        return {"pool": len(self.inputs_SND), "batch_size": self.batch_size, "seed": self.seed}


def size_name(layers: int, dim: int) -> str:
    return f"{layers}x{dim}"


def trained_units(setting: UniversalitySetting) -> Iterator[tuple[str, str, tuple[int, int], int]]:
    """Function, arm, size and seed of every run; seeds outermost, for whole replicates."""
    for seed in range(setting.seeds):
        for name in setting.functions:
            for arm in ARMS:
                for size in setting.sizes:
                    yield name, arm, size, seed


def run(out: Path, setting: UniversalitySetting, *, resume: bool = False) -> Store:
    """Build, count and train the cases that have no rows in ``out`` yet.

    Errors are those of `universal_transformer`, and ``ValueError`` where ``out`` belongs to another
    study.
    """
    stamp = {
        "machine": describe_machine(torch.device("cpu")),
        "versions": describe_versions(),
        "provenance": {"data": "uniform random sequences of the box [0, 1]^(n x d)"},
    }
    fixed = dataclasses.asdict(setting)
    # A later call may add functions, seeds and sizes.
    del fixed["functions"], fixed["seeds"], fixed["sizes"]
    store = Store(out, fixed, stamp, resume=resume)
    for name in setting.functions:
        if not store.has(f"proof-{_file(name)}"):
            store.put(f"proof-{_file(name)}", proof_rows(name, setting))
    todo = [unit for unit in trained_units(setting) if not store.has(_unit_name(*unit))]
    for number, unit in enumerate(todo, 1):
        label = f"{number}/{len(todo)} {unit[0]} {unit[1]} {size_name(*unit[2])}"
        store.put(_unit_name(*unit), [trained_row(*unit, setting, label)])
    store.merge()
    return store


def proof_rows(name: str, setting: UniversalitySetting) -> list[ArmRow]:
    """The construction's error with Heaviside steps and each steepness, and size against error.

    In rows of the arm "proof" ``step`` is the number of parameters and ``length`` the number of
    cells.
    """
    built = universal_transformer(
        function(name),
        n=setting.n,
        d=setting.d,
        error=setting.error,
        max_layers=setting.max_layers,
        samples=setting.samples,
    )
    rows = [ArmRow(HARD, name, built.error().value, "L2")]
    rows += [
        ArmRow(f"{STEEP} {steepness:g}", name, built.error(steepness).value, "L2")
        for steepness in setting.steepnesses
    ]
    box = Grid(setting.n, setting.d, cells=1)
    target = _target(name, box, setting.samples, TESTING)
    for cells in range(1, built.plan.grid.cells + 1):
        grid = dataclasses.replace(box, cells=cells)
        error = target.grid_error(grid).value
        rows.append(ArmRow(PROOF, name, error, "L2", step=parameters_of(grid), length=cells))
    return rows


def trained_row(
    name: str, arm: str, size: tuple[int, int], seed: int, setting: UniversalitySetting, label: str
) -> ArmRow:
    """The L2 error of one trained transformer; ``step`` is its number of parameters."""
    box = Grid(setting.n, setting.d, cells=1)
    pool = _target(name, box, setting.pool, TRAINING)
    test = _target(name, box, setting.samples, TESTING)
    torch.manual_seed(seed)
    model = SequenceRegressor(n=setting.n, d=setting.d, layers=size[0], dim=size[1], activation=arm)
    config = TrainConfig(
        steps=setting.steps, lr=setting.lr, warmup_steps=setting.warmup_steps, seed=seed
    )
    train(model, SequenceBatches(pool, setting.batch_size, seed), config, progress=label)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    error = test.error(lambda x_SND: model(x_SND.float()))
    return ArmRow(f"{arm} {size_name(*size)}", name, error.value, "L2", seed, step=parameters)


@dataclass(frozen=True)
class UniversalityFindings:
    """The findings on one function.

    Attributes:
        hard: the construction's error with Heaviside attention.
        by_steepness: its error with sigmoids, by their steepness.
        proof: error by number of parameters, one grid each.
        trained: for each arm, the error over seeds by number of parameters.
    """

    name: str
    hard: float
    by_steepness: dict[float, float]
    proof: dict[int, float]
    trained: dict[str, dict[int, Interval]]

    def smallest(self, arm: str, error: float) -> int | None:
        """The parameters of the smallest trained size that reaches ``error``, by the rule above."""
        reached = [
            size
            for size, interval in self.trained[arm].items()
            if (interval.high if interval.bounded else interval.mean) <= error
        ]
        return min(reached, default=None)

    @property
    def built(self) -> int:
        """Parameters of the construction for the setting's error, on the finest of the grids."""
        return max(self.proof)


def findings(store: Store, setting: UniversalitySetting) -> list[UniversalityFindings]:
    """The findings of a complete study, for each function."""
    rows = store.rows().to_pylist()
    arms = [size_name(*size) for size in setting.sizes]

    def of(name: str) -> UniversalityFindings:
        mine = [row for row in rows if row["metric"] == name]
        trained: dict[str, dict[int, list[float]]] = {arm: {} for arm in ARMS}
        by_steepness, proof, hard = {}, {}, math.nan
        for row in mine:
            kind, _, detail = row["arm"].partition(" ")
            if kind == HARD:
                hard = row["value"]
            elif kind == STEEP:
                by_steepness[float(detail)] = row["value"]
            elif kind == PROOF:
                proof[row["step"]] = row["value"]
            elif row["seed"] < setting.seeds and detail in arms:
                trained[kind].setdefault(row["step"], []).append(row["value"])
        intervals = {
            arm: {size: t_interval(values) for size, values in sorted(sizes.items())}
            for arm, sizes in trained.items()
        }
        return UniversalityFindings(
            name, hard, dict(sorted(by_steepness.items())), proof, intervals
        )

    return [of(name) for name in setting.functions]


def report(findings: Sequence[UniversalityFindings], error: float) -> str:
    """A Markdown table: the parameters that reach the error, and the ratio of proof to trained."""
    lines = ["| function | proof | sigmoid | softmax | proof / sigmoid |", "|---|---|---|---|---|"]
    for finding in findings:
        sizes = {arm: finding.smallest(arm, error) for arm in ARMS}
        shown = {arm: "none" if size is None else f"{size:,}" for arm, size in sizes.items()}
        smallest = sizes["sigmoid"]
        gap = "" if smallest is None else f"{finding.built / smallest:,.0f}"
        sizes_shown = f"{shown['sigmoid']} | {shown['softmax']}"
        lines.append(f"| {finding.name} | {finding.built:,} | {sizes_shown} | {gap} |")
    return "\n".join(lines)


@functools.cache
def _target(name: str, box: Grid, samples: int, seed: int) -> Target:
    # Cached for all runs of a function: a Python call for each sequence takes as long as training.
    return Target.sample(function(name), box, L2, samples, seed)


def _unit_name(name: str, arm: str, size: tuple[int, int], seed: int) -> str:
    return f"{_file(name)}-{arm}-{size_name(*size)}-seed{seed}"


def _file(name: str) -> str:
    return name.replace(":", "_").replace("/", "_")
