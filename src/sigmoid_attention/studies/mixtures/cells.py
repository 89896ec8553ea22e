"""Rate studies over cells (gate, expert, score, regime): tasks, evidence, verdicts and figures.

Shape letters: T truths, N sample sizes, R replicates.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sigmoid_attention.lab.figure import loglog, panels
from sigmoid_attention.lab.statistics import median_interval
from sigmoid_attention.lab.study import Finding, Measured, Results, Row, Study, Task
from sigmoid_attention.mixtures.identifiability import jacobian_rank
from sigmoid_attention.mixtures.model import free_parameters
from sigmoid_attention.mixtures.rates.measure import RateCurve, measure, measure_continuous
from sigmoid_attention.mixtures.rates.power import by_chance, power_sentence
from sigmoid_attention.mixtures.rates.setting import RateSetting, draw_truth
from sigmoid_attention.mixtures.rates.slopes import (
    Slope,
    factor_over_truths,
    over_truths,
    slope,
    slopes_of_truths,
)
from sigmoid_attention.mixtures.rates.verdict import RULE, RateEvidence, against, judge
from sigmoid_attention.studies.mixtures.truths import HELD_OUT

# Windows of n, which overlap: fits of one size serve both.
EARLY = tuple(10**i for i in range(2, 6))  # 1e2 .. 1e5
LATE = tuple(10**i for i in range(4, 9))  # 1e4 .. 1e8
REPLICATES, CONTROLS = 10, 4
NEAR, FAR = 0.01, 0.5
# The largest chi2 difference of two equally good fits of the same data, and the least number of
# such pairs of a truth.
ALIKE, FEWEST_ALIKE = 1.0, 2
# Continuous inputs cost in proportion to n.
CONTINUOUS = (1000,)

Windows = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Cell:
    """A line of a table of rates.

    Args:
        claim: the claimed exponent of ``quantity``; 0 is slower than any power of n.
        quantity: a loss of `mixtures.rates.losses_of`.
        starts, jitter: those of every fit; several starts help where a start near the truth often
            ends in a minimum that fits the data worse than the truth.
        truths: the seeds of the true parameters.
    """

    gate: str
    expert: str
    score: str = "linear"
    regime: str = "dense"
    d: int = 2
    k: int = 2
    extra: int = 1
    claim: float = -0.5
    quantity: str = "over"
    starts: int = 1
    jitter: float = 0.1
    truths: tuple[int, ...] = HELD_OUT

    @property
    def name(self) -> str:
        """A name that differs from those of the other cells of a study."""
        parts = [self.gate, self.expert, self.regime]
        parts += [self.score] if self.score != "linear" else []
        parts += [f"d={self.d}"] if self.d != 2 else []
        parts += [f"k*={self.k}"] if self.k != 2 else []
        parts += [f"+{self.extra}"] if self.extra != 1 else []
        return " ".join(parts)

    @property
    def claimed(self) -> str:
        rate = f"n^{self.claim:.3g}" if self.claim else "slower than any power of n"
        if self.projected:
            # The loss of this study is a distance to the truth.
            return f"{rate} to the projection of the truth; measured to the truth"
        return rate

    @property
    def projected(self) -> bool:
        """True where the theorems' rate is one to the projection of the truth (regime 2)."""
        return (self.gate, self.regime, self.claim) == ("sigmoid", "dense", -0.5)

    def setting(self, truth_seed: int, **changes: object) -> RateSetting:
        fixed = RateSetting(
            self.gate, self.expert, self.score, self.regime, self.d, self.k, self.extra,
            sizes=LATE, replicates=REPLICATES, truth_seed=truth_seed,
            starts=self.starts, jitter=self.jitter,
        )  # fmt: skip
        return replace(fixed, **changes)  # pyright: ignore[reportArgumentType]


def rate_study(
    name: str,
    title: str,
    claim: str,
    source: str,
    cells: Sequence[Cell],
    *,
    windows: Windows = (EARLY, LATE),
    draw: Callable[[Results], Figure] | None = None,
    quick: bool = False,
) -> Study:
    """A study that measures every cell's rate with all controls and judges it by `verdict.RULE`.

    Args:
        windows: the sizes of the earlier and of the later window.
        quick: three truths, two sizes a window, for trial runs; intervals are then wide.
    """
    if quick:
        windows = tuple((window[0], window[-1]) for window in windows)  # pyright: ignore
        cells = [replace(cell, truths=cell.truths[:3]) for cell in cells]
    return Study(
        name,
        title,
        claim,
        source,
        RULE,
        partial(_tasks, tuple(cells), windows),
        partial(findings, tuple(cells), windows),
        draw or partial(draw_cells, tuple(cells), windows),
        partial(_power, tuple(cells), windows),
    )


