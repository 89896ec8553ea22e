"""How often the rule on slopes says what, by simulation: its power, and its errors by chance.

Shape letters: S simulated studies, T truths.
"""

from functools import lru_cache

from sigmoid_attention.extras import lab_imports
from sigmoid_attention.mixtures.rates.slopes import Slope, over_truths
from sigmoid_attention.mixtures.rates.verdict import (
    MARGIN,
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    against,
)

with lab_imports("sigmoid_attention.mixtures"):
    import numpy as np

SIMULATED = 2000
# True slopes minus the claim: the claim itself, twice the bend of a logarithm, the margin, half way
# to the next rate, and the next rate.
OFFSETS = (0.0, 0.05, 0.1, 0.125, 0.15, 0.25)


@lru_cache(maxsize=256)
def chances(offset: float, spread: float, truths: int) -> dict[str, float]:
    """The chance of each verdict of `against` if the true slope misses the claim by ``offset``.

    The truths' slopes are normal, with the standard deviation ``spread``.

    Example:
        >>> said = chances(0.0, 0.05, 8)
        >>> said["reproduced"] > 0.9, said["not reproduced"]
        (True, 0.0)
    """
    slopes_ST = np.random.default_rng(0).normal(offset, spread, (SIMULATED, truths))
    words = [against(over_truths(slopes_T), 0.0)[0] for slopes_T in slopes_ST]
    return {word: words.count(word) / SIMULATED for word in (REPRODUCED, NOT_REPRODUCED, UNDECIDED)}


def by_chance(measured: Slope) -> float | None:
    """The largest chance that the rule decides wrongly, with this many truths of this spread.

    It is that of a true slope at the margin, where either decision would be wrong. None for a slope
    without a spread, of which the rule decides nothing.
    """
    if not np.isfinite(measured.spread):
        return None
    said = chances(MARGIN, round(measured.spread, 3), measured.truths)
    return max(said[REPRODUCED], said[NOT_REPRODUCED])


def power_sentence(slopes: list[Slope]) -> str:
    """What the rule says of true slopes at several distances from a claim, for typical slopes."""
    known = [measured for measured in slopes if np.isfinite(measured.spread)]
    if not known:
        return ""
    spread = float(np.median([measured.spread for measured in known]))
    noise = float(np.median([measured.noise for measured in known]))
    counts = sorted({measured.truths for measured in known})
    tables = [f"with {count} truths {_table_of(round(spread, 3), count)}" for count in counts[-2:]]
    return (
        f"**Power, by simulation.** The later slopes of the truths of a cell spread by "
        f"{spread:.2f} (the median of the cells; replicates alone make {noise:.2f}). For that "
        f"spread these are the shares of simulated studies in which the test of the slope says "
        f"*{REPRODUCED}* / *{NOT_REPRODUCED}*, by the distance of the true slope from the claim: "
        f"{'; '.join(tables)}. For a claim of -0.25, true slopes of -0.30 and -0.20 are 0.05 away, "
        f"-0.375 is 0.125 away and -0.10 is 0.15 away."
    )


def _table_of(spread: float, truths: int) -> str:
    said = {offset: chances(offset, spread, truths) for offset in OFFSETS}
    return ", ".join(
        f"{chance[REPRODUCED]:.0%} / {chance[NOT_REPRODUCED]:.0%} at {offset:g}"
        for offset, chance in said.items()
    )
