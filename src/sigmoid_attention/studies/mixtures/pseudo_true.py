"""Regime 2 of Nguyen et al. 2024: rates towards the projection instead of the truth.

According to Nguyen et al. 2024, no fitted mixture equals the truth if the gate of an over-specified
expert depends on the input, so fits converge to the nearest mixture. But a fit can still equal the
truth: one gate may be zero, or an expert may be split into two with the same sum. Here a box keeps
parameters near the truth with its first expert repeated, where both are impossible. D3 is the
distance to the set of minimisers in that box.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from sigmoid_attention.lab.figure import loglog, panels
from sigmoid_attention.lab.study import (
    Finding,
    Measured,
    Results,
    Row,
    Study,
    Task,
)
from sigmoid_attention.mixtures.projection import distance_to_pseudo_true, pseudo_true
from sigmoid_attention.mixtures.rates import verdict
from sigmoid_attention.mixtures.rates.measure import measure
from sigmoid_attention.mixtures.rates.setting import RateSetting
from sigmoid_attention.mixtures.rates.slopes import Slope
from sigmoid_attention.studies.mixtures.cells import TRUTHS, Cell, slope_of

RADII = (0.3, 0.5)
STARTS = 8
# A minimiser found by fewer of the starts does not count as the global one.
FEWEST_FOUND = 0.1

CELLS = tuple(
    Cell("sigmoid", expert, score, claim=-0.5, quantity="D3")
    for score in ("linear", "partially_quadratic")
    for expert in ("relu", "gelu", "tanh", "linear")
)

RULE = f"""Parameters are held within a radius of {" and of ".join(map(str, RADII))} around the
truth with its first expert repeated; the minimisers there come from 64 starts without noise. D3 is
the distance of the best of {STARTS} fits to the nearest minimiser; its slope is that of n = 1e4 to
1e8. Fewer than {FEWEST_FOUND:.0%} of the 64 starts at the best minimisers of a truth, fewer than
{verdict.FEWEST_CONVERGED:.0%} converged fits, or an interval wider than plus or minus
{verdict.WIDEST:g}: *{verdict.UNDECIDED}*. The interval within {verdict.MARGIN:g} of -1/2:
*{verdict.REPRODUCED}*, else *{verdict.NOT_REPRODUCED}*. The floor is how far the function that fits
converge to is from the truth. There is no control without noise here: which inputs are drawn moves
a misspecified fit as well."""


def _name(cell: Cell, radius: float) -> str:
    return f"{cell.name}, radius {radius:g}"


def tasks() -> list[Task]:
    tasks = []
    for cell in CELLS:
        for radius in RADII:
            for seed in range(TRUTHS):
                setting = cell.setting(seed, radius=radius, starts=STARTS, seed=9000 + seed)
                tasks.append(Task(_name(cell, radius), "late", setting, run, 20.0))
    return tasks


def run(setting: RateSetting) -> Iterator[Row]:
    """D3, the distances of functions, and the properties of the minimisers."""
    projection = pseudo_true(setting)
    curve = measure(setting)
    theta = torch.from_numpy(curve.theta).flatten(0, 1)
    distance = distance_to_pseudo_true(setting, theta).reshape(curve.converged.shape)
    yield Row("floor", projection.floor)
    yield Row("minimisers", float(len(projection.theta_MP)))
    yield Row("found", float(projection.found_M.sum()) / projection.starts)
    yield Row("leaning", float(projection.at_box_M.double().mean()))
    for quantity, values in {"D3": distance.numpy(), "L2": curve.losses["L2"]}.items():
        for (i, r), value in np.ndenumerate(values):
            yield Row(
                quantity,
                float(value),
                n=float(setting.sizes[i]),
                replicate=r,
                converged=bool(curve.converged[i, r]),
                at_box=bool(curve.at_box[i, r]),
            )


def judge(results: Results) -> list[Finding]:
    return [_finding(cell, radius, results) for cell in CELLS for radius in RADII]


@dataclass(frozen=True)
class ProjectionEvidence:
    """The evidence for the verdict on a cell; shares are those of the worst truth."""

    rate: Slope
    found: float
    converged: float
    floors: list[float]


def _seen(late: Sequence[Measured]) -> ProjectionEvidence:
    return ProjectionEvidence(
        slope_of(late, "D3"),
        min(_each(late, "found")),
        min(of_truth.share("D3") for of_truth in late),
        _each(late, "floor"),
    )


def _each(measured: Sequence[Measured], quantity: str) -> list[float]:
    return [float(of_truth.values(quantity)[0]) for of_truth in measured]


def _verdict(seen: ProjectionEvidence) -> tuple[str, str]:
    """The verdict by ``RULE``."""
    if seen.found < FEWEST_FOUND:
        return verdict.UNDECIDED, f"only {seen.found:.0%} of the starts found a truth's minimisers"
    if seen.converged < verdict.FEWEST_CONVERGED:
        return verdict.UNDECIDED, f"only {seen.converged:.0%} of the fits converged"
    word, because = verdict.against(seen.rate, -0.5)
    low, high = min(seen.floors), max(seen.floors)
    return word, f"{because}, towards functions {low:.2g} to {high:.2g} away from the truths"


def _finding(cell: Cell, radius: float, results: Results) -> Finding:
    late = results[_name(cell, radius), "late"]
    seen = _seen(late)
    word, because = _verdict(seen)
    minimisers = "/".join(f"{count:g}" for count in _each(late, "minimisers"))
    return Finding(
        _name(cell, radius),
        "D3: n^-0.5",
        f"D3 {seen.rate}, L2 to the truth {slope_of(late, 'L2').value:+.2f}",
        word,
        because,
        f"minimisers {minimisers}, found by {seen.found:.0%}, at the box "
        f"{np.mean(_each(late, 'leaning')):.0%}, converged {seen.converged:.0%}",
    )


def draw(results: Results) -> Figure:
    """A panel an expert and score: D3 by radius, and the distance of the function to the truth."""
    figure, axes = panels(len(CELLS), columns=4)
    for axis, cell in zip(axes, CELLS, strict=True):
        axis.set_title(f"{cell.expert}, {cell.score.replace('_', ' ')} score")
        for radius, colour in zip(RADII, ("#0072b2", "#d55e00"), strict=True):
            late = results[_name(cell, radius), "late"]
            for quantity, dashed in (("D3", False), ("L2", True)):
                grids = [of_truth.grid(quantity) for of_truth in late]
                values = np.concatenate([values for _, values in grids], axis=-1)
                fitted = slope_of(late, quantity)
                label = f"{quantity}, radius {radius:g}: {fitted.value:+.2f}"
                loglog(
                    axis, grids[0][0], values, label, slope=fitted.value, colour=colour,
                    dashed=dashed,
                )  # fmt: skip
    return figure


STUDY = Study(
    "pseudo_true",
    "Regime 2 and its projection",
    "In regime 2 all parameters converge at n^-1/2 to those of the projection of the truth.",
    "Nguyen et al. 2024, theorem 5 (D3); Yan et al. 2025, theorem 3",
    RULE,
    tasks,
    judge,
    draw,
)
