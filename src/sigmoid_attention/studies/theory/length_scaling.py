"""Study of outputs of attention against the number of tokens, for divisors n^alpha and for biases.

Shape letters: N numbers of tokens, R replicates, T tokens, C channels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from sigmoid_attention import sigmoid_attention
from sigmoid_attention.lab.figure import OTHERS, loglog, panels
from sigmoid_attention.lab.study import Finding, Results, Row, Study, Task
from sigmoid_attention.mixtures.rates.slopes import Slope, slope
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED
from sigmoid_attention.nn import Attention
from sigmoid_attention.studies.theory.drawn import DrawnLayers, generator, layer

LENGTHS = (64, 256, 1024, 4096, 16384)
# The length of a token after a norm without a gain: the square root of dim.
DIM = 16
RADIUS = DIM**0.5
# Outputs of these first tokens are compared, with more and more tokens after them.
KEPT = 16
FIRST_SEED = 100
MARGIN = 0.1
# A relative change below this is rounding in float64.
ROUNDING = 1e-12
# The slopes below which a change by new tokens, or by doubled ones, counts as falling.
SETTLING, SAMPLING = -0.25, -0.5
FALLS = "falls"


@dataclass(frozen=True)
class ScalingSetting:
    """Attention layers at initialisation whose output is divided by n^alpha.

    Args:
        alpha: the power of n in the divisor.
        bias: the bias of the sigmoid; None for -log n, n the number of tokens of the input.
        sharpness: a factor of all logits, which at 1 have a standard deviation near 1.
        replicates: the number of layers, each with its own tokens.
    """

    activation: str
    alpha: float
    bias: float | None
    sharpness: float = 1.0
    replicates: int = 24


@dataclass(frozen=True)
class Claim:
    """What is said of a cell: the power of n of the output, and what a doubled sequence does.

    ``change`` is the relative change of the output on doubling: a number, or ``FALLS`` with n.
    """

    power: float
    change: float | str


CELLS = {
    "sigmoid, b = 0, alpha = 0.5": ScalingSetting("sigmoid", 0.5, 0.0),
    "sigmoid, b = 0, alpha = 1": ScalingSetting("sigmoid", 1.0, 0.0),
    "sigmoid, b = 0, alpha = 1.5": ScalingSetting("sigmoid", 1.5, 0.0),
    "sigmoid, b = -log n": ScalingSetting("sigmoid", 0.0, None),
    "sigmoid, b = -log n, logits x 4": ScalingSetting("sigmoid", 0.0, None, sharpness=4.0),
    "softmax": ScalingSetting("softmax", 0.0, None),
}
CLAIMS = {
    "sigmoid, b = 0, alpha = 0.5": Claim(0.5, 2**0.5 - 1),
    "sigmoid, b = 0, alpha = 1": Claim(0.0, 0.0),
    "sigmoid, b = 0, alpha = 1.5": Claim(-0.5, 1 - 2**-0.5),
    "sigmoid, b = -log n": Claim(0.0, FALLS),
    "sigmoid, b = -log n, logits x 4": Claim(0.0, FALLS),
    "softmax": Claim(0.0, 0.0),
}


def measure(setting: ScalingSetting) -> Iterator[Row]:
    """The size of the first outputs, and their changes with more tokens and with each one twice."""
    for replicate in range(setting.replicates):
        drawn = DrawnLayers(setting.activation, KEPT, RADIUS, dim=DIM, seed=FIRST_SEED)
        attention = layer(drawn, replicate)
        attention.query.weight *= setting.sharpness
        x_TC = tokens(generator(drawn, replicate, "tokens"))
        for n in LENGTHS:
            before, more, twice = (
                first_outputs(setting, attention, x)
                for x in (x_TC[:n], x_TC[: 2 * n], x_TC[:n].repeat(2, 1))
            )
            size = float(before.norm())
            for quantity, value in (
                ("size", size / KEPT**0.5),
                ("new tokens", float((more - before).norm()) / size),
                ("doubled", float((twice - before).norm()) / size),
            ):
                yield Row(quantity, value, n=n, replicate=replicate)


def tokens(rng: torch.Generator) -> Tensor:
    """Independent tokens (T, C) of one length, from a law with a mean that differs by replicate."""
    common_C = torch.randn(DIM, generator=rng, dtype=torch.float64)
    x_TC = common_C + torch.randn(2 * LENGTHS[-1], DIM, generator=rng, dtype=torch.float64)
    return x_TC / x_TC.norm(dim=-1, keepdim=True) * RADIUS


def first_outputs(setting: ScalingSetting, attention: Attention, x_TC: Tensor) -> Tensor:
    """y_i = n^-alpha sum_j w_ij W_o W_v x_j of the first tokens, with n = T."""
    n = len(x_TC)
    query, key, value = attention.project(x_TC[None], 0, None)
    query = query[:, :, :KEPT]
    if setting.activation == "softmax":
        heads = F.scaled_dot_product_attention(query, key, value)
    else:
        bias = -math.log(n) if setting.bias is None else setting.bias
        heads = sigmoid_attention(query, key, value, bias=bias, impl="reference")
    return attention.output(heads.transpose(1, 2).flatten(2))[0] / n**setting.alpha


RULE = f"""Layers at initialisation on independent tokens of norm {RADIUS:.3g} from a law with a
mean; n = {LENGTHS[0]} to {LENGTHS[-1]:,}; seeds from {FIRST_SEED} on. The outputs of the first
{KEPT} tokens are compared. "size" is the slope of their median norm on log n: *{REPRODUCED}* if
its bootstrap interval over layers comes within {MARGIN:g} of the claim and, where a limit is
claimed at these n, their relative change by n new tokens falls, by a slope on log n below
{SETTLING:g} with its whole interval. "doubled" is their relative change where each token occurs
twice: *{REPRODUCED}* if all changes are the claimed number up to {ROUNDING:g}. A change that is
claimed to fall does so, *{REPRODUCED}*, if its slope on log n lies below {SAMPLING:g} by its
whole interval: it then falls faster than what a sample of tokens leaves open. *{NOT_REPRODUCED}*
otherwise."""


def judge(results: Results) -> list[Finding]:
    """Two lines for each cell: size and doubled."""
    findings = []
    for cell, claim in CLAIMS.items():
        size, new, doubled = (
            results[cell, "all lengths"][0].grid(quantity)[1]
            for quantity in ("size", "new tokens", "doubled")
        )
        growth, settling = (slope(LENGTHS, values) for values in (size, new))
        ends = f"at n = {LENGTHS[0]}", f"at n = {LENGTHS[-1]:,}"
        findings.append(
            Finding(
                f"{cell}: size",
                _of_size(claim.power),
                f"slope on log n {growth}",
                size_verdict(claim.power, growth, settling),
                f"norm {np.median(size[0]):.3g} {ends[0]}, {np.median(size[-1]):.3g} {ends[1]}",
                f"relative change by n new tokens: slope {settling}, "
                f"{np.median(new[-1]):.2g} {ends[1]}",
            )
        )
        # In exact cells the change is a number plus rounding, which has no slope.
        falls = claim.change == FALLS
        fitted = slope(LENGTHS, doubled) if falls else None
        findings.append(
            Finding(
                f"{cell}: doubled",
                _of_change(claim.change),
                f"relative change {_change(np.median(doubled[0]))} {ends[0]}, "
                f"{_change(np.median(doubled[-1]))} {ends[1]}",
                doubled_verdict(claim.change, doubled, fitted),
                f"slope on log n {fitted}" if falls else "",
                f"largest of all {_change(doubled.max())}",
            )
        )
    return findings


def size_verdict(power: float, growth: Slope, settling: Slope) -> str:
    """The rule on sizes, from the slopes of the size and of its change by new tokens."""
    settles = power != 0 or settling.high < SETTLING
    return REPRODUCED if growth.near(power, MARGIN) and settles else NOT_REPRODUCED


def doubled_verdict(change: float | str, doubled_NR: np.ndarray, fitted: Slope | None) -> str:
    """The rule on doubled sequences, from all relative changes and, if they fall, their slope."""
    if isinstance(change, str):
        return REPRODUCED if fitted and fitted.high < SAMPLING else NOT_REPRODUCED
    same = np.abs(doubled_NR - change) < ROUNDING
    return REPRODUCED if same.all() else NOT_REPRODUCED


def _of_size(power: float) -> str:
    return (
        "settles at a limit"
        if power == 0
        else f"{'grows' if power > 0 else 'falls'} as n^{power:g}"
    )


def _of_change(change: float | str) -> str:
    if isinstance(change, str):
        return "changes less and less with n"
    return "does not change" if change == 0 else f"changes by {change:.3f}"


def _change(value: float) -> str:
    return f"below {ROUNDING:g}" if value < ROUNDING else f"{value:.2g}"


def tasks() -> list[Task]:
    """A task for each cell."""
    return [Task(cell, "all lengths", setting, measure) for cell, setting in CELLS.items()]


def draw(results: Results) -> Figure:
    """Size and change on doubling against n; a change that is rounding is not drawn."""
    figure, axes = panels(2)
    for axis, quantity, label in zip(
        axes, ("size", "doubled"), ("norm of an output", "relative change"), strict=True
    ):
        for (cell, setting), colour in zip(CELLS.items(), OTHERS, strict=True):
            lengths, values = results[cell, "all lengths"][0].grid(quantity)
            drawn = np.where(values < ROUNDING, np.nan, values)
            loglog(
                axis, lengths, drawn, cell if quantity == "size" else None,
                slope=slope(LENGTHS, values).value, colour=colour, dashed=setting.alpha > 0,
            )  # fmt: skip
        axis.set(ylabel=label, xlabel="tokens")
    axes[0].legend().remove()
    axes[0].set_title("size of the output")
    axes[1].set_title("change if each token occurs twice")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


STUDY = Study(
    "length_scaling",
    "Outputs of attention with the number of tokens",
    "With a divisor n^alpha the outputs of sigmoid attention vanish for alpha > 1, blow up for "
    "alpha < 1 and have a limit for alpha = 1; only alpha = 1 leaves them as they are where a "
    "sequence is doubled. That b = -log n does so nearly, while logits stay below log n, is a "
    "derivation of this project.",
    "Ramapuram et al. 2024, appendix E; the lines with b = -log n are ours",
    RULE,
    tasks,
    judge,
    draw,
)
