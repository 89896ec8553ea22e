"""Looks up a comparison's values for the figures, by metric, arm and seed."""

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


class ComparisonValues:
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
        # Bits per byte of the bigram baseline, a model without attention.
        self.baseline: float = baseline_bits(comparison.rows)
        self.late_change: Interval = late_change_of_gap(comparison.rows)
        text = comparison.setting.get("text", {})
        # Tokens in one step of the training on text, the same in both arms; 0 if not recorded.
        self.tokens_per_step: int = text.get("batch_size", 0) * text.get("model", {}).get(
            "max_seq_len", 0
        )
        self._summary = {(row.metric, row.length): row for row in comparison.summary}

    def values(self, metric: str, arm: str, *, layer: int | None = None) -> list[Value]:
        """Every value of a metric and an arm, or those of one layer, by seed and step."""
        values = self._values.get((metric, arm), [])
        return values if layer is None else [v for v in values if v.layer == layer]

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
        """The seeds for which any arm has this metric."""
        return sorted({v.seed for arm in ARMS for v in self.values(metric, arm)})

    def row(self, metric: str, length: int = NONE) -> SummaryRow | None:
        """The row of a metric in the summary; None if there is none."""
        return self._summary.get((metric, length))

    def solved(self, metric: str) -> Solved | None:
        """The number of seeds that solved a task, if the arms are compared by this number."""
        row = self.row(metric)
        return row.solved if row else None

    def intervals(self, metric: str, length: int = NONE) -> dict[str, Interval]:
        """The mean and interval of each arm in the summary; empty if no mean is shown."""
        row = self.row(metric, length)
        return {SOFTMAX: row.softmax, SIGMOID: row.sigmoid} if row and not row.solved else {}

    def means(self, metric: str, arm: str) -> dict[int, float]:
        """The mean of an arm by length: from the summary, or else computed from the values."""
        by_length: dict[int, list[float]] = defaultdict(list)
        for value in self.values(metric, arm):
            by_length[value.length].append(value.value)
        intervals = {n: self.intervals(metric, n).get(arm) for n in by_length}
        return {
            n: interval.mean if (interval := intervals[n]) and interval.n else mean(by_length[n])
            for n in sorted(by_length)
        }

    def difference(self, metric: str, length: int = NONE) -> Interval | None:
        """The difference of the arms in the summary."""
        row = self.row(metric, length)
        return row.difference if row else None

    def absent(self, metric: str, name: str) -> tuple[str, ...]:
        """Sentences on the values that this metric lacks; `name` is the metric in words."""
        present = self.arms(metric)
        subject = name[0].upper() + name[1:]
        notes = [
            f"{subject}, {arm}, {_seeds(seeds)}: the value was not finite."
            for arm in ARMS
            if (seeds := self._not_finite.get((metric, arm)))
        ]
        if not present and not notes:
            return (f"{subject}: not measured.",)
        lacking = [arm for arm in ARMS if arm not in present and not self._not_finite[metric, arm]]
        return (*notes, *(f"{subject}: {arm} has none." for arm in lacking))

    def fewer_seeds(self, metric: str, than: str) -> tuple[str, ...]:
        """A sentence if this metric was recorded with fewer seeds than another."""
        seeds = self.seeds(metric)
        fewer = 0 < len(seeds) < len(self.seeds(than))
        return (f"Recorded with {_seeds(seeds)} only.",) if fewer else ()

    def cut_short(self, metric: str) -> tuple[str, ...]:
        """Sentences on the runs that ended before the others."""
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
    """Each seed's values by step, averaged within at most `bins` intervals of equal length.

    The intervals are the same for every seed and arm with the same steps, so means and differences
    of curves are taken over the same steps.
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


def scaled_x(curves: Mapping[int, Curve], factor: float) -> dict[int, Curve]:
    """The curves with x multiplied by `factor`, such as the tokens or seconds per step."""
    return {seed: tuple((factor * x, y) for x, y in curve) for seed, curve in curves.items()}


def mean_curve(curves: Mapping[int, Curve]) -> Curve:
    """The mean over the seeds, at each x that all seeds reached."""
    by_x: dict[float, list[float]] = defaultdict(list)
    for curve in curves.values():
        for x, y in curve:
            by_x[x].append(y)
    return tuple((x, mean(ys)) for x, ys in sorted(by_x.items()) if len(ys) == len(curves))


def curve_differences(left: Mapping[int, Curve], right: Mapping[int, Curve]) -> dict[int, Curve]:
    """`left` minus `right`, paired by seed, where both have a value."""
    differences = {}
    for seed in sorted(left.keys() & right.keys()):
        y_right = dict(right[seed])
        differences[seed] = tuple((x, y - y_right[x]) for x, y in left[seed] if x in y_right)
    return differences


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
