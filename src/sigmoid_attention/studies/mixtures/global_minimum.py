"""Study of starting points: rates of fits near the truth against rates of global minima.

The theorems of the papers are about the least-squares estimate over a compact set. Their
experiments start near the truth. Here the same data are fitted from starts near the truth and from
random starts, and the better fit counts.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from sigmoid_attention.lab.figure import loglog, panels
from sigmoid_attention.lab.study import Finding, Measured, Results, Study, Task
from sigmoid_attention.mixtures.rates import verdict
from sigmoid_attention.mixtures.rates.power import by_chance, power_sentence
from sigmoid_attention.mixtures.rates.slopes import Slope, over_truths, slope, slopes_of_truths
from sigmoid_attention.studies.mixtures.cells import Cell, run

SIZES = (1_000, 10_000, 100_000, 1_000_000)
STARTS = 16
REPLICATES = 4
# The least chi2 difference of another minimum, and the largest allowed share of such cases.
BETTER, OFTEN = 0.5, 0.1

CELLS = (
    Cell("softmax", "gelu", claim=-0.25, quantity="over_weighted"),
    Cell("softmax", "relu", claim=-0.25, quantity="over_weighted"),
    Cell("sigmoid", "gelu", regime="sparse", claim=-0.25, quantity="over_weighted"),
    Cell("sigmoid", "gelu", regime="dense", claim=-0.5, quantity="over_weighted"),
)

RULE = f"""Each data set is fitted from one start near the truth and from {STARTS} random ones, in
the same box. The global fit is the best of all {STARTS + 1}. If it is better than the one near the
truth by more than {BETTER:g} chi2 in more than {OFTEN:.0%} of the data sets, and the slopes of the
two differ by more than {verdict.BEND:g}, by the whole interval of the difference over truths:
*{verdict.DEPENDS_ON_THE_START}*. Else the slope of the global fit is judged against the claim as in
the tables: its whole interval within {verdict.MARGIN:g} of it *{verdict.REPRODUCED}*, all of it
farther away *{verdict.NOT_REPRODUCED}*, otherwise *{verdict.UNDECIDED}*."""


def tasks() -> list[Task]:
    tasks = []
    for cell in CELLS:
        for seed in cell.truths:
            near = cell.setting(seed, sizes=SIZES, seed=8000 + seed, replicates=REPLICATES)
            tasks.append(Task(cell.name, "near", near, run, 4.0))
            far = cell.setting(
                seed,
                sizes=SIZES,
                seed=8000 + seed,
                replicates=REPLICATES,
                start="random",
                starts=STARTS,
            )
            tasks.append(Task(cell.name, "random", far, run, 4.0 * STARTS))
    return tasks


def judge(results: Results) -> list[Finding]:
    return [_finding(cell, results) for cell in CELLS]


def _finding(cell: Cell, results: Results) -> Finding:
    sizes, near, best, better = _both(cell, results)
    locally, globally = slope(sizes, near), slope(sizes, best)
    share = float(np.mean(better))
    apart = over_truths(slopes_of_truths(sizes, best) - slopes_of_truths(sizes, near))
    word, because = _verdict(cell.claim, globally, apart, share)
    decided = because == verdict.against(globally, cell.claim)[1]
    return Finding(
        cell.name,
        f"{cell.quantity}: {cell.claimed}",
        f"near the truth {locally}, global {globally}",
        word,
        because,
        f"{len(near)} truths, another minimum is better in {share:.0%} of the data sets",
        by_chance(globally) if decided else None,
    )


def _verdict(claim: float, globally: Slope, apart: Slope, share: float) -> tuple[str, str]:
    if share > OFTEN and apart.outside(0.0, verdict.BEND):
        return verdict.DEPENDS_ON_THE_START, f"the slope of the global fit differs by {apart}"
    return verdict.against(globally, claim)


def _both(
    cell: Cell, results: Results
) -> tuple[Sequence[float], np.ndarray, np.ndarray, np.ndarray]:
    """Sizes, losses near the truth and of the best fit (T, N, R), True for another minimum."""
    near = [_grids(of_truth, cell.quantity) for of_truth in results[cell.name, "near"]]
    far = [_grids(of_truth, cell.quantity) for of_truth in results[cell.name, "random"]]
    sizes = near[0][0].tolist()
    losses, gains = (np.stack([grids[i] for grids in near]) for i in (1, 2))
    other_losses, other_gains = (np.stack([grids[i] for grids in far]) for i in (1, 2))
    better = other_gains > gains + BETTER
    return sizes, losses, np.where(other_gains > gains, other_losses, losses), better


def _grids(measured: Measured, quantity: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sizes, losses = measured.grid(quantity)
    _, gains = measured.grid("gain")
    # A fit that did not converge is not a minimum.
    return sizes, losses, np.where(np.isnan(gains), -np.inf, gains)


def _power(results: Results) -> str:
    slopes = []
    for cell in CELLS:
        sizes, _, best, _ = _both(cell, results)
        slopes.append(slope(sizes, best))
    return power_sentence(slopes)


def draw(results: Results) -> Figure:
    """A panel a cell: the fit near the truth and the global one."""
    figure, axes = panels(len(CELLS), columns=4)
    for axis, cell in zip(axes, CELLS, strict=True):
        sizes, near, best, _ = _both(cell, results)
        axis.set_title(cell.name)
        for label, values, dashed in (("near the truth", near, True), ("global", best, False)):
            fitted = slope(sizes, values)
            pooled = np.concatenate(list(values), axis=-1)
            loglog(
                axis, np.array(sizes), pooled, f"{label} {fitted.value:+.2f}", slope=fitted.value,
                colour=cell.gate, dashed=dashed,
            )  # fmt: skip
    return figure


STUDY = Study(
    "global_minimum",
    "Near the truth, or the global minimum",
    "The rates of the tables are those of the least-squares estimate, wherever it lies.",
    "Nguyen et al. 2024, theorems 2 and 5, which minimise over the whole parameter space",
    RULE,
    tasks,
    judge,
    draw,
    _power,
)
