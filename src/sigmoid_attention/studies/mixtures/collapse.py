"""Study of representation collapse: experts that become alike or idle in training, by gate.

Shape letters: B replicates, P parameters, Q inputs, d dimension, k experts.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sigmoid_attention.lab.figure import COLOURS, panels
from sigmoid_attention.lab.statistics import ONE_SIDE, Interval, paired_difference, t_interval
from sigmoid_attention.lab.study import Finding, Measured, Results, Row, Study, Task
from sigmoid_attention.mixtures.data import Samples
from sigmoid_attention.mixtures.experts import expert as expert_of
from sigmoid_attention.mixtures.model import Mixture
from sigmoid_attention.mixtures.multistart import spread, uniform_starts
from sigmoid_attention.mixtures.rates.setting import RateSetting, draw_truth
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from sigmoid_attention.mixtures.stochastic import StochasticRecipe, paper_mode

GATES = ("softmax", "sigmoid")
# A truth with a gate of neither family; "smooth" is not a mixture.
TRUTHS = ("normalised_sigmoid", "smooth")
LOOKS = 25
# Quantities, and True for those that increase in a collapse.
JUDGED = {"similarity": True, "used by weight": False, "used by contribution": False}
# The quantities that are drawn, with the labels of their axes.
WORDS = {
    "similarity": "similarity of answers",
    "used by contribution": "experts at work",
}


@dataclass(frozen=True)
class CollapseSetting:
    """Random starts, the same for both gates, trained on the same data with 2 k* experts."""

    gate: str
    truth: str
    expert: str
    optimiser: str
    learning_rate: float
    epochs: int = 60
    batch: int = 128
    n: int = 2000
    d: int = 4
    true_experts: int = 4
    k: int = 8
    sigma: float = 0.1
    width: float = 2.0
    replicates: int = 20
    seed: int = 0


def measure(setting: CollapseSetting) -> Iterator[Row]:
    """The rows of `TraceRecorder` along training, and the error on new inputs at the end."""
    family = Mixture(setting.gate, setting.expert, k=setting.k, d=setting.d)
    function = _truth(setting)
    data = Samples.draw(
        function, count=setting.replicates, n=setting.n, d=setting.d, sigma=setting.sigma,
        seed=setting.seed,
    )  # fmt: skip
    start_BSP = uniform_starts(
        spread(family, setting.width), problems=setting.replicates, starts=1, seed=setting.seed + 1
    )
    recipe = StochasticRecipe(
        setting.optimiser, setting.learning_rate, setting.epochs, setting.batch
    )
    steps = setting.epochs * math.ceil(setting.n / setting.batch)
    probe_Qd = Samples.draw(function, count=1, n=512, d=setting.d, sigma=0.0, seed=2).inputs_BQd[0]
    watch = TraceRecorder(family, probe_Qd, steps)
    fit = paper_mode(
        family, data, start_BSP[:, 0], sigma=setting.sigma, recipe=recipe, seed=setting.seed,
        trace=watch,
    )  # fmt: skip
    yield from watch.rows
    target_Q = function(probe_Qd)
    error_B = (family.predict(fit.theta_BP, probe_Qd) - target_Q).square().mean(-1).sqrt()
    for replicate, error in enumerate((error_B / target_Q.std()).tolist()):
        yield Row("error", error, replicate=replicate, step=steps, converged=False)


def _truth(setting: CollapseSetting):
    """A function of inputs (..., Q, d) that is in neither gate's family."""
    if setting.truth == "smooth":
        return lambda x: (2 * x[..., 0]).sin() * (1 + x[..., 1]) + x[..., 2] * x[..., 3]
    truth = draw_truth(
        RateSetting(setting.truth, setting.expert, d=setting.d, k=setting.true_experts, extra=0)
    )
    return lambda x: truth.family.predict(truth.theta_P, x)


