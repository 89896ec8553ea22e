"""Study of a learned temperature: inner-product scores against Euclidean scores.

Shape letters: B fits, P parameters, k experts, d dimension, N sample sizes, R replicates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sigmoid_attention.lab.figure import loglog, panels
from sigmoid_attention.lab.study import Finding, Measured, Results, Row, Study, Task
from sigmoid_attention.mixtures import gates
from sigmoid_attention.mixtures.data import FiniteDesign
from sigmoid_attention.mixtures.identifiability import jacobian_rank
from sigmoid_attention.mixtures.model import Mixture, free_parameters
from sigmoid_attention.mixtures.rates.power import by_chance
from sigmoid_attention.mixtures.rates.setting import RateSetting, check_nodes, draw_truth
from sigmoid_attention.mixtures.rates.slopes import Slope, factor_over_truths, slope
from sigmoid_attention.mixtures.rates.verdict import (
    MARGIN,
    NOT_IDENTIFIABLE,
    NOT_REPRODUCED,
    PRE_ASYMPTOTIC,
    REPRODUCED,
    UNDECIDED,
    against,
)
from sigmoid_attention.mixtures.solver import ParameterBox, chi2, minimise
from sigmoid_attention.mixtures.voronoi import l2
from sigmoid_attention.studies.mixtures.truths import HELD_OUT

GATES = ("sigmoid", "normalised_sigmoid", "softmax")
SCORES = ("linear", "euclidean")
SIZES = tuple(round(10 ** (4 + 4 * i / 9)) for i in range(10))
FAR = 5.0


@dataclass(frozen=True)
class TemperatureSetting:
    """A fit with as many experts as the truth, with or without a learned temperature (truly 1)."""

    gate: str
    score: str
    temperature: bool = True
    expert: str = "gelu"
    d: int = 2
    k: int = 2
    sigma: float = 0.1
    jitter: float = 0.1
    nodes: int = 256
    sizes: tuple[int, ...] = SIZES
    replicates: int = 8
    truth_seed: int = 0
    half_width: float = 15.0

    def __post_init__(self) -> None:
        family = Mixture(self.gate, self.expert, self.score, self.k, self.d, self.temperature)
        check_nodes(self.nodes, family)


def measure(setting: TemperatureSetting) -> Iterator[Row]:
    """The rank at the truth, and the parameter errors of every fit near it."""
    family, truth_P = _truth(setting)
    design = FiniteDesign.sobol(setting.nodes, d=setting.d)
    truth_Q = family.predict(truth_P, design.inputs_Qd)
    free = free_parameters(family)
    rank = jacobian_rank(family, truth_P, design.inputs_Qd, free)
    yield Row("missing", float(rank.missing))
    yield Row("columns", float(rank.columns))
    yield Row("smallest", rank.smallest)

    sizes = [n for n in setting.sizes for _ in range(setting.replicates)]
    data = design.draw(truth_Q, sizes, sigma=setting.sigma, seed=setting.truth_seed)
    rng = torch.Generator().manual_seed(setting.truth_seed)
    jitter = torch.randn(len(sizes), family.size, generator=rng, dtype=torch.float64)
    box = ParameterBox.around_zero(family.size, setting.half_width).pinned(~free, truth_P[~free])
    fit = minimise(
        family, data, truth_P + setting.jitter * jitter * free, sigma=setting.sigma, box=box
    )
    at_truth = chi2(family, data, truth_P.expand(len(sizes), -1), setting.sigma)
    measured = {
        "parameters": (fit.theta_BP - truth_P).abs().sum(-1),
        "slopes over temperature": _slopes_apart(family, fit.theta_BP, truth_P),
        "temperature": fit.theta_BP[:, -1].abs(),
        "L2": l2(family, fit.theta_BP, truth_Q, design.inputs_Qd),
        "gain": at_truth - fit.chi2_B,
    }
    if not setting.temperature:
        del measured["temperature"]
    for quantity, values in measured.items():
        for problem, value in enumerate(values.tolist()):
            yield Row(
                quantity, value, n=sizes[problem], replicate=problem % setting.replicates,
                converged=bool(fit.converged_B[problem]), at_box=bool(fit.at_box_B[problem]),
            )  # fmt: skip


def _truth(setting: TemperatureSetting) -> tuple[Mixture, Tensor]:
    """The family, and a well conditioned truth with temperature 1, (P,)."""
    of_scores = RateSetting(
        setting.gate, setting.expert, setting.score, d=setting.d, k=setting.k, extra=0,
        nodes=setting.nodes, truth_seed=setting.truth_seed,
    )  # fmt: skip
    truth = draw_truth(of_scores)
    if not setting.temperature:
        return truth.family, truth.theta_P
    return replace(truth.family, temperature=True), torch.cat(
        (truth.theta_P, truth.theta_P.new_zeros(1))
    )


def _slopes_apart(family: Mixture, theta_BP: Tensor, truth_P: Tensor) -> Tensor:
    """The error of the slopes of all scores, divided by the temperature, (B,).

    Under a gate that ignores a common shift, the slopes of the last expert are subtracted first.
    """
    scale = theta_BP[:, -1:, None].neg().exp() if family.temperature else 1.0
    fitted, true = (
        family.atoms(theta)[..., : family.score_size - 1] for theta in (theta_BP, truth_P)
    )
    if gates.gate(family.gate).shift:
        fitted, true = fitted - fitted[..., -1:, :], true - true[..., -1:, :]
    return (fitted * scale - true).abs().sum((-2, -1))


# Verdicts -------------------------------------------------------------------------------------

RULE = f"""As many experts are fitted as the truth has, starting near it, for
{len(HELD_OUT)} truths. The loss is the sum of the absolute errors of all parameters, the
temperature's logarithm among them.
*{NOT_IDENTIFIABLE}*: the Jacobian at a truth lacks rank, so that no sample size finds them all.
Else, from the slope of the median loss on log n over n = {SIZES[0]:.0e} to {SIZES[-1]:.0e}, with
Student's interval over truths: *{REPRODUCED}* if the whole interval lies within {MARGIN:g} of -1/2;
if all of it lies farther away, *{PRE_ASYMPTOTIC}* if over the larger half of the sizes the interval
lies within {MARGIN:g}, else *{NOT_REPRODUCED}*; *{UNDECIDED}* otherwise."""
CLAIMS = {
    "linear": "exponentially many samples (slower than any power of n)",
    "euclidean": "polynomially many samples (n^-1/2 with the right number of experts)",
}


def judge(results: Results) -> list[Finding]:
    """A line for each gate and score, with the same score without a temperature beside it."""
    findings = []
    for cell in dict.fromkeys(cell for cell, _ in results):
        of = {part: truths for (named, part), truths in results.items() if named == cell}
        findings.append(_finding(cell, of["estimated"], of["far start"], of["held"]))
    return findings


def verdict_of(missing: int, all_sizes: Slope, later: Slope) -> str:
    """The rule, from the rank deficiency of the Jacobian and the slopes."""
    if missing:
        return NOT_IDENTIFIABLE
    word = against(all_sizes, -0.5)[0]
    return PRE_ASYMPTOTIC if word == NOT_REPRODUCED and later.within(-0.5, MARGIN) else word


def _finding(
    cell: str, truths: Sequence[Measured], far: Sequence[Measured], held: Sequence[Measured]
) -> Finding:
    missing = int(max(of_truth.values("missing")[0] for of_truth in truths))
    columns = int(truths[0].values("columns")[0])
    all_sizes = _slope(truths, "parameters")
    later = _slope(truths, "parameters", from_place=len(truths[0].grid("L2")[0]) // 2)
    without = _slope(held, "parameters")
    scaled = _slope(truths, "slopes over temperature")
    smallest = min(of_truth.values("smallest")[0] for of_truth in held)
    start = factor_over_truths(
        [_at_largest(other) / _at_largest(truth) for truth, other in zip(truths, far, strict=True)]
    )
    gains = [row.value for of_truth in truths for row in of_truth.rows
             if row.quantity == "gain" and row.converged]  # fmt: skip
    if missing:
        because = (
            f"{missing} of {columns} directions cannot be seen by any data; starting {FAR:g} times "
            f"farther away makes the loss {start.value:.2g} [{start.low:.2g}, {start.high:.2g}] "
            f"times as large"
        )
    else:
        conditioning = min(of_truth.values("smallest")[0] for of_truth in truths)
        because = (
            f"full rank ({columns}); least relative singular value {conditioning:.1e}, without a "
            f"temperature {smallest:.1e}"
        )
    return Finding(
        cell,
        CLAIMS[cell.split(", ")[1].removesuffix(" score")],
        f"parameters {all_sizes}; slopes over temperature {scaled}; "
        f"without a temperature, parameters {without}",
        verdict_of(missing, all_sizes, later),
        because,
        f"converged {min(of_truth.share('L2') for of_truth in truths):.0%}, "
        f"median gain {np.median(gains):.1f} of {scipy.stats.chi2.median(_free(truths)):.1f}",
        None if missing else by_chance(all_sizes),
    )


def _free(truths: Sequence[Measured]) -> int:
    return int(truths[0].values("columns")[0] - truths[0].values("missing")[0])


def _slope(truths: Sequence[Measured], quantity: str, from_place: int = 0) -> Slope:
    grids = [of_truth.grid(quantity) for of_truth in truths]
    sizes = grids[0][0][from_place:]
    return slope(sizes.tolist(), np.stack([values[from_place:] for _, values in grids]))


def _at_largest(measured: Measured) -> float:
    return float(np.nanmedian(measured.grid("parameters")[1][-1]))


# Tasks and figure -----------------------------------------------------------------------------


def tasks() -> list[Task]:
    """Every gate with every score: temperature estimated, fixed, and estimated from far starts."""
    tasks = []
    for gate in GATES:
        for score in SCORES:
            cell = f"{gate.replace('_', ' ')}, {score} score"
            for seed in HELD_OUT:
                plain = TemperatureSetting(gate, score, truth_seed=seed)
                far = replace(plain, jitter=FAR * plain.jitter, sizes=SIZES[-1:])
                held = replace(plain, temperature=False)
                tasks += [
                    Task(cell, "estimated", plain, measure),
                    Task(cell, "far start", far, measure, work=0.2),
                    Task(cell, "held", held, measure),
                ]
    return tasks


def draw(results: Results) -> Figure:
    """The loss of all parameters against n, a panel a gate, a line a score."""
    figure, axes = panels(len(GATES))
    for axis, gate in zip(axes, GATES, strict=True):
        named = gate.replace("_", " ")
        axis.set_title(f"{named} gate")
        axis.set_ylabel("error of all parameters")
        for score in SCORES:
            truths = results[f"{named}, {score} score", "estimated"]
            grids = [of_truth.grid("parameters") for of_truth in truths]
            values = np.concatenate([errors for _, errors in grids], axis=1)
            fitted = _slope(truths, "parameters")
            label = f"{score} {fitted.value:+.2f}"
            loglog(axis, grids[0][0], values, label, slope=fitted.value)
    return figure


STUDY = Study(
    "temperature",
    "Euclidean against inner-product scores with a temperature",
    "With a temperature in the gate, an inner-product score makes the sample complexity "
    "exponential, because the temperature interacts with the gate's other parameters; a Euclidean "
    "score removes that, and the complexity is polynomial. The paper states it for a modified "
    "sigmoid gate in classification, whose exact form was not recovered: here the gates are "
    "sigmoid, normalised sigmoid and softmax, in regression.",
    "Pham et al. 2026, abstract",
    RULE,
    tasks,
    judge,
    draw,
)
