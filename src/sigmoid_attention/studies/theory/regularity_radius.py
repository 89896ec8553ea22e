"""Study of Jacobian norms of attention against the radius of a fixed number of inputs.

Shape letters: N radii, R replicates.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

from sigmoid_attention.lab.figure import loglog, panels
from sigmoid_attention.lab.study import Finding, Results, Row, Study, Task
from sigmoid_attention.mixtures.rates.slopes import Slope, ratio, slope
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from sigmoid_attention.nn import Attention
from sigmoid_attention.studies.theory.drawn import (
    KINDS,
    DrawnLayers,
    layer,
    tokens_of,
)
from sigmoid_attention.theory.regularity import (
    Ball,
    attention_bound,
    jacobian_norm,
    max_jacobian_norm,
    onto_ball,
)

RADII = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
HALF = len(RADII) // 2
TOKENS = 6
STARTS = 3
STEPS = 40
# Slopes within this of two, and intervals wider than this, give no verdict.
MARGIN, WIDEST = 0.25, 0.5


def measure(setting: DrawnLayers) -> Iterator[Row]:
    """The largest Jacobian norm found in the ball, the norm at random points, and the bound."""
    for replicate in range(setting.replicates):
        attention = layer(setting, replicate)
        rng = torch.Generator().manual_seed(replicate)
        inside = partial(onto_ball, radius=setting.radius)

        def attend(x: torch.Tensor) -> torch.Tensor:
            return attention(x[None])[0]  # noqa: B023

        starts = [tokens_of(setting, rng)]
        starts += [undecided_tokens(attention, setting, rng) for _ in range(STARTS - 1)]
        ends = [
            max_jacobian_norm(attend, x, inside, steps=STEPS, step_size=0.1 * setting.radius)[
                1
            ].value
            for x in starts
        ]
        bound = attention_bound(attention, Ball(setting.radius), setting.tokens).jacobian
        for quantity, value in (
            ("steepest", max(ends)),
            ("random", jacobian_norm(attend, starts[0]).value),
            ("bound", bound),
        ):
            yield Row(quantity, value, n=setting.radius, replicate=replicate)


def undecided_tokens(
    attention: Attention, setting: DrawnLayers, rng: torch.Generator
) -> torch.Tensor:
    """Tokens R u and -R u with logits near zero at any R, where an activation is steep.

    u is found by Gauss-Newton steps towards u' W_q' W_k u = 0 in every head, from a random
    direction.
    """
    query, key = (
        part.weight.unflatten(0, (setting.num_heads, -1))
        for part in (attention.query, attention.key)
    )
    forms = query.mT @ key
    u = torch.randn(setting.dim, generator=rng, dtype=torch.float64)
    for _ in range(50):
        u = u / u.norm()
        value, slope_HC = u @ forms @ u, (forms + forms.mT) @ u
        u = u - torch.linalg.pinv(slope_HC) @ value
    signs = torch.ones(setting.tokens, 1, dtype=torch.float64)
    signs[: setting.tokens // 2] = -1
    return signs * setting.radius * (u / u.norm())


RULE = f"""Layers of two heads and {TOKENS} tokens with the weights of initialisation, the same for
both kinds, no norms. With a fixed number n of tokens softmax's local Lipschitz constant is at most
of the order sqrt(n) (1 + R^2) (`attention_bound`), so that no exponential can appear here:
regularity_crowd has it. In a ball of each radius the steepest point counts that {STARTS} projected
gradient ascents find, of which one starts at random and the others where all logits are near zero.
It bounds the Lipschitz constant from below, the certificate bounds it from above. Slopes are of the
median over layers on log R, with bootstrap intervals. *{UNDECIDED}* where the interval of the slope
over the larger half of the radii is wider than plus or minus {WIDEST:g}; *{REPRODUCED}* if it comes
within {MARGIN:g} of 2, *{NOT_REPRODUCED}* otherwise."""


def judge(results: Results) -> list[Finding]:
    """A line for each kind of attention."""
    return [_finding(kind, results) for kind in KINDS]


def verdict_of(far: Slope) -> str:
    """The rule, from the slope over the larger half of the radii."""
    if (far.high - far.low) / 2 > WIDEST:
        return UNDECIDED
    return REPRODUCED if far.near(2.0, MARGIN) else NOT_REPRODUCED


def _finding(kind: str, results: Results) -> Finding:
    radii, values = _curve(results, kind, "steepest")
    near = slope(radii[: HALF + 1].tolist(), values[: HALF + 1])
    far = slope(radii[HALF:].tolist(), values[HALF:])
    _, bounds = _curve(results, kind, "bound")
    _, other = _curve(results, "softmax" if kind == "sigmoid" else "sigmoid", "steepest")
    tight = np.nanmedian(values / bounds, axis=1)
    beside = ratio(other[-1], values[-1])
    return Finding(
        kind,
        f"grows with R^2 at {TOKENS} tokens",
        f"slope on log R {near} up to R = {RADII[HALF]:g}, then {far}",
        verdict_of(far),
        f"at R = {RADII[-1]:g} the steepest point is {beside.value:.2g} "
        f"[{beside.low:.2g}, {beside.high:.2g}] times as steep as the other kind's",
        f"steepest point over certificate: {tight[0]:.2f} at R = {RADII[0]:g}, "
        f"{tight[HALF]:.2f} at {RADII[HALF]:g}, {tight[-1]:.2f} at {RADII[-1]:g}",
    )


def _curve(results: Results, kind: str, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """Radii (N,) and values (N, R)."""
    by_radius = [results[kind, f"R = {radius:g}"][0] for radius in RADII]
    return np.array(RADII), np.concatenate([measured.grid(quantity)[1] for measured in by_radius])


def tasks() -> list[Task]:
    """A task for each kind and radius."""
    return [
        Task(kind, f"R = {radius:g}", DrawnLayers(kind, TOKENS, radius), measure)
        for kind in KINDS
        for radius in RADII
    ]


def draw(results: Results) -> Figure:
    """Certificate, largest norm and norm at random points against the radius, a panel a kind."""
    figure, axes = panels(len(KINDS))
    for axis, kind in zip(axes, KINDS, strict=True):
        axis.set_title(kind)
        axis.set_ylabel("norm of the Jacobian")
        for quantity, dashed in (("bound", True), ("steepest", False), ("random", True)):
            radii, values = _curve(results, kind, quantity)
            name = {"bound": "certificate", "steepest": "steepest found", "random": "random tokens"}
            loglog(axis, radii, values, name[quantity], dashed=dashed)
            if quantity == "steepest":
                far = slope(radii[HALF:].tolist(), values[HALF:])
                axis.set_title(f"{kind}: slope {far.value:.2f} from R = {radii[HALF]:g} on")
        axis.set_xlabel("radius of the tokens")
    return figure


STUDY = Study(
    "regularity_radius",
    "Steepness of attention with the radius of its inputs",
    "The local Lipschitz constant of sigmoid attention grows with the square of the radius of its "
    "inputs, that of softmax attention, at worst, exponentially in it. The exponential needs a "
    "number of tokens that grows as fast. At a fixed number both grow at most with the square.",
    "Ramapuram et al. 2024, theorem 3.2 and its discussion; softmax at a fixed number is ours",
    RULE,
    tasks,
    judge,
    draw,
)