class TraceRecorder:
    """A trace of training that keeps rows at a few steps, evenly spread on a logarithmic scale."""

    def __init__(self, family: Mixture, probe_Qd: Tensor, steps: int) -> None:
        self.family, self.probe_Qd = family, probe_Qd
        spaced = np.unique(np.geomspace(1, steps, LOOKS).round().astype(int))
        self.looks = {0, *spaced.tolist()}
        self.rows: list[Row] = []

    def __call__(self, step: int, theta_BP: Tensor) -> None:
        if step not in self.looks:
            return
        for quantity, values in state(self.family, theta_BP, self.probe_Qd).items():
            for replicate, value in enumerate(values.tolist()):
                self.rows.append(Row(quantity, value, replicate=replicate, step=step,
                                     converged=False))  # fmt: skip


def state(family: Mixture, theta_BP: Tensor, inputs_Qd: Tensor) -> dict[str, Tensor]:
    r"""The similarity of experts and the effective number of experts, (B,) each.

    Similarity is the mean over pairs of experts of the absolute correlation of their outputs over
    the inputs, and of the absolute cosine of their parameters. The effective number of experts is
    exp of the entropy of their shares, from 1 to k. Shares are those of the mean gate weight, or of
    the mean absolute contribution, which is comparable also for a gate that does not normalise.

    Example:
        >>> family = Mixture("softmax", "linear", k=2, d=1)
        >>> alike = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -2.0, 1.0]]).double()
        >>> found = state(family, alike, torch.linspace(-1, 1, 5).double()[:, None])
        >>> [round(values.item(), 3) for values in found.values()]
        [1.0, 0.894, 2.0, 1.842]
    """
    parameters_BkE = family.atoms(theta_BP)[..., family.score_size :]
    answers_BkQ = expert_of(family.expert).value(parameters_BkE, inputs_Qd).mT
    return {
        "similarity": _alike(answers_BkQ - answers_BkQ.mean(-1, keepdim=True)),
        "similarity of parameters": _alike(parameters_BkE),
        "used by weight": _effective(family.gate_weights(theta_BP, inputs_Qd).mean(-2)),
        "used by contribution": _effective(
            family.contributions(theta_BP, inputs_Qd).abs().mean(-2)
        ),
    }


def _alike(vectors_BkQ: Tensor) -> Tensor:
    """The mean absolute cosine of two different vectors."""
    unit = torch.nn.functional.normalize(vectors_BkQ, dim=-1)
    cosines = (unit @ unit.mT).abs()
    row, column = torch.triu_indices(cosines.shape[-1], cosines.shape[-1], offset=1)
    return cosines[..., row, column].mean(-1)


def _effective(parts_Bk: Tensor) -> Tensor:
    share = parts_Bk / parts_Bk.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


# Verdicts -------------------------------------------------------------------------------------

RULE = f"""Both gates train from the same random starts on the same data, 8 experts on a truth that
neither family has. Collapse is what a quantity loses from before training to its end: experts grow
alike, or fewer are at work; gates differ in it before any training, which is no one's merit. Means
over replicates with 95 % t-intervals. *{REPRODUCED}*: softmax collapses (the interval lies above 0)
and sigmoid collapses less (the paired difference does too). *{NOT_REPRODUCED}*: softmax does not
collapse but the reverse, or sigmoid collapses more. *{UNDECIDED}*: an interval that it takes holds
0."""


def judge(results: Results) -> list[Finding]:
    """For each truth, expert and optimiser a line for every quantity."""
    findings = []
    for cell in dict.fromkeys(cell for cell, _ in results):
        if all((cell, gate) in results for gate in GATES):
            softmax, sigmoid = (results[cell, gate][0] for gate in GATES)
            findings += [_finding(cell, name, softmax, sigmoid) for name in JUDGED]
    return findings


def verdict_of(of_softmax: Interval, spared: Interval) -> str:
    """The rule, from the collapse of softmax and its excess over the collapse of sigmoid."""
    if of_softmax.high < 0 or spared.high < 0:
        return NOT_REPRODUCED
    return REPRODUCED if of_softmax.low > 0 and spared.low > 0 else UNDECIDED


