"""The verdict of the recipe study.

Rule. A candidate's best learning rate has the lowest mean over seeds of the held-out bits per byte
at the training length n, among the rates at which no seed diverged. The best softmax is the softmax
candidate with the lowest mean at its own best rate. At each length it is tested with all keys and
with a window of the last n, and the lower mean counts. Every candidate at its best rate is compared
with it at each length, by the paired difference over seeds in percent of the softmax's mean, with
its 95% t-interval; beyond n the candidate is tested with the window. A candidate is

- *ahead* at a length if the whole interval is below zero,
- *level* if the whole interval is at most +0.5 %,
- *behind* if the whole interval is above zero,
- *open* otherwise.

*Recommended* is the sigmoid candidate, not divided by its mass, with the lowest mean at n.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sigmoid_attention.lab.rows import SIGMOID
from sigmoid_attention.lab.statistics import Interval, paired_difference, t_interval
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.recipe.candidates import CANDIDATES
from sigmoid_attention.studies.recipe.results import (
    Values,
    best_softmax,
    seed_names,
    values_by_rate,
)
from sigmoid_attention.studies.recipe.setting import RecipeSetting
from sigmoid_attention.studies.recipe.unit import LOSS, WINDOWED

LEVEL_PERCENT = 0.5


@dataclass(frozen=True)
class Comparison:
    """A candidate's bits per byte at one length, and its difference to the best softmax there.

    ``percent`` is that difference in percent of the softmax.
    """

    bits: Interval
    percent: Interval

    @property
    def described(self) -> str:
        """The difference and, where there is one, the verdict."""
        word = "" if self.verdict == "-" else f", {self.verdict}"
        return f"{self.percent.signed(2, ' %')}{word}"

    @property
    def verdict(self) -> str:
        """Ahead, level, behind or open; "-" for fewer than three seeds."""
        if not self.percent.bounded:
            return "-"
        if self.percent.high < 0:
            return "ahead"
        if self.percent.high <= LEVEL_PERCENT:
            return "level"
        return "behind" if self.percent.low > 0 else "open"


@dataclass(frozen=True)
class Standing:
    """A candidate at its best learning rate, by length; ``windowed`` with a window of n at test."""

    candidate: str
    lr: float
    at: dict[int, Comparison]
    windowed: dict[int, Comparison]


def standings(store: Store, setting: RecipeSetting) -> list[Standing]:
    """Every candidate of the setting at its best learning rate, the lowest mean at n first.

    The store may hold more candidates, seeds and rates than the setting. Raises ``ValueError`` if
    there is no softmax.
    """
    values = values_by_rate(store, setting, (LOSS, WINDOWED))

    def mean(candidate: str, lr: float) -> float:
        by_seed = values[candidate][lr][LOSS, setting.seq_len]
        return t_interval(list(by_seed.values())).mean

    best = {
        candidate: min(rates, key=lambda lr, candidate=candidate: mean(candidate, lr))
        for candidate, rates in values.items()
    }
    order = sorted(best, key=lambda candidate: mean(candidate, best[candidate]))
    reference = best_softmax(order)
    softmax = _better_by_length(values[reference][best[reference]], setting.seq_len)
    return [
        Standing(
            candidate,
            best[candidate],
            *(
                _comparisons(metric, values[candidate][best[candidate]], softmax)
                for metric in (LOSS, WINDOWED)
            ),
        )
        for candidate in order
    ]


def _better_by_length(values: Values, n: int) -> dict[int, Mapping[int, float]]:
    """The values of each seed at each length, beyond n with all keys or with the window."""

    def better(length: int) -> Mapping[int, float]:
        tests = [values[metric, length] for metric in (LOSS, WINDOWED)[: 1 + (length > n)]]
        return min(tests, key=lambda by_seed: t_interval(list(by_seed.values())).mean)

    return {length: better(length) for length in {length for _, length in values}}


def _comparisons(
    metric: str, candidate: Values, softmax: dict[int, Mapping[int, float]]
) -> dict[int, Comparison]:
    comparisons = {}
    for (its_metric, length), by_seed in candidate.items():
        if its_metric != metric:
            continue
        seeds = sorted(by_seed.keys() & softmax[length].keys())
        first, second = ([values[seed] for seed in seeds] for values in (softmax[length], by_seed))
        percent = t_interval(first).mean / 100
        scaled = ([value / percent for value in values] for values in (first, second))
        comparisons[length] = Comparison(
            t_interval(list(by_seed.values())), paired_difference(*scaled)
        )
    return comparisons


def recommended(ranking: list[Standing]) -> Standing | None:
    """The recommended sigmoid candidate, by the module's rule; None without such a candidate."""
    sigmoids = (
        standing
        for standing in ranking
        if CANDIDATES[standing.candidate].activation == SIGMOID
        and not CANDIDATES[standing.candidate].changes.get("mass_exponent")
    )
    return next(sigmoids, None)


def report(ranking: list[Standing], setting: RecipeSetting) -> str:
    """The standings as a Markdown table: means in bits per byte, differences in percent."""
    lengths = [times * setting.seq_len for times in setting.times]
    titles = [f"n = {length}" for length in lengths]
    differences = [f"to softmax at {length}" for length in lengths]
    lines = [
        f"| candidate | best rate | {' | '.join(titles + differences)} |",
        f"|---|---|{'---|' * 2 * len(lengths)}",
    ]
    for standing in ranking:
        cells = [f"{standing.at[length].bits.mean:.3f}" for length in lengths]
        for index, length in enumerate(lengths[1:], 1):
            cells[index] += f" ({standing.windowed[length].bits.mean:.3f})"
        compared = [standing.at[lengths[0]], *(standing.windowed[n] for n in lengths[1:])]
        cells += [comparison.described for comparison in compared]
        lines.append(f"| {standing.candidate} | {standing.lr:g} | {' | '.join(cells)} |")
    intervals = ", with 95 % intervals" if ranking[0].at[lengths[0]].percent.bounded else ""
    return "\n".join(
        [
            *lines,
            "",
            f"{seed_names(setting)}. Bits per byte; in parentheses with a window of "
            f"{setting.seq_len} tokens at test. Differences in percent of the best softmax, beyond "
            f"n = {setting.seq_len} with this window, there for softmax if it is better so"
            f"{intervals}.",
        ]
    )
