"""Study of Jacobian norms of attention against the number of tokens, with and without b = -log n.

Shape letters: N numbers of tokens, R replicates.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from sigmoid_attention.lab.figure import loglog, panels
from sigmoid_attention.lab.study import Finding, Results, Row, Study, Task
from sigmoid_attention.mixtures.rates.slopes import Slope, slope
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED
from sigmoid_attention.studies.theory.drawn import DrawnLayers, generator, layer, tokens_of
from sigmoid_attention.theory.regularity import (
    Ball,
    attention_bound,
    attention_bound_at,
    largest_gain,
)

LENGTHS = (4, 8, 16, 32, 64, 128, 256)
# The length of a token after a norm without a gain: the square root of dim.
DIM = 16
RADIUS = DIM**0.5
MARGIN = 0.15
CELLS = {
    "sigmoid, b = -log n": DrawnLayers("sigmoid", 0, RADIUS, dim=DIM),
    "sigmoid, b = 0": DrawnLayers("sigmoid", 0, RADIUS, bias=0.0, dim=DIM),
    "softmax": DrawnLayers("softmax", 0, RADIUS, dim=DIM),
}
CLAIMS = {
    "sigmoid, b = -log n": ("does not grow with n", 0.0),
    "sigmoid, b = 0": ("grows in proportion to n", 1.0),
    "softmax": ("does not grow with n", 0.0),
}


def measure(setting: DrawnLayers) -> Iterator[Row]:
    """The Jacobian norm at random tokens, its bound there, and the certificate of the ball."""
    for replicate in range(setting.replicates):
        attention = layer(setting, replicate)
        x = tokens_of(setting, generator(setting, replicate, "tokens"))

        def attend(x: Tensor) -> Tensor:
            return attention(x[None])[0]  # noqa: B023

        for quantity, value in (
            ("measured", largest_gain(attend, x).value),
            ("bound", attention_bound_at(attention, x).jacobian),
            (
                "certificate",
                attention_bound(attention, Ball(setting.radius), setting.tokens).jacobian,
            ),
        ):
            yield Row(quantity, value, n=setting.tokens, replicate=replicate)


RULE = f"""Layers with the weights of initialisation on random tokens of norm {RADIUS:.3g}, the
square root of their channels, as a norm leaves them. The slope of the median Jacobian norm on
log n, over n = {LENGTHS[0]} to {LENGTHS[-1]}, with a bootstrap interval over layers:
*{REPRODUCED}* if it comes within {MARGIN:g} of what is claimed, *{NOT_REPRODUCED}* otherwise."""


def judge(results: Results) -> list[Finding]:
    """A line for each kind of attention and bias."""
    findings = []
    for cell, (claim, exponent) in CLAIMS.items():
        lengths, measured = _curve(results, cell, "measured")
        fitted = slope(lengths.tolist(), measured)
        others = {
            name: slope(lengths.tolist(), _curve(results, cell, name)[1])
            for name in ("bound", "certificate")
        }
        tight = {
            name: np.nanmedian(measured[-1] / _curve(results, cell, name)[1][-1])
            for name in ("bound", "certificate")
        }
        findings.append(
            Finding(
                cell,
                claim,
                f"slope on log n {fitted}; of the bound at the tokens {others['bound']}, of the "
                f"certificate of the ball {others['certificate']}",
                verdict_of(fitted, exponent),
                f"norm {np.nanmedian(measured[0]):.2g} at n = {LENGTHS[0]}, "
                f"{np.nanmedian(measured[-1]):.2g} at n = {LENGTHS[-1]}",
                f"measured over bound at n = {LENGTHS[-1]}: {tight['bound']:.2f} at the tokens, "
                f"{tight['certificate']:.3f} for the ball",
            )
        )
    return findings


def verdict_of(measured: Slope, exponent: float) -> str:
    """The rule."""
    return REPRODUCED if measured.near(exponent, MARGIN) else NOT_REPRODUCED


def _curve(results: Results, cell: str, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    by_length = [results[cell, f"n = {n}"][0] for n in LENGTHS]
    return np.array(LENGTHS), np.concatenate([measured.grid(quantity)[1] for measured in by_length])


def tasks() -> list[Task]:
    """A task for each cell and length."""
    return [
        Task(
            cell,
            f"n = {n}",
            replace(setting, tokens=n),
            measure,
            work=1 + n / 32,
        )
        for cell, setting in CELLS.items()
        for n in LENGTHS
    ]


def draw(results: Results) -> Figure:
    """Measured norms of all cells, and their bounds."""
    figure, axes = panels(2)
    for axis, quantity, title in zip(
        axes, ("measured", "bound"), ("measured", "bound at the same tokens"), strict=True
    ):
        axis.set_title(title)
        axis.set_ylabel("norm of the Jacobian")
        for cell in CELLS:
            lengths, values = _curve(results, cell, quantity)
            fitted = slope(lengths.tolist(), values)
            colour = "softmax" if cell == "softmax" else "sigmoid"
            loglog(
                axis, lengths, values, f"{cell}: {fitted.value:+.2f}", slope=fitted.value,
                colour=colour, dashed=cell.endswith("0"),
            )  # fmt: skip
        axis.set_xlabel("tokens")
    return figure


STUDY = Study(
    "regularity_length",
    "Steepness of attention with the number of tokens",
    "The bound on the Jacobian has a factor n. That the bias b = -log n cancels it is a derivation "
    "of this project: weights and their derivatives are then near e^u / n if e^u is far below n. "
    "The paper's appendix E, as far as it is known here, is about outputs.",
    "derived here from the bound of Ramapuram et al. 2024, theorem 3.2",
    RULE,
    tasks,
    judge,
    draw,
)