def _finding(cell: str, quantity: str, softmax: Measured, sigmoid: Measured) -> Finding:
    paths = [_ends(measured, quantity) for measured in (softmax, sigmoid)]
    # The quantities that rise in a collapse, or fall.
    sign = 1 if JUDGED[quantity] else -1
    lost = [[sign * (last - first) for first, last in ends] for ends in paths]
    of_softmax, spared = t_interval(lost[0]), paired_difference(lost[1], lost[0])
    means = [np.mean(ends, axis=0) for ends in paths]
    errors = [float(np.mean(measured.values("error"))) for measured in (softmax, sigmoid)]
    return Finding(
        f"{cell}: {quantity}",
        "grows under softmax, less under sigmoid"
        if JUDGED[quantity]
        else "falls under softmax, less under sigmoid",
        "; ".join(
            f"{gate} {first:.2f} to {last:.2f}"
            for gate, (first, last) in zip(GATES, means, strict=True)
        ),
        verdict_of(of_softmax, spared),
        f"collapse of softmax {_said(of_softmax)}, more than that of sigmoid by {_said(spared)}",
        f"relative error at the end {errors[0]:.2f} and {errors[1]:.2f}, {len(lost[0])} pairs",
        ONE_SIDE,
    )


def _said(interval: Interval) -> str:
    return f"{interval.mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def _ends(measured: Measured, quantity: str) -> list[tuple[float, float]]:
    """A quantity before training and at its end, replicate by replicate."""
    rows = [row for row in measured.rows if row.quantity == quantity]
    ends = [
        {row.replicate: row.value for row in rows if row.step == step}
        for step in (0, max(row.step for row in rows))
    ]
    return [(ends[0][replicate], ends[1][replicate]) for replicate in sorted(ends[0])]


# Tasks and figure -----------------------------------------------------------------------------

CASES = (("linear", "normalised_sigmoid"), ("linear", "smooth"), ("gelu", "normalised_sigmoid"))
OPTIMISERS = (("sgd", 0.1), ("adam", 0.01))


def tasks() -> list[Task]:
    """Every expert and truth with either optimiser and either gate."""
    return [
        Task(
            f"{expert} experts, {truth.replace('_', ' ')} truth, {optimiser}", gate,
            CollapseSetting(gate, truth, expert, optimiser, rate), measure,
        )
        for expert, truth in CASES
        for optimiser, rate in OPTIMISERS
        for gate in GATES
    ]  # fmt: skip


def draw(results: Results) -> Figure:
    """Similarity and effective number by contribution along training, a row of panels each."""
    cells = list(dict.fromkeys(cell for cell, _ in results))
    shown = [(cell, name) for name in WORDS for cell in cells]
    figure, axes = panels(len(shown))
    for axis, (cell, quantity) in zip(axes, shown, strict=True):
        axis.set_title(cell.replace(" truth, ", " truth,\n"))
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlabel("step")
        axis.set_ylabel(WORDS[quantity])
        for gate in GATES:
            steps, means = _path(results[cell, gate][0], quantity)
            middle = np.array([interval.mean for interval in means])
            low, high = (np.array([getattr(one, end) for one in means]) for end in ("low", "high"))
            axis.plot(steps, middle, color=COLOURS[gate], label=gate)
            axis.fill_between(steps, low, high, color=COLOURS[gate], alpha=0.2, linewidth=0)
        axis.legend()
    return figure


def _path(measured: Measured, quantity: str) -> tuple[list[int], Sequence[Interval]]:
    rows = [row for row in measured.rows if row.quantity == quantity]
    steps = sorted({row.step for row in rows})
    return steps, [t_interval([row.value for row in rows if row.step == step]) for step in steps]


STUDY = Study(
    "collapse",
    "Representation collapse along training",
    "Experts that compete in a softmax gate grow alike or fall idle; a sigmoid gate, under which "
    "they do not compete, avoids that.",
    "Nguyen et al. 2024, introduction, on why sigmoid gates are used",
    RULE,
    tasks,
    judge,
    draw,
)
