"""The rows of a comparison as the figures want them: by metric, arm and seed, in order."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from sigmoid_attention.lab.rows import ARMS, NONE, SIGMOID, SOFTMAX
from sigmoid_attention.lab.statistics import Interval
from sigmoid_attention.studies.compare.results import Comparison, Solved, SummaryRow
from sigmoid_attention.studies.compare.summary import baseline_bits, late_change_of_gap

Curve = tuple[tuple[float, float], ...]


class Value(NamedTuple):
    """One finite measurement."""

    seed: int
    step: int
    length: int
    layer: int
    value: float


class Measured:
    """A comparison's finite values by metric and arm, and its intervals by metric and length."""

    def __init__(self, comparison: Comparison) -> None:
        self._values: dict[tuple[str, str], list[Value]] = defaultdict(list)
        self._not_finite: dict[tuple[str, str], set[int]] = defaultdict(set)
        for metric, arm, *rest in _columns(comparison.rows):
            value = Value(*rest)
            if math.isfinite(value.value):
                self._values[metric, arm].append(value)
            else:
                self._not_finite[metric, arm].add(value.seed)
        for values in self._values.values():
            values.sort()
        # Bits per byte of a table of byte pairs: what needs no attention at all.
        self.baseline: float = baseline_bits(comparison.rows)
        self.late_change: Interval = late_change_of_gap(comparison.rows)
        text = comparison.setting.get("text", {})
        # Of a step of the training on text, in either arm; 0 where the setting does not say.
        self.tokens_per_step: int = text.get("batch_size", 0) * text.get("model", {}).get(
            "max_seq_len", 0
        )
        self._summary = {(row.metric, row.length): row for row in comparison.summary}

    def values(self, metric: str, arm: str, *, layer: int | None = None) -> list[Value]:
        """Every value of a metric and an arm, or those of one layer, by seed and step."""
        found = self._values.get((metric, arm), [])
        return found if layer is None else [v for v in found if v.layer == layer]

    def arms(self, metric: str) -> list[str]:
        """The arms that have values of this metric."""
        return [arm for arm in ARMS if self.values(metric, arm)]

    def lengths(self, metric: str) -> list[int]:
        """The lengths at which any arm has this metric, shortest first."""
        return sorted({v.length for arm in ARMS for v in self.values(metric, arm)})

    def layers(self, metric: str) -> list[int]:
        """The layers in which any arm has this metric."""
        return sorted({v.layer for arm in ARMS for v in self.values(metric, arm)})

    def seeds(self, metric: str) -> list[int]:
        """The seeds with which any arm has this metric."""
        return sorted({v.seed for arm in ARMS for v in self.values(metric, arm)})

    def row(self, metric: str, length: int = NONE) -> SummaryRow | None:
        """The summary's row of a metric, if it has one."""
        return self._summary.get((metric, length))

    def solved(self, metric: str) -> Solved | None:
        """How many seeds solved a task, where that is what is compared."""
        row = self.row(metric)
        return row.solved if row else None

    def intervals(self, metric: str, length: int = NONE) -> dict[str, Interval]:
        """Each arm's mean and interval as the summary has them; empty where no mean is shown."""
        row = self.row(metric, length)
        return {SOFTMAX: row.softmax, SIGMOID: row.sigmoid} if row and not row.solved else {}

    def means(self, metric: str, arm: str) -> dict[int, float]:
        """The arm's mean by length: the summary's, or else that of the values themselves."""
        by_length: dict[int, list[float]] = defaultdict(list)
        for value in self.values(metric, arm):
            by_length[value.length].append(value.value)
        known = {n: self.intervals(metric, n).get(arm) for n in by_length}
        return {
            n: found.mean if (found := known[n]) and found.n else mean(by_length[n])
            for n in sorted(by_length)
        }

    def apart(self, metric: str, length: int = NONE) -> Interval | None:
        """How far the arms lie apart as the summary has it."""
        row = self.row(metric, length)
        return row.difference if row else None

    def absent(self, metric: str, name: str) -> tuple[str, ...]:
        """What a figure of this metric lacks, in words that call the metric `name`."""
        present = self.arms(metric)
        called = name[0].upper() + name[1:]
        notes = [
            f"{called}, {arm}, {_seeds(seeds)}: the value was not finite."
            for arm in ARMS
            if (seeds := self._not_finite.get((metric, arm)))
        ]
        if not present and not notes:
            return (f"{called}: not measured.",)
        lacking = [arm for arm in ARMS if arm not in present and not self._not_finite[metric, arm]]
        return (*notes, *(f"{called}: {arm} has none." for arm in lacking))

    def fewer_seeds(self, metric: str, than: str) -> tuple[str, ...]:
        """Whether this metric was recorded with fewer seeds than another, in words."""
        seeds = self.seeds(metric)
        fewer = 0 < len(seeds) < len(self.seeds(than))
        return (f"Recorded with {_seeds(seeds)} only.",) if fewer else ()

    def cut_short(self, metric: str) -> tuple[str, ...]:
        """Which runs ended before the others, in words."""
        last = {
            (arm, seed): max(v.step for v in self.values(metric, arm) if v.seed == seed)
            for arm in ARMS
            for seed in sorted({v.seed for v in self.values(metric, arm)})
        }
        end = max(last.values(), default=NONE)
        return tuple(
            f"The {arm} run of seed {seed} ended at step {step:,}; the longest reached {end:,}."
            for (arm, seed), step in last.items()
            if step < end
        )


