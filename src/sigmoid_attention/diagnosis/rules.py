"""The rules that turn evidence on a module's weights into findings.

The limits lie outside of what healthy models have: in the rows of the recipe study (docs/recipe.md)
the mean mass of a layer is between 0.1 and 1.5 during the whole training.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sigmoid_attention.diagnosis.evidence import SATURATED, Evidence
from sigmoid_attention.diagnosis.finding import Finding, heads

# A softmax has a mass of 1.
LARGEST_MASS = 4.0
SMALLEST_MASS = 0.01
SATURATED_SHARE = 0.5
COMMON_WEIGHT = 0.5
# Such a key also has this many times the mean weight of all keys.
COMMON_FACTOR = 4.0
ALIKE = 0.99
# The largest factor between the masses of late rows and of those at the end of the trained length.
DRIFT = 3.0


def weights(evidence: Evidence) -> Iterator[Finding]:
    """The faults of one module at the trained length."""
    saturated = _above(evidence.saturated_H, SATURATED_SHARE)
    single_H = evidence.common_H.where(
        evidence.common_H > COMMON_FACTOR * evidence.usual_H, torch.zeros(())
    )
    common = _above(single_H, COMMON_WEIGHT)
    dead = _above(-evidence.mass_H, -SMALLEST_MASS)
    mass = evidence.mass_H.mean().item()
    if saturated:
        yield Finding(
            "saturated",
            f"{evidence.name}, {heads(saturated)}",
            f"{_shares(evidence.saturated_H, saturated)} of the weights are above {SATURATED:g}, "
            f"where a sigmoid has almost no gradient.",
            f"Lower the bias by {-evidence.shift:.1f}, which makes the mean mass 1, or normalise "
            f'queries and keys (qk_norm="rms").',
        )
    elif mass > LARGEST_MASS:
        yield Finding(
            "mass",
            evidence.name,
            f"the weights of a row have the sum {mass:.1f} in the mean, where a softmax has 1.",
            f"Lower the bias by {-evidence.shift:.1f}, which makes the mean mass 1; for "
            f"{evidence.queries} tokens the usual start is NegLogLength({evidence.queries}).",
        )
    if dead:
        yield Finding(
            "dead",
            f"{evidence.name}, {heads(dead)}",
            f"the weights of a row have the sum {_numbers(evidence.mass_H, dead)}: the head adds "
            f"almost nothing and gets almost no gradient.",
            "Raise the bias of these heads, for example to the -log n that they started from, and "
            "look for a rate that was too high.",
        )
    for head in common:
        yield Finding(
            "common key",
            f"{evidence.name}, {heads([head])}",
            f"the key at place {int(evidence.common_key_H[head])} has a mean weight of "
            f"{evidence.common_H[head]:.2f} over all queries that see it.",
            "Centre the keys (centred_keys=True), which removes what a key adds to every row, or "
            "look at what this token holds.",
        )
    yield from _alike(evidence, {*saturated, *dead})


def drift(at_length: Evidence, beyond: Evidence) -> Iterator[Finding]:
    """The fault of a mass that grows or shrinks beyond the trained length."""
    first = beyond.mass_PH[len(beyond.mass_PH) // 2 - 1]
    last = beyond.mass_PH[-1]
    factor_H = (last / first.clamp(min=1e-9)).clamp(min=1e-9)
    moved = _above(factor_H.log().abs(), math.log(DRIFT))
    # What a head adds that has next to no mass does not matter.
    moved = [head for head in moved if max(float(first[head]), float(last[head])) > SMALLEST_MASS]
    if moved:
        yield Finding(
            "drift",
            f"{beyond.name}, {heads(moved)}",
            f"from the end of the trained length ({at_length.queries} tokens) to "
            f"{beyond.queries} the mass changes by the factor {_numbers(factor_H, moved)}.",
            'Let no head see more tokens than in training (reach="trained"), or train with longer '
            "texts.",
        )


def _alike(evidence: Evidence, without: set[int]) -> Iterator[Finding]:
    count = len(evidence.mass_H)
    left = [head for head in range(count) if head not in without]
    pairs = [
        (a, b) for a in left for b in left if a < b and evidence.likeness_HH[a, b].item() > ALIKE
    ]
    alike = sorted({head for pair in pairs for head in pair})
    if alike:
        least = min(evidence.likeness_HH[a, b].item() for a, b in pairs)
        yield Finding(
            "alike",
            f"{evidence.name}, {heads(alike)}",
            f"the weights of these heads have a correlation of {least:.3f} or more: they do the "
            f"same.",
            "Start them from different weights, or use fewer heads.",
        )


def _above(values_H: Tensor, limit: float) -> list[int]:
    return [head for head, value in enumerate(values_H.tolist()) if value > limit]


def _numbers(values_H: Tensor, chosen: list[int]) -> str:
    return ", ".join(f"{values_H[head]:.2g}" for head in chosen)


def _shares(values_H: Tensor, chosen: list[int]) -> str:
    return ", ".join(f"{values_H[head]:.0%}" for head in chosen)
