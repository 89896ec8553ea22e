"""Rates in classification: multinomial-logistic mixtures, exactly specified and over-specified.

Shape letters: B fits, P parameters, Q inputs, S classes, k fitted experts, t true experts, N sample
sizes, R replicates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sigmoid_attention.lab.figure import loglog, panels
from sigmoid_attention.lab.study import Finding, Measured, Results, Row, Study, Task
from sigmoid_attention.mixtures.classification import (
    LogisticDeviance,
    LogisticMixture,
    hellinger,
    maximise_likelihood,
)
from sigmoid_attention.mixtures.data import FiniteDesign
from sigmoid_attention.mixtures.identifiability import SEEN
from sigmoid_attention.mixtures.labels import LabelCounts, draw_labels
from sigmoid_attention.mixtures.model import Mixture
from sigmoid_attention.mixtures.rates.power import by_chance, power_sentence
from sigmoid_attention.mixtures.rates.slopes import (
    Slope,
    factor_over_truths,
    over_truths,
    slope,
    slopes_of_truths,
)
from sigmoid_attention.mixtures.rates.verdict import (
    BEND,
    DEPENDS_ON_THE_START,
    FEWEST_CONVERGED,
    MARGIN,
    MOST_AT_BOX,
    NOT_IDENTIFIABLE,
    NOT_REPRODUCED,
    PRE_ASYMPTOTIC,
    REPRODUCED,
    START_FACTOR,
    UNDECIDED,
    against,
    start_doubt,
    start_verdict,
)
from sigmoid_attention.mixtures.solver import ParameterBox
from sigmoid_attention.studies.mixtures.truths import HELD_OUT

GATES = ("softmax", "normalised_sigmoid", "sigmoid")
EARLY = (10**4, 10**5, 10**6)
LATE = (10**7, 10**8, 10**9)
CANDIDATES = 100
NEAR, FAR = 0.01, 0.5


@dataclass(frozen=True)
class ClassificationSetting:
    """A truth with k experts, fitted with k + extra; the first true expert is over-specified."""

    gate: str
    extra: int = 0
    expert: str = "gelu"
    classes: int = 3
    d: int = 2
    k: int = 2
    jitter: float = 0.1
    nodes: int = 256
    sizes: tuple[int, ...] = EARLY
    replicates: int = 8
    truth_seed: int = 0
    seed: int = 0
    half_width: float = 15.0

    def __post_init__(self) -> None:
        # A node has as many free logits as there are classes beyond the first.
        if self.nodes * (self.classes - 1) < self.family.size:
            raise ValueError(
                f"nodes times classes - 1 must be at least the {self.family.size} parameters, "
                f"got {self.nodes * (self.classes - 1)}"
            )

    @property
    def truth_family(self) -> LogisticMixture:
        return LogisticMixture(Mixture(self.gate, self.expert, k=self.k, d=self.d), self.classes)

    @property
    def family(self) -> LogisticMixture:
        logit = replace(self.truth_family.logit, k=self.k + self.extra)
        return LogisticMixture(logit, self.classes)


def measure(setting: ClassificationSetting) -> Iterator[Row]:
    """Maximum likelihood near the truth: the errors of its laws and of its parameters."""
    design = FiniteDesign.sobol(setting.nodes, d=setting.d)
    truth_P, smallest = draw_truth(setting.truth_family, setting.nodes, setting.truth_seed)
    yield Row("smallest", smallest)
    law_QS = setting.truth_family.probabilities(truth_P, design.inputs_Qd)
    sizes = [n for n in setting.sizes for _ in range(setting.replicates)]
    data = draw_labels(design, law_QS, sizes, seed=setting.seed)

    family, whole_P = setting.family, _repeated(setting, truth_P)
    free = family.free_P
    yield Row("free", float(free.sum()))
    rng = torch.Generator().manual_seed(setting.seed + 1)
    jitter = torch.randn(len(sizes), family.size, generator=rng, dtype=torch.float64)
    box = ParameterBox.around_zero(family.size, setting.half_width).pinned(~free, whole_P[~free])
    fit = maximise_likelihood(family, data, whole_P + setting.jitter * jitter * free, box=box)

    at_truth = LogisticDeviance(setting.truth_family, data).cost(
        truth_P.expand(len(sizes), -1), torch.arange(len(sizes))
    )
    gain = at_truth - fit.chi2_B
    # A fit below the likelihood of the truth, a member of the family, is not an estimate.
    sound = fit.converged_B & (gain >= 0)
    measured = {
        "hellinger": hellinger(family, fit.theta_BP, law_QS, design.inputs_Qd),
        **losses(family, fit.theta_BP, setting.truth_family.atoms(truth_P)),
        "gain": gain,
    }
    for quantity, values in measured.items():
        for problem, value in enumerate(values.tolist()):
            yield Row(
                quantity, value, n=sizes[problem], replicate=problem % setting.replicates,
                converged=bool(sound[problem]), at_box=bool(fit.at_box_B[problem]),
            )  # fmt: skip


@lru_cache(maxsize=64)
def draw_truth(family: LogisticMixture, nodes: int, seed: int) -> tuple[Tensor, float]:
    """The best conditioned of some random truths, (P,), and its relative least singular value.

    The singular values are those of the square root of the expected information, with columns of
    length one.
    """
    inputs_Qd = FiniteDesign.sobol(nodes, d=family.logit.d).inputs_Qd
    rng = torch.Generator().manual_seed(seed)
    atoms = torch.randn(CANDIDATES, family.k, family.atom_size, generator=rng, dtype=torch.float64)
    atoms[..., : family.score_size - 1] *= 2.0
    atoms[..., family.score_size - 1] *= 0.5
    atoms[..., family.score_size :] *= 3.0
    theta_CP = atoms.flatten(1)
    even = torch.full((CANDIDATES, nodes), 1.0 / nodes, dtype=torch.float64)
    nothing_seen = LabelCounts(inputs_Qd, family.probabilities(theta_CP, inputs_Qd), even)
    information, _ = LogisticDeviance(family, nothing_seen).quadratic(
        theta_CP, torch.arange(CANDIDATES)
    )
    information = information[:, family.free_P][:, :, family.free_P]
    norm = information.diagonal(dim1=-2, dim2=-1).sqrt()
    values = torch.linalg.eigvalsh(information / norm[:, :, None] / norm[:, None, :])
    smallest = (values[:, 0].clamp(min=0) / values[:, -1]).sqrt()
    best = int(smallest.argmax())
    return theta_CP[best], float(smallest[best])


def _repeated(setting: ClassificationSetting, truth_P: Tensor) -> Tensor:
    """The true experts with the first one repeated, its weight shared by the copies, (P,).

    Copies come first, so the last expert stays the reference of a shift-blind gate.
    """
    atoms, copies = setting.truth_family.atoms(truth_P), 1 + setting.extra
    first, intercept = atoms[0].clone(), setting.family.score_size - 1
    if setting.gate == "softmax":
        first[intercept] -= np.log(copies)
    else:
        first[intercept] = torch.logit(first[intercept].sigmoid() / copies)
    return torch.cat((first.expand(copies, -1), atoms[1:])).flatten()


def losses(family: LogisticMixture, theta_BP: Tensor, true_tF: Tensor) -> dict[str, Tensor]:
    """The errors of each fit, (B,), in cells of one expert, and the largest in cells of several.

    A cell holds the fitted experts nearest to a true one in all parameters but the intercept.
    "over" is the error of the expert's own parameters and not of its score.
    """
    atoms_BkF = family.atoms(theta_BP)
    intercept = family.score_size - 1
    apart_BktF = atoms_BkF[..., :, None, :] - true_tF
    apart_BktF[..., intercept] = 0.0
    cell_Bk = apart_BktF.norm(dim=-1).argmin(-1)
    member = torch.nn.functional.one_hot(cell_Bk, len(true_tF))
    alone_Bk = member.sum(-2).gather(-1, cell_Bk) == 1
    error_BkF = atoms_BkF - true_tF[cell_Bk]
    score, expert = error_BkF[..., : intercept + 1], error_BkF[..., intercept + 1 :].norm(dim=-1)
    exact = torch.where(alone_Bk, score.abs().sum(-1) + expert, 0.0).sum(-1)
    losses = {"exact": exact}
    if family.k > len(true_tF):
        losses["over"] = torch.where(alone_Bk, 0.0, expert).amax(-1)
    return losses


# Verdicts -------------------------------------------------------------------------------------

RULE = f"""Near-truth maximum likelihood; a fit that did not converge, or ended below the likelihood
of the truth, enters no slope. Slopes on log n are of medians over replicates, averaged over
{len(HELD_OUT)} truths, with Student's interval over truths, over
n = {EARLY[0]:.0e} to {EARLY[-1]:.0e} and {LATE[0]:.0e} to {LATE[-1]:.0e}. The first that applies:
*{NOT_IDENTIFIABLE}*: the information of the labels about the truth's own parameters is singular.
*{DEPENDS_ON_THE_START}*: starting {FAR / NEAR:g} times farther away makes the loss more than
{START_FACTOR:g} times as large, by the whole interval. *{UNDECIDED}*: fewer than
{FEWEST_CONVERGED:.0%} of the fits of the later window count, more than {MOST_AT_BOX:.0%} of those
that do lie at the wall of the parameters' box, or the interval of that factor is not wholly at most
{START_FACTOR:g}. *{PRE_ASYMPTOTIC}*: the slopes of the windows differ by more than {BEND:g}, by the
whole interval of the difference. *{REPRODUCED}*: the later one's whole interval lies within
{MARGIN:g} of the claim. *{NOT_REPRODUCED}*: all of it lies farther away. *{UNDECIDED}*
otherwise."""


@dataclass(frozen=True)
class ClassificationEvidence:
    """The evidence for the verdict on one quantity of one cell."""

    claim: float
    smallest: float
    converged: float
    at_box: float
    early: Slope
    late: Slope
    moved: Slope
    far_start: Slope


def verdict_of(seen: ClassificationEvidence) -> tuple[str, str]:
    """The verdict by the rule, and the part of the rule that applied."""
    if seen.smallest < SEEN:
        return NOT_IDENTIFIABLE, "the information at a truth is singular"
    start = start_verdict(seen.far_start)
    if start:
        return start
    if seen.converged < FEWEST_CONVERGED:
        return UNDECIDED, f"only {seen.converged:.0%} of the fits count"
    if seen.at_box > MOST_AT_BOX:
        return UNDECIDED, f"{seen.at_box:.0%} of the fits lie at the wall of the parameters' box"
    doubt = start_doubt(seen.far_start)
    if doubt:
        return UNDECIDED, doubt
    if seen.moved.outside(0.0, BEND):
        return PRE_ASYMPTOTIC, f"the slope still moves: {seen.early}, then {seen.late}"
    return against(seen.late, seen.claim)


def claim_of(gate: str, quantity: str) -> float:
    """The claimed exponent of n for a quantity under a gate."""
    return -0.25 if quantity == "over" and gate == "softmax" else -0.5


def judge(results: Results) -> list[Finding]:
    """A line for each cell and quantity; a cell with missing tasks has no line."""
    return [
        _finding(setting, quantity, results)
        for setting in cells()
        if all((cell_of(setting), part) in results for part in PARTS)
        for quantity in ("hellinger", "exact", "over")[: 3 if setting.extra else 2]
    ]


def _finding(setting: ClassificationSetting, quantity: str, results: Results) -> Finding:
    of = {part: results[cell_of(setting), part] for part in PARTS}
    claim = claim_of(setting.gate, quantity)
    late = of["late"]
    counted = [row for of_truth in late for row in of_truth.rows
               if row.quantity == quantity and row.converged]  # fmt: skip
    slopes = [_slopes(of[part], quantity) for part in ("early", "late")]
    seen = ClassificationEvidence(
        claim,
        min(float(of_truth.values("smallest")[0]) for of_truth in late),
        float(np.mean([of_truth.share(quantity) for of_truth in late])),
        float(np.mean([row.at_box for row in counted])),
        _slope(of["early"], quantity),
        _slope(late, quantity),
        over_truths(slopes[1] - slopes[0]),
        factor_over_truths(
            [
                # Both starts fit the same data sets, so that each has its own factor.
                np.median(far.values(quantity) / near.values(quantity))
                for near, far in zip(of["near start"], of["far start"], strict=True)
            ]
        ),
    )
    verdict, because = verdict_of(seen)
    gain = np.median([row.value for of_truth in late for row in of_truth.rows
                    if row.quantity == "gain" and row.converged])  # fmt: skip
    return Finding(
        f"{cell_of(setting)}: {quantity}",
        f"n^{claim:g}",
        f"{seen.early} then {seen.late}",
        verdict,
        because,
        f"fits that count {seen.converged:.0%}, at the box {seen.at_box:.0%}, far start "
        f"{seen.far_start.value:.2g} [{seen.far_start.low:.2g}, {seen.far_start.high:.2g}], "
        f"median gain {gain:.1f} with {late[0].values('free')[0]:.0f} free parameters",
        by_chance(seen.late) if because == against(seen.late, claim)[1] else None,
    )


def _slope(truths: Sequence[Measured], quantity: str) -> Slope:
    return slope(*_grid(truths, quantity))


def _slopes(truths: Sequence[Measured], quantity: str) -> np.ndarray:
    return slopes_of_truths(*_grid(truths, quantity))


def _grid(truths: Sequence[Measured], quantity: str) -> tuple[list[float], np.ndarray]:
    grids = [of_truth.grid(quantity) for of_truth in truths]
    return grids[0][0].tolist(), np.stack([values for _, values in grids])


def _power(results: Results) -> str:
    return power_sentence(
        [
            _slope(results[cell_of(setting), "late"], quantity)
            for setting in cells()
            for quantity in ("hellinger", "exact", "over")[: 3 if setting.extra else 2]
        ]
    )


# Tasks and figure -----------------------------------------------------------------------------

PARTS = ("early", "late", "near start", "far start")


def cells() -> list[ClassificationSetting]:
    """Every gate with as many experts as the truth and with one more."""
    return [ClassificationSetting(gate, extra) for gate in GATES for extra in (0, 1)]


def cell_of(setting: ClassificationSetting) -> str:
    """The name of a line of the table, without its quantity."""
    return f"{setting.gate.replace('_', ' ')}, {setting.k} experts fitted by {setting.family.k}"


def tasks() -> list[Task]:
    """Two windows of every cell, and starts near and far at the largest n."""
    tasks = []
    for cell in cells():
        for truth_seed in HELD_OUT:
            of_truth = replace(cell, truth_seed=truth_seed)
            changed = {
                "early": replace(of_truth, sizes=EARLY),
                "late": replace(of_truth, sizes=LATE, seed=1000),
                "near start": replace(of_truth, sizes=LATE[-1:], seed=2000, jitter=NEAR),
                "far start": replace(of_truth, sizes=LATE[-1:], seed=2000, jitter=FAR),
            }
            for part, setting in changed.items():
                work = len(setting.sizes) * (1.0 + 3.0 * setting.extra)
                tasks.append(Task(cell_of(cell), part, setting, measure, work))
    return tasks


def draw(results: Results) -> Figure:
    """Hellinger distance and parameters against n, a panel a cell."""
    figure, axes = panels(len(cells()), columns=2)
    for axis, setting in zip(axes, cells(), strict=True):
        axis.set_title(cell_of(setting))
        for quantity in ("hellinger", "exact", "over")[: 3 if setting.extra else 2]:
            late = results[cell_of(setting), "late"]
            grids = [of_truth.grid(quantity) for part in ("early", "late")
                     for of_truth in results[cell_of(setting), part]]  # fmt: skip
            sizes, values = _joined(grids)
            fitted = _slope(late, quantity)
            loglog(axis, sizes, values, f"{quantity} {fitted.value:+.2f}", slope=fitted.value)
    return figure


def _joined(grids: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """All sizes, and at each the values of all truths: first the early grids, then the late."""
    half = len(grids) // 2
    early, late = (np.concatenate([values for _, values in part], axis=1)
                   for part in (grids[:half], grids[half:]))  # fmt: skip
    return np.concatenate([grids[0][0], grids[-1][0]]), np.concatenate([early, late])


STUDY = Study(
    "classification",
    "Rates in classification",
    "Conditional laws are estimated at n^-1/2 in Hellinger distance, and so are the parameters of "
    "experts that are not over-specified; those that are at n^-1/4 under a softmax gate, and "
    "faster under a sigmoid gate. The paper modifies the sigmoid gate in a way that was not "
    "recovered: here it is normalised or plain, and n^-1/2 is the claim of Nguyen et al. 2024 "
    "for regression.",
    "Pham et al. 2026, abstract; rates of regression from Nguyen et al. 2024",
    RULE,
    tasks,
    judge,
    draw,
    _power,
)
