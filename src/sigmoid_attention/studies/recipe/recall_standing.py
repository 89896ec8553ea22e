"""The verdict of the recipe study on recall and copying.

Rule. A candidate's best learning rate has the highest mean accuracy over the tasks at the training
length n, among the rates at which no seed diverged. The best softmax is the softmax candidate with
the highest such accuracy. Every candidate at its best rate is compared with it by the difference,
paired by seed, of the mean accuracy over the recall tasks, in percentage points with a 95%
t-interval, at n and at 4n. A candidate is

- *level* if the whole interval is above -2 points (*ahead* if it is above zero),
- *behind* if the whole interval is below -2 points,
- *open* otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sigmoid_attention.lab.statistics import Interval, paired_difference
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.recipe.results import (
    Values,
    best_softmax,
    seed_names,
    values_by_rate,
)
from sigmoid_attention.studies.recipe.retrieval import COPY, PAIRS, RECALL, TIMES, WINDOWED
from sigmoid_attention.studies.recipe.setting import RecipeSetting

MARGIN = 2.0
RECALLS = tuple(RECALL.format(pairs) for pairs in PAIRS)


@dataclass(frozen=True)
class RecallStanding:
    """A candidate at its best rate: mean accuracies in percent by metric and length, and its mean
    recall less that of the best softmax, in points, by length."""

    candidate: str
    lr: float
    percent: dict[tuple[str, int], float]
    points: dict[int, Interval]

    def verdict(self, length: int) -> str:
        """Ahead, level, behind or open; "-" for fewer than three seeds."""
        interval = self.points[length]
        if not interval.bounded:
            return "-"
        if interval.low > 0:
            return "ahead"
        if interval.low > -MARGIN:
            return "level"
        return "behind" if interval.high < -MARGIN else "open"


def recall_standings(store: Store, setting: RecipeSetting) -> list[RecallStanding]:
    """Every candidate of the setting at its best rate, the highest accuracy at n first.

    The store may hold more candidates, seeds and rates than the setting. Raises ``ValueError`` if
    there is no softmax.
    """
    metrics = {*RECALLS, COPY} | {name + WINDOWED for name in (*RECALLS, COPY)}
    values = values_by_rate(store, setting, metrics)

    def overall(accuracies: Values) -> float:
        return sum(_mean(accuracies[name, setting.seq_len]) for name in (*RECALLS, COPY))

    best = {
        candidate: max(rates, key=lambda lr, rates=rates: overall(rates[lr]))
        for candidate, rates in values.items()
    }
    order = sorted(best, key=lambda name: -overall(values[name][best[name]]))
    reference = best_softmax(order)
    softmax = values[reference][best[reference]]
    standings = []
    for candidate in order:
        accuracies = values[candidate][best[candidate]]
        points = {
            times * setting.seq_len: _difference(accuracies, softmax, times * setting.seq_len)
            for times in TIMES
        }
        percent = {key: _mean(by_seed) for key, by_seed in accuracies.items()}
        standings.append(RecallStanding(candidate, best[candidate], percent, points))
    return standings


def _mean(by_seed: Mapping[int, float]) -> float:
    """The mean over seeds, in percent."""
    return 100 * sum(by_seed.values()) / len(by_seed)


def _difference(candidate: Values, softmax: Values, length: int) -> Interval:
    keys = [(name, length) for name in RECALLS]
    seeds = sorted(candidate[keys[0]].keys() & softmax[keys[0]].keys())
    first, second = (
        [100 * sum(values[key][seed] for key in keys) / len(keys) for seed in seeds]
        for values in (softmax, candidate)
    )
    return paired_difference(first, second)


def recall_report(ranking: list[RecallStanding], setting: RecipeSetting) -> str:
    """The standings as a Markdown table: accuracies in percent, differences in points."""
    n = setting.seq_len
    columns = [(name, times * n) for times in TIMES for name in (*RECALLS, COPY)]
    titles = [f"{name.replace('_', ' ')}, {length}" for name, length in columns]
    ends = [f"recall to softmax, {times * n}" for times in TIMES]
    lines = [
        f"| candidate | best rate | {' | '.join([*titles, *ends])} |",
        f"|---|---|{'---|' * (len(titles) + len(ends))}",
    ]
    for standing in ranking:
        cells = []
        for name, length in columns:
            cell = f"{standing.percent[name, length]:.1f}"
            if length > n:
                cell += f" ({standing.percent[name + WINDOWED, length]:.1f})"
            cells.append(cell)
        for times in TIMES:
            points = standing.points[times * n]
            cells.append(f"{points.signed(1)}, {standing.verdict(times * n)}")
        lines.append(f"| {standing.candidate} | {standing.lr:g} | {' | '.join(cells)} |")
    return "\n".join(
        [
            *lines,
            "",
            f"{seed_names(setting)}. Accuracy in percent, by pairs and length; in parentheses with "
            f"a window of {n} tokens at test. Differences of the mean over the recall tasks, in "
            f"percentage points, with 95 % intervals.",
        ]
    )
