"""How the difference to softmax changes with the length of training and with the size of the model.

A cell trains softmax and the centred sigmoid with one size and one number of training bytes a
parameter. There are three series of cells: the length of training at each of two sizes, and the
size at one length. The series by size shares one cell with each of the others.

Rule. In a cell each candidate is at its best learning rate, the one with the lowest mean of the
held-out bits per byte at n among those at which no seed diverged. Its difference to softmax, paired
by seed, is in percent of softmax's mean. A series has one slope for each seed: that of the
least-squares line of the difference over the logarithm to base 2 of bytes a parameter, or of
parameters. The slope's 95% t-interval is over seeds. The series is

- *growing in favour of sigmoid* if the whole interval is below zero,
- *turning against sigmoid* if the whole interval is above zero,
- *open* otherwise.

Nothing is extrapolated beyond the cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from sigmoid_attention.lab.statistics import Interval, t_interval
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.recipe.results import values_by_rate
from sigmoid_attention.studies.recipe.run import run
from sigmoid_attention.studies.recipe.setting import TREND_CANDIDATES, RecipeSetting
from sigmoid_attention.studies.recipe.unit import LOSS

CANDIDATES = TREND_CANDIDATES
BYTES_A_STEP = 2048
# Layers, heads, hidden size, and parameters of the softmax, of each model dimension.
SIZES = {64: (4, 4, 176, 218_368), 128: (4, 4, 352, 838_144), 192: (4, 6, 528, 1_859_200)}
# Model dimension and bytes a parameter.
BY_TRAINING = {64: (1, 5, 20), 128: (1, 5, 20)}
BY_SIZE = {64: 5, 128: 5, 192: 5}


@dataclass(frozen=True)
class Cell:
    """One size and one number of bytes a parameter."""

    dim: int
    ratio: int

    @property
    def name(self) -> str:
        return f"dim{self.dim}-ratio{self.ratio}"

    @property
    def parameters(self) -> int:
        """Those of the softmax; a sigmoid has two more a head."""
        return SIZES[self.dim][3]

    def setting(self, base: RecipeSetting) -> RecipeSetting:
        """The cell's setting; everything that a cell does not decide is that of ``base``."""
        layers, heads, ffn_dim, parameters = SIZES[self.dim]
        steps = max(20, round(self.ratio * parameters / BYTES_A_STEP))
        return replace(
            base,
            candidates=CANDIDATES,
            steps=steps,
            warmup_steps=steps // 10,
            dim=self.dim,
            layers=layers,
            num_heads=heads,
            ffn_dim=ffn_dim,
        )


CELLS = tuple(
    dict.fromkeys(
        [Cell(dim, ratio) for dim, ratios in BY_TRAINING.items() for ratio in ratios]
        + [Cell(dim, ratio) for dim, ratio in BY_SIZE.items()]
    )
)


def run_cells(
    out: Path,
    base: RecipeSetting,
    *,
    resume: bool = False,
    workers: int | None = None,
    console: Console | None = None,
) -> dict[Cell, Store]:
    """Run or continue every cell, the cheapest first, each in a folder of its own.

    Raises what `run` raises.
    """
    order = sorted(CELLS, key=lambda cell: cell.ratio * cell.parameters**2)
    stores = {}
    for cell in order:
        setting = cell.setting(base)
        folder = out / cell.name
        stores[cell] = run(folder, setting, resume=resume, workers=workers, console=console)
    return stores


def differences(store: Store, setting: RecipeSetting) -> dict[int, float]:
    """Sigmoid minus softmax at n, in percent of softmax's mean, by seed.

    ``setting`` is the cell's. Empty if a candidate diverged at every rate.
    """
    values = values_by_rate(store, setting, (LOSS,))
    if values.keys() != set(CANDIDATES):
        return {}
    at_n = (LOSS, setting.seq_len)
    softmax, sigmoid = (
        min(
            (of[at_n] for of in values[name].values()),
            key=lambda by_seed: float(np.mean(list(by_seed.values()))),
        )
        for name in CANDIDATES
    )
    percent = float(np.mean(list(softmax.values()))) / 100
    return {seed: (sigmoid[seed] - softmax[seed]) / percent for seed in sorted(softmax)}


def slope(points: Sequence[tuple[float, dict[int, float]]]) -> Interval:
    """The slope a doubling, over seeds, of differences at several sizes or lengths of training.

    Example:
        >>> slope([(1.0, {0: 3.0, 1: 4.0}), (4.0, {0: 1.0, 1: 2.0})]).mean
        -1.0
    """
    x = np.log2([place for place, _ in points])
    seeds = sorted(set.intersection(*(set(by_seed) for _, by_seed in points)))
    return t_interval(
        [float(np.polyfit(x, [by_seed[seed] for _, by_seed in points], 1)[0]) for seed in seeds]
    )


def verdict(interval: Interval) -> str:
    """The verdict on a series, by the module's rule; "-" for fewer than three seeds."""
    if not interval.bounded:
        return "-"
    if interval.high < 0:
        return "growing in favour of sigmoid"
    return "turning against sigmoid" if interval.low > 0 else "open"


def trend_report(found: dict[Cell, dict[int, float]]) -> str:
    """The cells and the slopes as Markdown tables; ``found`` are the cells' differences."""
    lines = ["| parameters | bytes a parameter | sigmoid to softmax at n |", "|---|---|---|"]
    for cell in sorted(found, key=lambda cell: (cell.dim, cell.ratio)):
        shown = "diverged at every rate"
        if found[cell]:
            shown = f"{t_interval(list(found[cell].values())).signed(2)} %"
        lines.append(f"| {cell.parameters:,} | {cell.ratio} | {shown} |")
    lines += ["", "| series | slope a doubling, in points | verdict |", "|---|---|---|"]
    series = {
        f"length of training, {SIZES[dim][3]:,} parameters": [
            (float(ratio), found[Cell(dim, ratio)]) for ratio in ratios
        ]
        for dim, ratios in BY_TRAINING.items()
    }
    ratio = next(iter(BY_SIZE.values()))
    series[f"size, {ratio} bytes a parameter"] = [
        (float(SIZES[dim][3]), found[Cell(dim, own)]) for dim, own in BY_SIZE.items()
    ]
    for name, points in series.items():
        interval = slope(points)
        shown = interval.signed(2) if interval.n else "-"
        lines.append(f"| {name} | {shown} | {verdict(interval)} |")
    return "\n".join(lines)
