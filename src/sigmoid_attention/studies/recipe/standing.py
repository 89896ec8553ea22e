"""The verdict of the recipe study.

Rule. A candidate's best learning rate has the lowest mean over seeds of the held-out bits per byte
at the training length n. The best softmax is the softmax candidate with the lowest mean at its own
best rate. Every candidate at its best rate is compared with it at each length, by the paired
difference over seeds in percent of the softmax's mean, with its 95% t-interval. A candidate is

- *ahead* at a length if the whole interval is below zero,
- *level* if the whole interval is at most +0.5 %,
- *behind* if the whole interval is above zero,
- *open* otherwise.

*Recommended* is the sigmoid candidate, not divided by its mass, with the lowest mean at n.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

from sigmoid_attention.lab.rows import SIGMOID, SOFTMAX
from sigmoid_attention.lab.statistics import Interval, paired_difference, t_interval
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.recipe.candidates import CANDIDATES
from sigmoid_attention.studies.recipe.run import LOSS, WINDOWED
from sigmoid_attention.studies.recipe.setting import RecipeSetting

LEVEL_PERCENT = 0.5

# The values of each seed, by metric and length.
Values = dict[tuple[str, int], dict[int, float]]


@dataclass(frozen=True)
class Standing:
    """A candidate at its best learning rate: its values, and its differences to the best softmax.

    ``percent`` has the differences in percent of the softmax, by metric and length.
    """

    candidate: str
    lr: float
    means: dict[tuple[str, int], Interval]
    percent: dict[tuple[str, int], Interval]

    def verdict(self, metric: str, length: int) -> str:
        """Ahead, level, behind or open; "-" for fewer than three seeds."""
        interval = self.percent[metric, length]
        if not interval.bounded:
            return "-"
        if interval.high < 0:
            return "ahead"
        if interval.high <= LEVEL_PERCENT:
            return "level"
        return "behind" if interval.low > 0 else "open"


def standings(store: Store, setting: RecipeSetting) -> list[Standing]:
    """Every candidate at its best learning rate, the lowest mean first.

    Raises ``ValueError`` if the store has no softmax.
    """
    values: dict[str, dict[float, Values]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    for row in store.rows().to_pylist():
        if row["metric"] in (LOSS, WINDOWED):
            candidate, lr = row["arm"].split(" @ ")
            values[candidate][float(lr)][row["metric"], row["length"]][row["seed"]] = row["value"]
    n = setting.seq_len

    def mean(candidate: str, lr: float) -> float:
        by_seed = values[candidate][lr].get((LOSS, n), {})
        return t_interval(list(by_seed.values())).mean if by_seed else math.inf

    best = {
        name: min(rates, key=lambda lr, name=name: mean(name, lr)) for name, rates in values.items()
    }
    rivals = [name for name in best if CANDIDATES[name].activation == SOFTMAX]
    if not rivals:
        raise ValueError("candidates must have a softmax to compare with, got none")
    rival = min(rivals, key=lambda name: mean(name, best[name]))
    softmax = values[rival][best[rival]]
    order = sorted(best, key=lambda name: mean(name, best[name]))
    return [_standing(name, best[name], values[name][best[name]], softmax) for name in order]


def _standing(candidate: str, lr: float, own: Values, softmax: Values) -> Standing:
    means, percent = {}, {}
    for key, by_seed in own.items():
        means[key] = t_interval(list(by_seed.values()))
        seeds = sorted(by_seed.keys() & softmax[key].keys())
        first, second = ([side[seed] for seed in seeds] for side in (softmax[key], by_seed))
        base = t_interval(first).mean / 100
        scaled = ([value / base for value in side] for side in (first, second))
        percent[key] = paired_difference(*scaled)
    return Standing(candidate, lr, means, percent)


def recommended(ranking: list[Standing]) -> Standing:
    """The recommended sigmoid candidate, by the module's rule."""
    return next(
        standing
        for standing in ranking
        if CANDIDATES[standing.candidate].activation == SIGMOID
        and not CANDIDATES[standing.candidate].changes.get("mass_exponent")
    )


def report(ranking: list[Standing], setting: RecipeSetting) -> str:
    """The standings as a Markdown table: means in bits per byte, differences in percent."""
    lengths = [times * setting.seq_len for times in setting.times]
    titles = [f"n = {length}" for length in lengths]
    lines = [
        f"| candidate | best rate | {' | '.join(titles)} | to softmax at {titles[0]} | verdict |",
        f"|---|---|{'---|' * len(lengths)}---|---|",
    ]
    for standing in ranking:
        cells = [
            f"{standing.means[LOSS, length].mean:.3f} ({standing.means[WINDOWED, length].mean:.3f})"
            if length > setting.seq_len
            else f"{standing.means[LOSS, length].mean:.3f}"
            for length in lengths
        ]
        gap = standing.percent[LOSS, lengths[0]]
        verdict = standing.verdict(LOSS, lengths[0])
        lines.append(
            f"| {standing.candidate} | {standing.lr:g} | {' | '.join(cells)} "
            f"| {_signed(gap)} | {verdict} |"
        )
    seeds = ", ".join(map(str, setting.seeds))
    return "\n".join(
        [
            *lines,
            "",
            f"Seeds {seeds}. Bits per byte; in parentheses with a window of {setting.seq_len} "
            f"tokens at test. Differences in percent of the best softmax, with 95 % intervals.",
        ]
    )


def _signed(interval: Interval) -> str:
    if not interval.bounded:
        return f"{interval.mean:+.2f} %"
    return f"{interval.mean:+.2f} % ({interval.low:+.2f} to {interval.high:+.2f})"
