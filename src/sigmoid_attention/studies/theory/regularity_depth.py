"""Study of Jacobian norms against depth at initialisation, and of the product bound.

Shape letters: N depths, R replicates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sigmoid_attention.lab.figure import loglog, panels
from sigmoid_attention.lab.study import Finding, Results, Row, Study, Task
from sigmoid_attention.mixtures.rates.slopes import Slope, ratio
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from sigmoid_attention.nn import DecoderLM, ModelConfig
from sigmoid_attention.theory.regularity import composed, largest_gain, network_bound_at

DEPTHS = (1, 2, 4, 8, 12)
PLACEMENTS = ("pre", "hybrid")
KINDS = ("sigmoid", "softmax")


@dataclass(frozen=True)
class StackSetting:
    """Decoders of one width at initialisation, measured at every depth."""

    activation: str
    norm_placement: str
    dim: int = 32
    num_heads: int = 4
    tokens: int = 32
    replicates: int = 12


def measure(setting: StackSetting) -> Iterator[Row]:
    """The Jacobian norm at random tokens for each number of blocks, and the product bound."""
    for replicate in range(setting.replicates):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(replicate)
            blocks = _decoder(setting).blocks
            x = torch.randn(setting.tokens, setting.dim).double()
        for depth in DEPTHS:
            first = blocks[:depth]

            def run(x: Tensor) -> Tensor:
                x = x[None]
                for block in first:  # noqa: B023
                    x = block(x)
                return x[0]

            yield Row("measured", largest_gain(run, x).value, n=depth, replicate=replicate)
            bound = composed(network_bound_at(first, x))
            yield Row("bound", bound, n=depth, replicate=replicate)


def _decoder(setting: StackSetting) -> DecoderLM:
    config = ModelConfig(
        vocab_size=2,
        dim=setting.dim,
        layers=DEPTHS[-1],
        num_heads=setting.num_heads,
        max_seq_len=setting.tokens,
        activation=setting.activation,
        norm_placement=setting.norm_placement,
        ffn_dim=4 * setting.dim,
    )
    return DecoderLM(config).double().eval().requires_grad_(False)


RULE = f"""Decoders of {DEPTHS[-1]} blocks with ALiBi and SwiGLU as they are initialised, the same
weights in both kinds, random tokens. The ratio of the medians of the stack's Jacobian norm, sigmoid
over softmax, after {DEPTHS[-1]} blocks, with a bootstrap interval over initialisations:
*{REPRODUCED}* if it lies below one, *{NOT_REPRODUCED}* if above, *{UNDECIDED}* if it includes
one."""


def judge(results: Results) -> list[Finding]:
    """A line for each placement of norms."""
    findings = []
    for placement in PLACEMENTS:
        of = {kind: _curve(results, kind, placement, "measured") for kind in KINDS}
        bound = {kind: _curve(results, kind, placement, "bound") for kind in KINDS}
        beside = ratio(of["softmax"][-1], of["sigmoid"][-1])
        measured = "; ".join(
            f"{kind} {', '.join(f'{np.median(row):.3g}' for row in of[kind])}" for kind in KINDS
        )
        tight = "; ".join(
            f"{kind} {', '.join(f'{value:.1e}' for value in np.median(of[kind] / bound[kind], 1))}"
            for kind in KINDS
        )
        findings.append(
            Finding(
                f"{placement} norm",
                "sigmoid less steep than softmax",
                f"after {', '.join(map(str, DEPTHS))} blocks: {measured}",
                verdict_of(beside),
                f"sigmoid over softmax after {DEPTHS[-1]} blocks: {beside.value:.2f} "
                f"[{beside.low:.2f}, {beside.high:.2f}]",
                f"measured over product bound: {tight}",
            )
        )
    return findings


def verdict_of(beside: Slope) -> str:
    """The rule, from the ratio of Jacobian norms, sigmoid over softmax."""
    if beside.high < 1:
        return REPRODUCED
    return NOT_REPRODUCED if beside.low > 1 else UNDECIDED


def _curve(results: Results, kind: str, placement: str, quantity: str) -> np.ndarray:
    return results[f"{placement} norm", kind][0].grid(quantity)[1]


def tasks() -> list[Task]:
    """A task for each kind and placement."""
    return [
        Task(f"{placement} norm", kind, StackSetting(kind, placement), measure)
        for placement in PLACEMENTS
        for kind in KINDS
    ]


def draw(results: Results) -> Figure:
    """Measured norm against depth, a panel a placement; then the bound over the measured norm."""
    figure, (*measured, loose) = panels(len(PLACEMENTS) + 1)
    for axis, placement in zip(measured, PLACEMENTS, strict=True):
        axis.set(title=f"{placement} norm")
        for kind in KINDS:
            values = _curve(results, kind, placement, "measured")
            bounds = _curve(results, kind, placement, "bound") / values
            loglog(axis, np.array(DEPTHS), values, kind, colour=kind)
            hybrid = placement == "hybrid"
            label = f"{kind}, {placement} norm"
            loglog(loose, np.array(DEPTHS), bounds, label, colour=kind, dashed=hybrid)
        axis.set(xlabel="blocks", ylabel="norm of the Jacobian")
    loose.set(title="looseness", xlabel="blocks", ylabel="product bound over measured")
    return figure


STUDY = Study(
    "regularity_depth",
    "Steepness of whole networks at initialisation",
    "A better-behaved Jacobian of sigmoid attention is offered as a reason to expect more robust "
    "networks and smoother training. Ramapuram et al. 2024 state it of a layer. This study "
    "measures stacks of layers.",
    "Ramapuram et al. 2024, section 3.2",
    RULE,
    tasks,
    judge,
    draw,
)
