"""Study of the effect of the optimiser on slopes: fixed epochs of SGD against least squares.

Shape letters: B fits, P parameters, N sample sizes, R replicates, T truths.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sigmoid_attention.lab.figure import loglog, panels
from sigmoid_attention.lab.statistics import ONE_SIDE
from sigmoid_attention.lab.study import Finding, Measured, Results, Row, Study, Task
from sigmoid_attention.mixtures import gates
from sigmoid_attention.mixtures.data import Samples
from sigmoid_attention.mixtures.equivalence import shift_scores
from sigmoid_attention.mixtures.rates.measure import UNIT_WITHOUT_NOISE, continuous_data, losses_of
from sigmoid_attention.mixtures.rates.setting import RateSetting, box, draw_truth, start
from sigmoid_attention.mixtures.rates.slopes import Slope, slope
from sigmoid_attention.mixtures.rates.verdict import (
    BEND,
    DEPENDS_ON_THE_START,
    MARGIN,
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
)
from sigmoid_attention.mixtures.solver import Fit, minimise
from sigmoid_attention.mixtures.stochastic import StochasticRecipe, paper_mode
from sigmoid_attention.mixtures.voronoi import TrueMixture
from sigmoid_attention.studies.mixtures.truths import HELD_OUT

SIZES = tuple(round(10 ** (2 + i / 2)) for i in range(5))  # 1e2 .. 1e4
REPLICATES = 3
# The largest chi2 above the least-squares estimate at which a fit still counts as that estimate.
CLOSE = 1.0


@dataclass(frozen=True)
class SensitivitySetting:
    """A setting of a rate study with continuous inputs, and its recipe; None for the solver."""

    setting: RateSetting
    recipe: StochasticRecipe | None = None


def measure(trained: SensitivitySetting) -> Iterator[Row]:
    """The losses and chi2 of every fit; data depend on the setting and not on the recipe."""
    setting = trained.setting
    truth = draw_truth(setting)
    rng = torch.Generator().manual_seed(setting.seed + 1)
    for n, data in continuous_data(setting):
        begin = torch.stack([start(setting, truth, rng) for _ in range(setting.replicates)])
        fit = _fit(trained, data, begin, truth)
        theta = _with_reference(setting, fit.theta_BP, truth)
        losses = losses_of(setting.family, theta, truth, setting.inputs_Qd)
        measured = {"D2": losses["D2"], "L2": losses["L2"], "chi2": fit.chi2_B}
        for quantity, values in measured.items():
            for replicate, value in enumerate(values.tolist()):
                done = bool(fit.converged_B[replicate])
                yield Row(quantity, value, n=n, replicate=replicate, converged=done)


def _fit(trained: SensitivitySetting, data: Samples, begin_BP: Tensor, truth: TrueMixture) -> Fit:
    setting, family = trained.setting, trained.setting.family
    unit = setting.sigma or UNIT_WITHOUT_NOISE
    if trained.recipe is None:
        return minimise(family, data, begin_BP, sigma=unit, box=box(setting, truth))
    return paper_mode(family, data, begin_BP, sigma=unit, recipe=trained.recipe, seed=setting.seed)


def _with_reference(setting: RateSetting, theta_BP: Tensor, truth: TrueMixture) -> Tensor:
    """The same functions, with the last expert's score set to the true one under shift-blind gates.

    Training moves that score together with the others; a loss of parameters must not count this.
    """
    if not gates.gate(setting.gate).shift:
        return theta_BP
    size = setting.family.score_size
    by_BF = truth.atoms[-1, :size] - setting.family.atoms(theta_BP)[:, -1, :size]
    return shift_scores(setting.family, theta_BP, by_BF)


# Verdicts -------------------------------------------------------------------------------------

RULE = f"""All fits start near {len(HELD_OUT)} truths with one expert too many, and have the same
data. The slope is that of the median loss D2 on log n, averaged over truths, with Student's
interval over truths. A recipe's line is *{REPRODUCED}* if at every n and truth half of its fits
lie no more than {CLOSE:g} chi2 above the least-squares fit to the same data: then it is that
estimate. Else *{NOT_REPRODUCED}* if its slope's interval lies more than {BEND:g} away from that of
least squares, and *{UNDECIDED}* if not. The line of all recipes is *{DEPENDS_ON_THE_START}* if the
intervals of two of them, which differ in nothing but how they start and step, lie more than
{BEND:g} apart, *{REPRODUCED}* if all their intervals lie within {MARGIN:g} of each other, else
*{UNDECIDED}*."""


def judge(results: Results) -> list[Finding]:
    """For each family a line for every recipe and one for all of them together."""
    findings = []
    for cell in dict.fromkeys(cell for cell, _ in results):
        of = {part: truths for (named, part), truths in results.items() if named == cell}
        recipes = [part for part in of if part != LEAST_SQUARES and not part.endswith(NOISELESS)]
        lines = [_finding(cell, part, of) for part in recipes]
        findings += [*lines, _together(cell, [_slope(of[part], "D2") for part in recipes])]
    return findings


def verdict_of(missed: float, measured: Slope, least_squares: Slope) -> str:
    """The rule for one recipe, from the chi2 above least squares at worst and the slopes."""
    if missed <= CLOSE:
        return REPRODUCED
    return NOT_REPRODUCED if measured.apart(least_squares) > BEND else UNDECIDED


def _finding(cell: str, part: str, of: dict[str, Sequence[Measured]]) -> Finding:
    measured, least_squares = _slope(of[part], "D2"), _slope(of[LEAST_SQUARES], "D2")
    missed = _missed(of[part], of[LEAST_SQUARES])
    noiseless = of.get(f"{part}{NOISELESS}")
    because = f"lies up to {missed:.2g} chi2 above least squares, whose slope is {least_squares}"
    if noiseless:
        because += f"; without any noise the slope is {_slope(noiseless, 'D2')}"
    lost = np.mean([np.isinf(of_truth.values("chi2")).mean() for of_truth in of[part]])
    return Finding(
        f"{cell}, {part}",
        "the slope is that of least squares",
        f"D2 {measured}, L2 {_slope(of[part], 'L2')}",
        verdict_of(missed, measured, least_squares),
        because,
        f"diverged {lost:.0%}",
        ONE_SIDE if missed > CLOSE else None,
    )


def _together(cell: str, slopes: Sequence[Slope]) -> Finding:
    gap = max(first.apart(second) for first in slopes for second in slopes)
    widest = max(each.high for each in slopes) - min(each.low for each in slopes)
    alike = REPRODUCED if widest <= MARGIN else UNDECIDED
    low, high = min(first.value for first in slopes), max(first.value for first in slopes)
    return Finding(
        f"{cell}, all recipes",
        "the slope is the same however one starts and steps",
        f"D2 from {low:+.2f} to {high:+.2f}",
        DEPENDS_ON_THE_START if gap > BEND else alike,
        f"two recipes' intervals lie {gap:.2f} apart, all of them within {widest:.2f}",
    )


def _grid(
    measured: Measured, quantity: str, diverged: float = np.nan
) -> tuple[list[float], np.ndarray]:
    """Sizes, and values (N, R) at the end of training, without a test of convergence."""
    rows = [row for row in measured.rows if row.quantity == quantity]
    sizes = sorted({row.n for row in rows})
    values = [[row.value for row in rows if row.n == n] for n in sizes]
    found = np.array(values)
    return sizes, np.where(np.isfinite(found), found, diverged)


def _slope(truths: Sequence[Measured], quantity: str) -> Slope:
    grids = [_grid(of_truth, quantity) for of_truth in truths]
    return slope(grids[0][0], np.stack([values for _, values in grids]))


def _missed(truths: Sequence[Measured], least_squares: Sequence[Measured]) -> float:
    """The largest over sizes and truths of the median chi2 above least squares on the same data.

    Diverged training counts as infinite; data without a converged least-squares fit are left out.
    """
    medians = []
    for of_truth, reference in zip(truths, least_squares, strict=True):
        _, best = reference.grid("chi2")
        _, reached = _grid(of_truth, "chi2", diverged=np.inf)
        medians.extend(np.nanmedian(reached - best, axis=1))
    return float(max(medians))


# Tasks and figure -----------------------------------------------------------------------------

LEAST_SQUARES, NOISELESS = "least squares", ", no noise"
BASE = StochasticRecipe("sgd", learning_rate=0.1, epochs=10, batch=128)
USUAL_JITTER = 0.1
# The name of each recipe, its training, the distance of its start from the truth, and True if it
# also runs without noise.
RECIPES: tuple[tuple[str, StochasticRecipe, float, bool], ...] = (
    ("SGD", BASE, USUAL_JITTER, True),
    ("SGD, a fifth of the rate", replace(BASE, learning_rate=0.02), USUAL_JITTER, True),
    ("SGD, three times the epochs", replace(BASE, epochs=30), USUAL_JITTER, False),
    ("SGD, start five times nearer", BASE, USUAL_JITTER / 5, False),
    ("SGD, start five times farther", BASE, USUAL_JITTER * 5, False),
    (
        "Adam",
        StochasticRecipe("adam", learning_rate=0.01, epochs=10, batch=128),
        USUAL_JITTER,
        True,
    ),
)
FAMILIES = (("softmax", "gelu"), ("sigmoid", "relu"))


def tasks() -> list[Task]:
    """Both families by least squares and by every recipe."""
    tasks = []
    for gate_name, expert in FAMILIES:
        cell = f"{gate_name} {expert}"
        for truth_seed in HELD_OUT:
            plain = RateSetting(
                gate_name, expert, sizes=SIZES, replicates=REPLICATES, jitter=USUAL_JITTER,
                truth_seed=truth_seed,
            )  # fmt: skip
            tasks.append(Task(cell, LEAST_SQUARES, SensitivitySetting(plain), measure))
            for name, recipe, jitter, also_noiseless in RECIPES:
                setting = replace(plain, jitter=jitter)
                work = recipe.epochs / 5
                tasks.append(Task(cell, name, SensitivitySetting(setting, recipe), measure, work))
                if also_noiseless:
                    silent = SensitivitySetting(replace(setting, sigma=0.0), recipe)
                    tasks.append(Task(cell, f"{name}{NOISELESS}", silent, measure, work))
    return tasks


def draw(results: Results) -> Figure:
    """D2 against n, a panel a family: least squares, and training with noise and without."""
    cells = list(dict.fromkeys(cell for cell, _ in results))
    figure, axes = panels(len(cells))
    for axis, cell in zip(axes, cells, strict=True):
        axis.set_title(f"{cell}, one expert too many")
        axis.set_ylabel("Voronoi loss D2")
        for part in (LEAST_SQUARES, "SGD", f"SGD{NOISELESS}"):
            truths = results[cell, part]
            grids = [_grid(of_truth, "D2") for of_truth in truths]
            values = np.concatenate([losses for _, losses in grids], axis=1)
            fitted = _slope(truths, "D2")
            label = f"{part} {fitted.value:+.2f}"
            loglog(axis, np.array(grids[0][0]), values, label, slope=fitted.value)
    return figure


STUDY = Study(
    "sensitivity",
    "Sensitivity to start and step size",
    "The papers estimate by SGD from starts near the truth and read rates off the slopes. Nguyen "
    "et al. 2024 have a rate of 0.1 and 10 epochs; the batch and the distance of the start are not "
    "given. The recipes here vary all of these in two dimensions; "
    "[the paper's own setting](#paper_protocol) is a study of its own. A fixed number of epochs "
    "makes more steps for a larger n, so that a loss falls with n even where there is no noise to "
    "average out.",
    "Nguyen et al. 2024, experiments; Yan et al. 2025, experiments",
    RULE,
    tasks,
    judge,
    draw,
)
