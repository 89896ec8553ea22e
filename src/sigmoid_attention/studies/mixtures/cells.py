"""Rate studies over cells (gate, expert, score, regime): tasks, evidence, verdicts and figures.

Shape letters: T truths, N sample sizes, R replicates.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from sigmoid_attention.lab.figure import loglog, panels
from sigmoid_attention.lab.study import Finding, Measured, Results, Row, Study, Task
from sigmoid_attention.mixtures.identifiability import jacobian_rank
from sigmoid_attention.mixtures.model import free_parameters
from sigmoid_attention.mixtures.rates.measure import RateCurve, measure, measure_continuous
from sigmoid_attention.mixtures.rates.setting import RateSetting, draw_truth
from sigmoid_attention.mixtures.rates.slopes import Slope, ratio, slope
from sigmoid_attention.mixtures.rates.verdict import RULE, RateEvidence, judge

EARLY = tuple(round(10 ** (2 + i / 2)) for i in range(7))  # 1e2 .. 1e5
LATE = tuple(round(10 ** (4 + 2 * i / 3)) for i in range(7))  # 1e4 .. 1e8
TRUTHS = 3
REPLICATES = 20
NEAR, FAR = 0.01, 0.5
# The largest chi2 difference of two equally good fits of the same data, and the least number of
# such pairs.
ALIKE, FEWEST_ALIKE = 1.0, 6
# Continuous inputs cost in proportion to n.
CONTINUOUS = (3000,)


@dataclass(frozen=True)
class Cell:
    """A line of a table of rates.

    Args:
        claim: the claimed exponent of ``quantity``; 0 is slower than any power of n.
        quantity: a loss of `mixtures.rates.losses_of`.
        starts, jitter: those of every fit; several starts help where a start near the truth often
            ends in a minimum that fits the data worse than the truth.
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
    windows: tuple[tuple[int, ...], tuple[int, ...]] = (EARLY, LATE),
    draw: Callable[[Results], Figure] | None = None,
    quick: bool = False,
) -> Study:
    """A study that measures every cell's rate with all controls and judges it by `verdict.RULE`.

    Args:
        windows: the sizes of the earlier and of the later window.
        quick: one truth and a third of the sizes, for trial runs; verdicts are then less certain.
    """
    count = 1 if quick else TRUTHS
    early, late = (window[::3] if quick else window for window in windows)
    return Study(
        name,
        title,
        claim,
        source,
        RULE,
        partial(_tasks, tuple(cells), early, late, count),
        partial(findings, tuple(cells)),
        draw or partial(draw_cells, tuple(cells)),
    )


# Tasks ----------------------------------------------------------------------------------------


def _tasks(
    cells: Sequence[Cell], early: tuple[int, ...], late: tuple[int, ...], truths: int
) -> list[Task]:
    return [
        task
        for cell, truth in itertools.product(cells, range(truths))
        for task in _of_truth(cell, early, late, truth)
    ]


def _of_truth(
    cell: Cell, early: tuple[int, ...], late: tuple[int, ...], truth: int
) -> Iterator[Task]:
    """The two windows, and a task for each control.

    Data of all parts and truths are independent, except that both starts fit the same data.
    """
    largest = late[-1:]
    parts = {
        "early": {"sizes": early, "seed": 1000},
        "late": {"sizes": late, "seed": 2000},
        "noiseless": {"sizes": largest, "sigma": 0.0, "seed": 3000},
        "near start": {"sizes": largest, "jitter": NEAR, "seed": 4000},
        "far start": {"sizes": largest, "jitter": FAR, "seed": 4000},
        "exact": {"sizes": late[::2], "extra": 0, "seed": 5000},
        "finite": {"sizes": CONTINUOUS, "seed": 6000},
    }
    for part, changes in parts.items():
        setting = cell.setting(truth, **changes | {"seed": changes["seed"] + truth})
        yield Task(cell.name, part, setting, run, float(len(setting.sizes)))
    setting = cell.setting(truth, sizes=CONTINUOUS, seed=7000 + truth)
    yield Task(cell.name, "continuous", setting, run_continuous, 4.0)


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


def findings(cells: Sequence[Cell], results: Results) -> list[Finding]:
    """One line a cell."""
    return [_finding(cell, results) for cell in cells]


def _finding(cell: Cell, results: Results) -> Finding:
    seen = evidence(cell, results)
    verdict, because = judge(seen)
    others = ", ".join(
        f"{quantity} {slope_of(results[cell.name, 'late'], quantity).short}"
        for quantity in ("L2", "contribution", "exact", "over", "D1", "D2")
        if quantity != cell.quantity
    )
    boxed = np.mean(
        [row.at_box for of_truth in results[cell.name, "late"] for row in of_truth.rows]
    )
    return Finding(
        cell.name,
        f"{cell.quantity}: {cell.claimed}",
        f"{seen.early} then {seen.late}; {others}",
        verdict,
        because,
        f"{seen.controls}, at the box {boxed:.0%}",
    )


