"""Regime 2 of Nguyen et al. 2024: rates towards the projection instead of the truth.

According to Nguyen et al. 2024, no fitted mixture equals the truth if the gate of an over-specified
expert depends on the input, so fits converge to the nearest mixture. But a fit can still equal the
truth: one gate may be zero, or an expert may be split into two with the same sum. Here a box keeps
parameters near the truth with its first expert repeated, where both are impossible. D3 is the
distance to the set of minimisers in that box.
"""

from collections.abc import Iterator, Sequence

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
from sigmoid_attention.mixtures.rates.power import by_chance, power_sentence
from sigmoid_attention.mixtures.rates.setting import RateSetting
from sigmoid_attention.mixtures.rates.slopes import Slope
from sigmoid_attention.studies.mixtures.cells import Cell, slope_of

RADII = (0.3, 0.5)
STARTS = 8
SIZES = (10**4, 10**6, 10**8)
REPLICATES = 8
# A minimiser found by fewer of the starts does not count as the global one.
FEWEST_FOUND = 0.1
# A projection nearer to the truth than this is the truth itself, which the box then holds.
IS_THE_TRUTH = 1e-9
FEWEST_TRUTHS = 5

CELLS = tuple(
    Cell("sigmoid", expert, score, claim=-0.5, quantity="D3")
    for score in ("linear", "partially_quadratic")
    for expert in ("relu", "gelu", "tanh", "linear")
)

RULE = f"""Parameters are held within a radius of {" and of ".join(map(str, RADII))} around the
truth with its first expert repeated; the minimisers there come from 64 starts without noise. D3 is
the distance of the best of {STARTS} fits to the nearest minimiser. Truths whose projection is the
truth itself (floor below {IS_THE_TRUTH:g}), which no part of the claim is about, are judged apart
from those whose projection is another function. A truth of whose 64 starts fewer than
{FEWEST_FOUND:.0%} ended at its best minimisers is left out. Fewer than {FEWEST_TRUTHS} truths left,
or fewer than {verdict.FEWEST_CONVERGED:.0%} converged fits: *{verdict.UNDECIDED}*. The slope is
that of n = 1e4 to 1e8, with Student's interval over truths. All of the interval within
{verdict.MARGIN:g} of -1/2: *{verdict.REPRODUCED}*; all of it farther away:
*{verdict.NOT_REPRODUCED}*; otherwise *{verdict.UNDECIDED}*. The floor is how far the function that
fits converge to is from the truth. There is no control without noise here: which inputs are drawn
moves a misspecified fit as well. Nor is there one on the box: the minimisers lie at its wall by
construction."""


def _name(cell: Cell, radius: float) -> str:
    return f"{cell.name}, radius {radius:g}"


def tasks() -> list[Task]:
    tasks = []
    for cell in CELLS:
        for radius in RADII:
            for seed in cell.truths:
                setting = cell.setting(
                    seed, radius=radius, starts=STARTS, seed=9000 + seed, sizes=SIZES,
                    replicates=REPLICATES,
                )  # fmt: skip
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
    """A line for the truths of each kind: those that the box holds, and those that it does not."""
    return [
        _finding(name, kind, chosen)
        for name in _names()
        for kind, chosen in _by_kind(results[name, "late"]).items()
        if chosen
    ]


def _names() -> list[str]:
    return [_name(cell, radius) for cell in CELLS for radius in RADII]


def _by_kind(truths: Sequence[Measured]) -> dict[str, list[Measured]]:
    kinds: dict[str, list[Measured]] = {"another function": [], "the truth itself": []}
    for truth in truths:
        held = _one(truth, "floor") < IS_THE_TRUTH
        kinds["the truth itself" if held else "another function"].append(truth)
    return kinds


def _one(measured: Measured, quantity: str) -> float:
    return float(measured.values(quantity)[0])


def _verdict(truths: Sequence[Measured], rate: Slope) -> tuple[str, str]:
    """The verdict by ``RULE`` on the truths of one kind whose minimisers were found."""
    if len(truths) < FEWEST_TRUTHS:
        return (
            verdict.UNDECIDED,
            f"{len(truths)} of the {FEWEST_TRUTHS} truths that a verdict needs",
        )
    converged = float(np.mean([truth.share("D3") for truth in truths]))
    if converged < verdict.FEWEST_CONVERGED:
        return verdict.UNDECIDED, f"only {converged:.0%} of the fits converged"
    return verdict.against(rate, -0.5)


def _rate(truths: Sequence[Measured], quantity: str) -> Slope:
    return slope_of(truths, quantity) if truths else NO_SLOPE


NO_SLOPE = Slope(float("nan"), float("nan"), float("nan"))


def _finding(name: str, kind: str, truths: Sequence[Measured]) -> Finding:
    found = [truth for truth in truths if _one(truth, "found") >= FEWEST_FOUND]
    rate = _rate(found, "D3")
    word, because = _verdict(found, rate)
    floors = [_one(truth, "floor") for truth in truths]
    minimisers = "/".join(f"{_one(truth, 'minimisers'):g}" for truth in truths)
    decided = because == verdict.against(rate, -0.5)[1]
    return Finding(
        f"{name}: projection is {kind}",
        "D3: n^-0.5",
        f"D3 {rate}, L2 to the truth {_rate(found, 'L2').short}",
        word,
        f"{because}, towards functions {min(floors):.2g} to {max(floors):.2g} away from the truths",
        f"{len(found)} of {len(truths)} truths, minimisers {minimisers}, found by "
        f"{min(_one(truth, 'found') for truth in truths):.0%} or more, at the box "
        f"{np.mean([_one(truth, 'leaning') for truth in truths]):.0%}, converged "
        f"{np.mean([truth.share('D3') for truth in truths]):.0%}",
        by_chance(rate) if decided else None,
    )


def _power(results: Results) -> str:
    kinds = [_by_kind(results[name, "late"])["another function"] for name in _names()]
    return power_sentence([slope_of(truths, "D3") for truths in kinds if truths])


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
    _power,
)