# Tasks ----------------------------------------------------------------------------------------


def _tasks(cells: Sequence[Cell], windows: Windows) -> list[Task]:
    return [
        task for cell in cells for truth in cell.truths for task in _of_truth(cell, windows, truth)
    ]


def _of_truth(cell: Cell, windows: Windows, truth: int) -> Iterator[Task]:
    """The fits of both windows, and a task for each control.

    Data of all parts and truths are independent, except that both starts fit the same data.
    """
    late = windows[1]
    largest = late[-1:]
    few: dict[str, Any] = {"sizes": largest, "replicates": CONTROLS}
    parts: dict[str, dict[str, Any]] = {
        "fits": {"sizes": tuple(sorted({*windows[0], *late})), "seed": 1000},
        "noiseless": few | {"sigma": 0.0, "seed": 3000},
        "near start": few | {"jitter": NEAR, "seed": 4000},
        "far start": few | {"jitter": FAR, "seed": 4000},
        "exact": {"sizes": late[::2], "extra": 0, "seed": 5000},
        "finite": few | {"sizes": CONTINUOUS, "seed": 6000},
    }
    for part, changes in parts.items():
        setting = cell.setting(truth, **changes | {"seed": changes["seed"] + truth})
        yield Task(cell.name, part, setting, run, float(len(setting.sizes)))
    setting = cell.setting(truth, sizes=CONTINUOUS, replicates=CONTROLS, seed=7000 + truth)
    yield Task(cell.name, "continuous", setting, run_continuous, 2.0)


def run(setting: RateSetting) -> Iterator[Row]:
    """Rows of one setting on its finite design."""
    truth = draw_truth(setting)
    free = free_parameters(truth.family)
    rank = jacobian_rank(truth.family, truth.theta_P, setting.inputs_Qd, free)
    yield Row("missing", float(rank.missing))
    yield Row("smallest", rank.smallest)
    yield from rows_of(measure(setting))


def run_continuous(setting: RateSetting) -> Iterator[Row]:
    """Rows of one setting with inputs of a continuous law."""
    for curve in measure_continuous(setting):
        yield from rows_of(curve)


def rows_of(curve: RateCurve) -> Iterator[Row]:
    """Every loss and the gain of every fit, with a mark for least-squares estimates."""
    yield Row("free", float(curve.free))
    # The truth is a member of the family, with an expert split or with weight 0, so an estimate has
    # a positive gain over it. Without noise the gain cannot be positive.
    sound = curve.converged & (curve.gain > 0) if curve.setting.sigma else curve.converged
    for quantity, values in {**curve.losses, "gain": curve.gain}.items():
        for (i, r), value in np.ndenumerate(values):
            yield Row(
                quantity,
                float(value),
                n=float(curve.setting.sizes[i]),
                replicate=r,
                converged=bool(sound[i, r]),
                at_box=bool(curve.at_box[i, r]),
            )


# Verdicts -------------------------------------------------------------------------------------


def findings(cells: Sequence[Cell], windows: Windows, results: Results) -> list[Finding]:
    """One line a cell."""
    return [_finding(cell, windows, results) for cell in cells]


def _finding(cell: Cell, windows: Windows, results: Results) -> Finding:
    seen = evidence(cell, windows, results)
    verdict, because = judge(seen)
    others = ", ".join(
        f"{quantity} {slope_of(results[cell.name, 'fits'], quantity, windows[1]).short}"
        for quantity in ("L2", "contribution", "exact", "over", "D1", "D2")
        if quantity != cell.quantity
    )
    judged_by_slope = because == against(seen.late, seen.claim)[1]
    return Finding(
        cell.name,
        f"{cell.quantity}: {cell.claimed}",
        f"{seen.early} then {seen.late}; {others}",
        verdict,
        because,
        f"{len(cell.truths)} truths, {seen.controls}",
        by_chance(seen.late) if judged_by_slope else None,
    )


