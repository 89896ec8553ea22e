"""Study of the identifiability of the family: families that pass, and pairs with one function.

Shape letters: Q inputs, d their dimension, k experts, P parameters.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sigmoid_attention.lab.figure import panels
from sigmoid_attention.lab.study import Finding, Results, Row, Study, Task
from sigmoid_attention.mixtures import Mixture
from sigmoid_attention.mixtures.identifiability import jacobian_rank
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED

K, DIM, INPUTS = 3, 2, 400
# Seeds from 100 on showed that the number of directions for a sum was one too small.
TRUTHS, FIRST_SEED = 8, 108
# A relative difference of functions below this is rounding in float64.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Case:
    """A family, how its truth is degenerate ("" for not at all), and the directions then unseen."""

    expert: str
    degenerate: str = ""
    missing: int = 0


CELLS = {
    **{name: Case(name) for name in ("relu", "gelu", "tanh", "linear", "constant")},
    "ReLU with a scale": Case("relu+scale", "scale", K),
    # d + 1 for the sum, and one since moving the gates by h_2 and -h_1 cancels: h_1 h_2 - h_2 h_1.
    "sum of linear experts": Case("linear", "sum", DIM + 2),
    "expert that is zero": Case("linear", "zero", DIM + 1),
    "opposite gates": Case("constant", "opposite", DIM + 1),
}

RULE = f"""{TRUTHS} truths with normal parameters and k = {K}. A family passes if the Jacobian of
the function has full rank at each truth (local identifiability; no finite check shows that no
distant parameters have the same function). A counterexample holds if at each truth other
parameters, which
are no exchange of experts, have the same function to {ROUNDING:g}, and the rank lacks as many
directions as derived. For a sum this number was corrected from {DIM + 1} to {DIM + 2} after
truths 100 to 107 were seen, and derived anew; truths 108 to 115 are reported."""


def tasks() -> list[Task]:
    return [Task(cell, "truths", case, measure) for cell, case in CELLS.items()]


def measure(case: Case) -> Iterator[Row]:
    family = Mixture("sigmoid", case.expert, k=K, d=DIM)
    for replicate in range(TRUTHS):
        rng = torch.Generator().manual_seed(FIRST_SEED + replicate)
        inputs_Qd = torch.rand(INPUTS, DIM, generator=rng, dtype=torch.float64) * 2 - 1
        theta_P = torch.randn(family.size, generator=rng, dtype=torch.float64)
        theta_P, other_P = pair(case.degenerate, family, theta_P)
        rank = jacobian_rank(family, theta_P, inputs_Qd)
        yield Row("missing", rank.missing, replicate=replicate)
        yield Row("smallest", rank.smallest, replicate=replicate)
        if case.degenerate:
            value_Q = family.predict(theta_P, inputs_Qd)
            change = (family.predict(other_P, inputs_Qd) - value_Q).abs().max()
            yield Row("difference", float(change / value_Q.abs().max()), replicate=replicate)


def pair(degenerate: str, family: Mixture, theta_P: Tensor) -> tuple[Tensor, Tensor]:
    """A degenerate truth near ``theta_P``, and other parameters of its function."""
    truth = family.atoms(theta_P).clone()
    scores, experts = slice(family.score_size), slice(family.score_size, None)
    if degenerate == "sum":
        truth[1, scores] = truth[0, scores]
    elif degenerate == "zero":
        truth[0, experts] = 0
    elif degenerate == "opposite":
        truth[1, scores], truth[1, experts] = -truth[0, scores], truth[0, experts]
    other = truth.clone()
    if degenerate == "scale":
        other[0, family.parts["eta_a"]] *= 2
        other[0, family.parts["eta_c"]] /= 2
    elif degenerate == "sum":
        other[0, experts] += 1
        other[1, experts] -= 1
    elif degenerate == "zero":
        other[0, scores] += 1
    elif degenerate == "opposite":
        other[0, scores] += 1
        other[1, scores] -= 1
    return truth.flatten(), other.flatten()


def judge(results: Results) -> list[Finding]:
    findings = []
    for cell, case in CELLS.items():
        measured = results[cell, "truths"][0]
        missing = measured.values("missing")
        same = bool((measured.values("difference") < ROUNDING).all())
        holds = bool((missing == case.missing).all()) and same
        findings.append(
            Finding(
                cell,
                "not identifiable" if case.degenerate else "identifiable",
                f"{missing.min():g} to {missing.max():g} unseen directions, "
                f"{case.missing} expected",
                REPRODUCED if holds else NOT_REPRODUCED,
                f"largest difference of the pair {measured.values('difference').max():.1e}"
                if case.degenerate
                else f"smallest singular value {measured.values('smallest').min():.1e}",
            )
        )
    return findings


def draw(results: Results) -> Figure:
    """The smallest singular value of each truth; rounding means an unseen direction."""
    figure, axes = panels(1)
    for place, cell in enumerate(CELLS):
        values = results[cell, "truths"][0].values("smallest").clip(1e-18)
        axes[0].plot(values, [place] * len(values), "o", color="C0")
    axes[0].set(xscale="log", xlabel="smallest singular value", yticks=range(len(CELLS)))
    axes[0].set_yticklabels(CELLS)
    axes[0].invert_yaxis()
    return figure


STUDY = Study(
    "identifiability",
    "Identifiability of the family",
    "Mixtures with one function have the same experts up to their order. ReLU with a scale, sums "
    "of linear experts, experts that are zero and opposite gates are no such families.",
    "Nguyen et al. 2024, proposition 1; the counterexamples are ours",
    RULE,
    tasks,
    judge,
    draw,
)
