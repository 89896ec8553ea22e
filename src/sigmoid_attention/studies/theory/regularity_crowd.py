"""Study of Jacobian norms of attention to a crowd: n = e^(R^2 / 4) tokens in a ball of radius R.

Shape letters: N radii, R replicates, T tokens, C channels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sigmoid_attention.lab.figure import COLOURS, loglog, panels
from sigmoid_attention.lab.study import Finding, Results, Row, Study, Task
from sigmoid_attention.mixtures.rates.slopes import Slope, slope
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from sigmoid_attention.nn import Attention
from sigmoid_attention.theory.regularity import attention_bound_at, largest_gain, mean_norm_bound

RADII = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
HALF = len(RADII) // 2
# The closed form has no limit of memory.
FAR_RADII = (6.0, 8.0, 10.0)
FIRST_SEED = 100
# The length of a token's random part over that of the token.
JITTER = 0.1
SOFTMAX, SHARED, DIVIDED = "softmax", "sigmoid, b = -log n", "sigmoid, b = 0, divided by n"
EXPONENTIAL, QUADRATIC = "grows exponentially in R^2", "grows at most with R^2"
CLAIMS = {SOFTMAX: EXPONENTIAL, SHARED: QUADRATIC, DIVIDED: QUADRATIC}


@dataclass(frozen=True)
class CrowdSetting:
    """One token of length ``radius`` and a crowd of tokens half as long, all in one direction.

    Query, key and value are the token itself, and the logit is their product.

    Args:
        cell: the kind of attention, one of ``CLAIMS``.
        replicates: the number of random directions, each with its own random parts.
    """

    cell: str
    radius: float
    dim: int = 8
    replicates: int = 12

    @property
    def tokens(self) -> int:
        return crowd_size(self.radius)


def crowd_size(radius: float) -> int:
    """The number of tokens, e^(R^2 / 4) rounded up: a logit of two tokens of the crowd is log n."""
    return math.ceil(math.exp(radius**2 / 4))


def measure(setting: CrowdSetting) -> Iterator[Row]:
    """The Jacobian norm, its bound at the tokens, and the bound by the mean squared norm."""
    attention = identity_layer(setting)
    divisor = setting.tokens if setting.cell == DIVIDED else 1
    for replicate in range(setting.replicates):
        x = crowd(setting, FIRST_SEED + replicate)
        values = {
            "measured": largest_gain(lambda x: attention(x[None])[0], x).value,
            "bound": attention_bound_at(attention, x).jacobian,
        }
        if setting.cell != SOFTMAX:
            mean_square = float(x.square().sum(-1).mean())
            values["mean-norm bound"] = mean_norm_bound(attention, mean_square, setting.tokens)
        for quantity, value in values.items():
            yield Row(quantity, value / divisor, n=setting.radius, replicate=replicate)


def identity_layer(setting: CrowdSetting) -> Attention:
    """A layer of one head whose logits are products of tokens, and whose values are the tokens."""
    dim = setting.dim
    layer = Attention(
        dim,
        1,
        max_seq_len=setting.tokens,
        activation="softmax" if setting.cell == SOFTMAX else "sigmoid",
        bias=0.0 if setting.cell == DIVIDED else None,
        is_causal=False,
        impl="reference",
    ).double()
    with torch.no_grad():
        for part in (layer.query, layer.key, layer.value, layer.output):
            part.weight.copy_(torch.eye(dim))
        layer.query.weight *= dim**0.5
    return layer.requires_grad_(False)


def crowd(setting: CrowdSetting, seed: int) -> Tensor:
    """The tokens (T, C): a random direction, and a random part of each token."""
    rng = torch.Generator().manual_seed(seed)
    direction_C = torch.randn(setting.dim, generator=rng, dtype=torch.float64)
    parts_TC = torch.randn(setting.tokens, setting.dim, generator=rng, dtype=torch.float64)
    lengths_T1 = torch.full((setting.tokens, 1), setting.radius / 2, dtype=torch.float64)
    lengths_T1[0] = setting.radius
    unit_C = direction_C / direction_C.norm()
    return lengths_T1 * (unit_C + JITTER * parts_TC / setting.dim**0.5)


def closed_norm(cell: str, radius: float) -> float:
    r"""The Jacobian norm without random parts, for any number of tokens.

    The m = n - 1 tokens of the crowd are equal. So the Jacobian falls into parts: moves of the long
    token by s and of the whole crowd by :math:`t / \sqrt m`, along the tokens' direction and at
    right angles to it (a matrix of size two each), and moves of the crowd along the direction that
    sum to zero (a number). At right angles no logit changes, and the weights alone remain.
    """
    n = crowd_size(radius)
    length_2 = np.array([radius, radius / 2])
    count_2 = np.array([1.0, n - 1.0])
    logit_22 = np.outer(length_2, length_2)
    if cell == SOFTMAX:
        above = np.exp(logit_22 - logit_22.max(1, keepdims=True))
        weight_22 = above / (above @ count_2)[:, None]
        # Covariances of the values with the change of a logit in the query and in the key.
        centred_22 = length_2 - ((weight_22 * count_2) @ length_2)[:, None]
        steep_22 = weight_22 * centred_22
    else:
        bias = 0.0 if cell == DIVIDED else -math.log(n)
        weight_22 = 1 / (1 + np.exp(-logit_22 - bias))
        steep_22 = weight_22 * (1 - weight_22) * length_2
    through_query_2 = (steep_22 * length_2) @ count_2
    through_key_22 = steep_22 * length_2[:, None]
    root_2 = np.sqrt(count_2)
    across_22 = root_2[:, None] * weight_22 * root_2
    along_22 = across_22 + root_2[:, None] * through_key_22 * root_2 + np.diag(through_query_2)
    parts = (np.linalg.norm(along_22, 2), np.linalg.norm(across_22, 2), abs(through_query_2[1]))
    return float(max(parts)) / (n if cell == DIVIDED else 1)


RULE = f"""One token of length R and n - 1 tokens of length R / 2 in a random direction, n the next
whole number above e^(R^2 / 4), each with a random part of {JITTER:.0%} of its length. Query, key
and value are the token itself. Excess is the Jacobian norm over 1 + R^2. Slopes are of the median
of log excess on R^2, with bootstrap intervals over tokens drawn with seeds from {FIRST_SEED} on.
*{EXPONENTIAL}* is *{REPRODUCED}* if the slope over the larger half of the radii lies above zero and
above that over the smaller half, by whole intervals; *{QUADRATIC}* is *{REPRODUCED}* if it lies
below zero. Each is *{NOT_REPRODUCED}* where the other would be *{REPRODUCED}*, and otherwise
*{UNDECIDED}*."""


def judge(results: Results) -> list[Finding]:
    """A line for each kind of attention."""
    return [_finding(results, cell, claim) for cell, claim in CLAIMS.items()]


def verdict_of(claim: str, near: Slope, far: Slope) -> str:
    """The rule, from the slopes of log excess over the smaller and the larger half of the radii."""
    exponential = far.low > max(near.high, 0.0)
    quadratic = far.high < 0
    if not (exponential or quadratic):
        return UNDECIDED
    return REPRODUCED if exponential == (claim == EXPONENTIAL) else NOT_REPRODUCED


def _finding(results: Results, cell: str, claim: str) -> Finding:
    norms = _curve(results, cell, "measured")
    near, far = _excess_slope(norms, slice(HALF + 1)), _excess_slope(norms, slice(HALF, None))
    medians = np.median(norms, axis=1)
    distant = np.array([closed_norm(cell, radius) for radius in FAR_RADII])
    limit = np.polyfit(np.square(FAR_RADII), np.log(distant / _quadratic(FAR_RADII)), 1)[0]
    tight = [f"bound at the tokens {_share(results, cell, 'bound')}"]
    if cell != SOFTMAX:
        tight.append(f"mean-norm bound {_share(results, cell, 'mean-norm bound')}")
    whole = [i for i, radius in enumerate(RADII) if radius.is_integer()]
    return Finding(
        cell,
        claim,
        f"norm {', '.join(f'{medians[i]:.2g}' for i in whole)} for R = 1 to {RADII[-1]:g}; slope "
        f"of log excess on R^2 {near} up to R = {RADII[HALF]:g}, then {far}",
        verdict_of(claim, near, far),
        f"without random parts the norm at R = {FAR_RADII[0]:g} to {FAR_RADII[-1]:g} is "
        f"{', '.join(f'{value:.2g}' for value in distant)}, slope {limit:+.3f}",
        f"measured at R = {RADII[-1]:g} over {', over '.join(tight)}",
    )


def _share(results: Results, cell: str, bound: str) -> str:
    shares = _curve(results, cell, "measured")[-1] / _curve(results, cell, bound)[-1]
    return f"{np.median(shares):.2f}"


def _excess_slope(norms_NR: np.ndarray, part: slice) -> Slope:
    excess_NR = norms_NR / _quadratic(RADII)[:, None]
    return slope(np.exp(np.square(RADII[part])).tolist(), excess_NR[part])


def _quadratic(radii: tuple[float, ...]) -> np.ndarray:
    return 1 + np.square(radii)


def _curve(results: Results, cell: str, quantity: str) -> np.ndarray:
    """Values (N, R)."""
    by_radius = [results[cell, f"R = {radius:g}"][0] for radius in RADII]
    return np.concatenate([measured.grid(quantity)[1] for measured in by_radius])


def tasks() -> list[Task]:
    """A task for each kind and radius."""
    return [
        Task(
            cell,
            f"R = {radius:g}",
            CrowdSetting(cell, radius),
            measure,
            work=1 + (crowd_size(radius) / 100) ** 2,
        )
        for cell in CLAIMS
        for radius in RADII
    ]


def draw(results: Results) -> Figure:
    """Measured norms, the closed form as a line, and the quadratic; then the excess."""
    figure, axes = panels(2)
    fine = np.linspace(RADII[0], RADII[-1], 60)
    for axis, excess in zip(axes, (False, True), strict=True):
        for cell, colour, dashed in (
            (SOFTMAX, "softmax", False),
            (SHARED, "sigmoid", False),
            (DIVIDED, "sigmoid", True),
        ):
            scale = _quadratic(RADII)[:, None] if excess else 1.0
            norms = _curve(results, cell, "measured") / scale
            loglog(axis, np.square(RADII), norms, cell, colour=colour, dashed=dashed)
            closed = np.array([closed_norm(cell, radius) for radius in fine])
            axis.plot(
                np.square(fine),
                closed / (_quadratic(tuple(fine)) if excess else 1.0),
                "--" if dashed else "-",
                color=COLOURS[colour],
            )
        axis.set(xscale="linear", xlabel="square of the radius")
    axes[0].plot(np.square(fine), _quadratic(tuple(fine)), ":", color="black", label="1 + R²")
    axes[0].legend()
    axes[0].set_ylabel("norm of the Jacobian")
    axes[1].set_ylabel("norm over 1 + R²")
    axes[1].legend().remove()
    return figure


STUDY = Study(
    "regularity_crowd",
    "Steepness of attention to a crowd that grows with the radius",
    "The local Lipschitz constant of sigmoid attention is said to grow with the square of the "
    "radius of its inputs, that of softmax attention, at worst, exponentially in it. The bound for "
    "the sigmoid has a factor n. A division by n cancels it. The bias b = -log n does so while "
    "logits stay below log n (a derivation of this project).",
    "Ramapuram et al. 2024, theorem 3.2 and its discussion; the tokens of this study are ours",
    RULE,
    tasks,
    judge,
    draw,
)