def evidence(cell: Cell, results: Results) -> RateEvidence:
    """The evidence of a cell, computed from its rows."""
    of = lambda part: results[cell.name, part]  # noqa: E731
    quantity = cell.quantity
    gains = np.concatenate([of_truth.values("gain") for of_truth in of("exact")])
    usual = [_middle(_at_largest(of_truth, quantity)) for of_truth in of("late")]
    return RateEvidence(
        claim=cell.claim,
        early=slope_of(of("early"), quantity),
        late=slope_of(of("late"), quantity),
        missing=int(max(of_truth.values("missing")[0] for of_truth in of("late"))),
        noiseless=_middle(
            # All fits count here: without noise the only estimate is the truth.
            _middle(of_truth.values(quantity)) / noisy
            for of_truth, noisy in zip(of("noiseless"), usual, strict=True)
        ),
        far_start=ratio(*_equally_good(of("near start"), of("far start"), usual, quantity)),
        counted=min(
            of_truth.share(quantity) for part in ("early", "late") for of_truth in of(part)
        ),
        gain=float(gains.mean()),
        gain_error=float(gains.std(ddof=1) / np.sqrt(len(gains))),
        free=float(np.mean([of_truth.values("free")[0] for of_truth in of("exact")])),
        continuous=_middle(
            _middle(other.values("L2")) / _middle(of_truth.values("L2"))
            for of_truth, other in zip(of("finite"), of("continuous"), strict=True)
        ),
    )


def slope_of(measured: Sequence[Measured], quantity: str) -> Slope:
    """The slope of a quantity, averaged over the truths that were measured."""
    grids = [of_truth.grid(quantity) for of_truth in measured]
    return slope(grids[0][0].tolist(), np.stack([values for _, values in grids]))


def _at_largest(measured: Measured, quantity: str) -> np.ndarray:
    """(R,), at the largest n; NaN where a fit does not count."""
    return measured.grid(quantity)[1][-1]


def _equally_good(
    near: Sequence[Measured], far: Sequence[Measured], usual: Sequence[float], quantity: str
) -> tuple[np.ndarray, np.ndarray]:
    """Losses of both starts on data sets that both fit equally well, in units of a usual loss.

    A far start that ended in a worse minimum is a property of the solver, not of the estimate.
    """
    pairs = []
    for near_truth, far_truth, unit in zip(near, far, usual, strict=True):
        gains = [_at_largest(measured, "gain") for measured in (near_truth, far_truth)]
        alike = np.abs(gains[1] - gains[0]) <= ALIKE
        losses = [_at_largest(measured, quantity) for measured in (near_truth, far_truth)]
        pairs.append([np.where(alike, values, np.nan) / unit for values in losses])
    first, second = np.concatenate(pairs, axis=-1)
    return (first, second) if np.isfinite(first + second).sum() >= FEWEST_ALIKE else _NOTHING


_NOTHING = (np.full(1, np.nan), np.full(1, np.nan))


def _middle(values: Iterable[float]) -> float:
    """The median of the values that are not NaN, or NaN."""
    there = [value for value in values if not np.isnan(value)]
    return float(np.median(there)) if there else np.nan


# Figure ---------------------------------------------------------------------------------------


def draw_cells(cells: Sequence[Cell], results: Results) -> Figure:
    """A panel for each expert and score, a line for each gate and regime."""
    kinds = list(dict.fromkeys((cell.expert, cell.score) for cell in cells))
    figure, axes = panels(len(kinds))
    for axis, (expert, score) in zip(axes, kinds, strict=True):
        axis.set_title(expert if score == "linear" else f"{expert}, {score.replace('_', ' ')}")
        axis.set_ylabel(cells[0].quantity)
        for cell in cells:
            if (cell.expert, cell.score) == (expert, score):
                draw_cell(axis, cell, results)
    return figure


def draw_cell(axis, cell: Cell, results: Results) -> None:
    """Both windows of a cell: points with their spread, and a fitted line for each window."""
    for part in ("early", "late"):
        grids = [of_truth.grid(cell.quantity) for of_truth in results[cell.name, part]]
        values = np.concatenate([values for _, values in grids], axis=-1)
        fitted = slope_of(results[cell.name, part], cell.quantity)
        label = f"{cell.gate} {cell.regime} {fitted.short}" if part == "late" else None
        loglog(
            axis,
            grids[0][0],
            values,
            label,
            slope=fitted.value,
            colour=cell.gate,
            dashed=cell.regime == "sparse",
        )