def curves(values: Sequence[Value], *, bins: int) -> dict[int, Curve]:
    """Each seed's values by step, averaged within at most `bins` stretches of equal length.

    The stretches are the same for every seed and arm that took the same steps, so that means and
    differences of curves compare like with like.
    """
    if not values:
        return {}
    width = max(1, math.ceil((max(v.step for v in values) + 1) / bins))
    stretches: dict[int, dict[int, list[Value]]] = defaultdict(lambda: defaultdict(list))
    for value in values:
        stretches[value.seed][value.step // width].append(value)
    return {
        seed: tuple(
            (mean(v.step for v in part), mean(v.value for v in part)) for part in by.values()
        )
        for seed, by in stretches.items()
    }


def along(of: Mapping[int, Curve], factor: float) -> dict[int, Curve]:
    """The curves over what every step takes `factor` of, such as tokens or seconds."""
    return {seed: tuple((factor * x, y) for x, y in curve) for seed, curve in of.items()}


def mean_curve(of: Mapping[int, Curve]) -> Curve:
    """The mean over the seeds, at the places that all of them reached."""
    by_place: dict[float, list[float]] = defaultdict(list)
    for curve in of.values():
        for x, y in curve:
            by_place[x].append(y)
    return tuple((x, mean(ys)) for x, ys in sorted(by_place.items()) if len(ys) == len(of))


def gap(upper: Mapping[int, Curve], lower: Mapping[int, Curve]) -> dict[int, Curve]:
    """`upper` minus `lower`, paired by seed, where both have a value."""
    paired = {}
    for seed in sorted(upper.keys() & lower.keys()):
        base = dict(lower[seed])
        paired[seed] = tuple((x, y - base[x]) for x, y in upper[seed] if x in base)
    return paired


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean of at least one value."""
    listed = list(values)
    return math.fsum(listed) / len(listed)


def _columns(rows: pa.Table) -> Iterable[tuple]:
    names = ("metric", "arm", "seed", "step", "length", "layer", "value")
    return zip(*(rows.column(name).to_pylist() for name in names), strict=True)


def _seeds(seeds: Iterable[int]) -> str:
    listed = sorted(seeds)
    return f"seed{'s' if len(listed) > 1 else ''} {', '.join(map(str, listed))}"