def evidence(cell: Cell, windows: Windows, results: Results) -> RateEvidence:
    """The evidence of a cell, computed from its rows."""
    of = lambda part: results[cell.name, part]  # noqa: E731
    quantity, (early, late) = cell.quantity, windows
    gains = [row.value for truth in of("exact") for row in truth.rows
             if row.quantity == "gain" and row.converged]  # fmt: skip
    gain = median_interval(gains)
    later = [row for truth in of("fits") for row in truth.rows
             if row.quantity == quantity and row.n in late and row.converged]  # fmt: skip
    slopes_TW = [
        slopes_of_truths(window, _grids(of("fits"), quantity, window)) for window in windows
    ]
    return RateEvidence(
        claim=cell.claim,
        early=slope_of(of("fits"), quantity, early),
        late=slope_of(of("fits"), quantity, late),
        moved=over_truths(slopes_TW[1] - slopes_TW[0]),
        missing=int(max(truth.values("missing")[0] for truth in of("fits"))),
        noiseless=over_truths(
            [
                # All fits count here: without noise the only estimate is the truth.
                min(_middle(silent.values(quantity)) / _middle(_at_largest(truth, quantity)), 1.0)
                for silent, truth in zip(of("noiseless"), of("fits"), strict=True)
            ]
        ),
        far_start=factor_over_truths(
            [
                _far_over_near(near, far, quantity)
                for near, far in zip(of("near start"), of("far start"), strict=True)
            ]
        ),
        counted=min(
            _counted(of("fits"), quantity, early),
            _counted(of("fits"), quantity, late),
            _counted(of("exact"), "gain", late),
        ),
        at_box=float(np.mean([row.at_box for row in later])),
        gain=Slope(gain.mean, gain.low, gain.high),
        free=float(of("exact")[0].values("free")[0]),
        continuous=factor_over_truths(
            [
                _middle(other.values("L2")) / _middle(truth.values("L2"))
                for truth, other in zip(of("finite"), of("continuous"), strict=True)
            ]
        ),
    )


def slope_of(
    measured: Sequence[Measured], quantity: str, sizes: Sequence[float] | None = None
) -> Slope:
    """The slope of a quantity over some or all sizes, averaged over the measured truths."""
    chosen = measured[0].grid(quantity)[0].tolist() if sizes is None else sizes
    return slope(chosen, _grids(measured, quantity, chosen))


def _grids(measured: Sequence[Measured], quantity: str, sizes: Sequence[float]) -> np.ndarray:
    """The values at some sizes, (T, N, R); NaN where a fit does not count."""
    grids = [of_truth.grid(quantity) for of_truth in measured]
    return np.stack([values[np.isin(all_sizes, sizes)] for all_sizes, values in grids])


def _counted(measured: Sequence[Measured], quantity: str, sizes: Sequence[float]) -> float:
    """The share of the fits of some sizes that count."""
    return float(np.isfinite(_grids(measured, quantity, sizes)).mean())


def _at_largest(measured: Measured, quantity: str) -> np.ndarray:
    """(R,), at the largest n; NaN where a fit does not count."""
    return measured.grid(quantity)[1][-1]


def _far_over_near(near: Measured, far: Measured, quantity: str) -> float:
    """The median over data sets of the loss from a far start over that from a near one.

    Only data sets that both fit equally well: a far start that ended in a worse minimum is a
    property of the solver, not of the estimate. NaN where there are too few.
    """
    gains = [_at_largest(measured, "gain") for measured in (near, far)]
    losses = [_at_largest(measured, quantity) for measured in (near, far)]
    factors = (losses[1] / losses[0])[np.abs(gains[1] - gains[0]) <= ALIKE]
    return _middle(factors) if np.isfinite(factors).sum() >= FEWEST_ALIKE else np.nan


def _middle(values: Iterable[float]) -> float:
    """The median of the values that are not NaN, or NaN."""
    there = [value for value in values if not np.isnan(value)]
    return float(np.median(there)) if there else np.nan


def _power(cells: Sequence[Cell], windows: Windows, results: Results) -> str:
    return power_sentence(
        [slope_of(results[cell.name, "fits"], cell.quantity, windows[1]) for cell in cells]
    )


# Figure ---------------------------------------------------------------------------------------


def draw_cells(cells: Sequence[Cell], windows: Windows, results: Results) -> Figure:
    """A panel for each expert and score, a line for each gate and regime."""
    kinds = list(dict.fromkeys((cell.expert, cell.score) for cell in cells))
    figure, axes = panels(len(kinds))
    for axis, (expert, score) in zip(axes, kinds, strict=True):
        axis.set_title(expert if score == "linear" else f"{expert}, {score.replace('_', ' ')}")
        axis.set_ylabel(cells[0].quantity)
        for cell in cells:
            if (cell.expert, cell.score) == (expert, score):
                draw_cell(axis, cell, windows, results)
    return figure


def draw_cell(axis, cell: Cell, windows: Windows, results: Results) -> None:
    """Both windows of a cell: points with their spread, and a fitted line for each window."""
    measured = results[cell.name, "fits"]
    for window in windows:
        values = np.concatenate(list(_grids(measured, cell.quantity, window)), axis=-1)
        fitted = slope_of(measured, cell.quantity, window)
        label = f"{cell.gate} {cell.regime} {fitted.short}" if window == windows[1] else None
        loglog(
            axis,
            np.array(window, dtype=float),
            values,
            label,
            slope=fitted.value,
            colour=cell.gate,
            dashed=cell.regime == "sparse",
        )
