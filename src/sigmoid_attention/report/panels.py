"""Builds the panels of the report's figures."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sigmoid_attention.lab.rows import ARMS, SIGMOID, SOFTMAX
from sigmoid_attention.lab.statistics import Interval
from sigmoid_attention.report.chart import (
    ARM_SERIES,
    DIFFERENCE,
    Axis,
    Dots,
    Form,
    Line,
    Mark,
    Note,
    Panel,
    Rule,
    Series,
    Whisker,
    linear_axis,
    log_axis,
    ticked_axis,
)
from sigmoid_attention.report.comparison_values import ComparisonValues, Curve, mean, mean_curve
from sigmoid_attention.report.format import compact, plain, quantity, signed, tick, token_count

# If both arms have the same x, softmax is drawn to the left of it and sigmoid to the right.
SIDE = {SOFTMAX: -1.0, SIGMOID: 1.0}
DIFFERENCE_TITLE = "Sigmoid − softmax"

Curves = Mapping[int, Curve]


def arms_panel(
    values: Mapping[str, Mapping[int, float]], intervals: Mapping[str, Interval]
) -> Panel:
    """The values of both arms, linked by seed, with mean and interval."""
    x_of = {SOFTMAX: 0.0, SIGMOID: 1.0}
    marks: list[Mark] = [
        Line(((0.0, values[SOFTMAX][seed]), (1.0, values[SIGMOID][seed])), DIFFERENCE, "pair")
        for seed in sorted(values[SOFTMAX].keys() & values[SIGMOID].keys())
    ]
    for arm, series in ARM_SERIES.items():
        marks.append(Dots(tuple((x_of[arm], y) for y in values[arm].values()), series, "seed"))
        marks += interval_marks(x_of[arm] + 0.2 * SIDE[arm], intervals.get(arm), series)
    y_axis = linear_axis(y_values(marks), "bits per byte", plain)
    means = [
        f"{arm} {quantity(mean(values[arm].values()), 'bits/byte')}" for arm in ARMS if values[arm]
    ]
    x_axis = ticked_axis([(x, arm) for arm, x in x_of.items()], "")
    return Panel("Each seed", x_axis, y_axis, tuple(marks), _description("Means", means))


def difference_panel(differences: Mapping[int, float], interval: Interval | None) -> Panel:
    """The difference of the arms by seed, with its mean and interval."""
    dots = Dots(
        tuple((float(i), y) for i, y in enumerate(differences.values())), DIFFERENCE, "seed"
    )
    marks: list[Mark] = [Rule(0.0), dots]
    ticks = [(float(i), f"seed {seed}") for i, seed in enumerate(differences)]
    many = len(ticks) > 4
    if many:
        # The labels of many seeds would overlap.
        ticks = [(x, name.removeprefix("seed ")) for x, name in ticks]
    x_of_mean = len(differences) + (0.5 if many else 0.0)
    ticks.append((x_of_mean, "mean"))
    marks += interval_marks(x_of_mean, interval, DIFFERENCE)
    y_axis = linear_axis([0.0, *y_values(marks)], "bits per byte", signed)
    by_seed = [f"seed {seed} {signed(value)}" for seed, value in differences.items()]
    x_axis = ticked_axis(ticks, "seed" if many else "")
    description = _description("By seed", by_seed)
    return Panel(DIFFERENCE_TITLE, x_axis, y_axis, tuple(marks), description)


def curves_panel(
    title: str,
    curves_by_arm: Mapping[str, Curves],
    y_axis: Axis,
    form: Form,
    along: str = "training step",
    *,
    averaged: bool = True,
) -> Panel:
    """Curves over training: seeds thin and their mean thick; seeds alone if not `averaged`."""
    marks = [
        mark
        for arm, by_seed in curves_by_arm.items()
        for mark in curve_marks(by_seed, ARM_SERIES[arm], averaged)
    ]
    if averaged:
        shown = [(arm, mean_curve(by_seed)) for arm, by_seed in curves_by_arm.items()]
    else:
        shown = [
            (arm, curve) for arm, by_seed in curves_by_arm.items() for curve in by_seed.values()
        ]
    ends = [
        f"{arm} from {form(curve[0][1])} to {form(curve[-1][1])}" for arm, curve in shown if curve
    ]
    x_axis = linear_axis(x_values(marks), along, compact, tight=True)
    description = _description("Means" if averaged else "Seeds", ends)
    return Panel(title, x_axis, y_axis, tuple(marks), description)


def difference_curves_panel(differences: Curves, unit: str, along: str) -> Panel:
    """The difference of the arms over training, around the level of none."""
    marks: list[Mark] = [Rule(0.0), *curve_marks(differences, DIFFERENCE)]
    x_axis = linear_axis(x_values(marks), along, compact, tight=True)
    y_axis = linear_axis([0.0, *y_values(marks)], unit, signed)
    end = mean(curve[-1][1] for curve in differences.values())
    return Panel(DIFFERENCE_TITLE, x_axis, y_axis, tuple(marks), f"Ends at {signed(end)}.")


def lengths_panels(measured: ComparisonValues, metric: str) -> list[Panel]:
    """A metric by sequence length, and the difference of the arms by length."""
    lengths = measured.lengths(metric)
    marks: list[Mark] = []
    values: list[str] = []
    for arm in measured.arms(metric):
        # A small shift, so that the intervals of the arms do not overlap.
        series, shift = ARM_SERIES[arm], 1 + 0.04 * SIDE[arm]
        means = measured.means(metric, arm)
        marks.append(Line(tuple((n * shift, y) for n, y in means.items()), series, "mean"))
        seeds = tuple((v.length * shift, v.value) for v in measured.values(metric, arm))
        marks.append(Dots(seeds, series, "seed"))
        for n, y in means.items():
            marks += interval_marks(n * shift, measured.intervals(metric, n).get(arm), series)
            values.append(f"{arm} at {n} tokens {quantity(y, 'bits/byte')}")
    ticks = [(float(n), f"{token_count(n)} ({n / lengths[0]:.3g}×)") for n in lengths]
    x_axis = ticked_axis(ticks, "tokens in one pass", log=True)
    y_axis = linear_axis(y_values(marks), "bits per byte", plain)
    description = _description("Means", values)
    panels = [Panel("Loss by length", x_axis, y_axis, tuple(marks), description)]
    differences = [
        (n, interval)
        for n in lengths
        if (interval := measured.difference(metric, n)) and interval.n
    ]
    if differences:
        marks = [Rule(0.0)]
        for n, interval in differences:
            marks += interval_marks(n, interval, DIFFERENCE)
        y_axis = linear_axis(y_values(marks), "bits per byte", signed)
        description = _description(
            "Means", [f"at {n} tokens {signed(interval.mean)}" for n, interval in differences]
        )
        panels.append(Panel(DIFFERENCE_TITLE, x_axis, y_axis, tuple(marks), description))
    return panels


def final_accuracy_panel(
    tasks: Sequence[str],
    accuracies: Sequence[Mapping[str, Sequence[float]]],
    intervals: Sequence[Mapping[str, Interval]],
) -> Panel:
    """The last accuracy of each seed in several tasks, and its mean and interval.

    `accuracies` and `intervals` hold one mapping from arms for each of the `tasks`.
    """
    marks: list[Mark] = []
    values: list[str] = []
    for x, task in enumerate(tasks):
        for arm, series in ARM_SERIES.items():
            ends = accuracies[x].get(arm, ())
            if ends:
                marks.append(Dots(tuple((x + 0.12 * SIDE[arm], y) for y in ends), series, "seed"))
            if interval := intervals[x].get(arm):
                # Accuracies lie between 0 and 1, but the interval of a mean may exceed this range.
                interval = replace(
                    interval, low=max(interval.low, 0.0), high=min(interval.high, 1.0)
                )
            marks += interval_marks(x + 0.25 * SIDE[arm], interval, series)
            if ends and intervals[x]:
                values.append(f"{arm}, {task}: {quantity(mean(ends), 'fraction')} on average")
            elif ends:
                values.append(f"{arm}, {task}: {', '.join(percent(y) for y in ends)}")
    x_axis = ticked_axis([(float(x), task) for x, task in enumerate(tasks)], "")
    y_axis = linear_axis([1.0, *y_values(marks)], "right answers", percent)
    description = _description("Right answers", values)
    return Panel("After training", x_axis, y_axis, tuple(marks), description)


def cost_panel(measured: ComparisonValues, metric: str, title: str, unit: str) -> Panel:
    """Time or memory by sequence length on logarithmic axes, with the ratio above each point."""
    costs = {arm: measured.means(metric, arm) for arm in ARMS}
    marks: list[Mark] = []
    values: list[str] = []
    for arm, series in ARM_SERIES.items():
        if points := tuple(costs[arm].items()):
            marks += [Line(points, series, "mean"), Dots(points, series, "mean")]
        values += [f"{arm} at {n} tokens {quantity(value, unit)}" for n, value in points]
    for n in sorted(costs[SOFTMAX].keys() & costs[SIGMOID].keys()):
        # The summary's ratio is of paired timings; without it the ratio of means is shown.
        interval = measured.difference(metric, n)
        ratio = interval.mean if interval and interval.n else costs[SIGMOID][n] / costs[SOFTMAX][n]
        marks.append(Note(n, max(costs[arm][n] for arm in ARMS), f"{ratio:.2g}×"))
        values.append(f"ratio at {n} tokens {ratio:.2f}")
    ticks = [(float(n), token_count(n)) for n in measured.lengths(metric)]
    x_axis = ticked_axis(ticks, "sequence length in tokens", log=True)
    # Space above the highest point for its ratio.
    top = [1.5 * y for y in y_values(marks)]
    y_axis = log_axis(
        [*y_values(marks), *top],
        "logarithmic scale",
        lambda value: tick(value, unit),
        binary=unit == "bytes",
    )
    return Panel(title, x_axis, y_axis, tuple(marks), _description("By length", values))


def interval_marks(x: float, interval: Interval | None, series: Series) -> list[Mark]:
    """A mean with its whisker; the mean alone without an interval, nothing without a mean."""
    if interval is None or interval.n == 0:
        return []
    dot = Dots(((x, interval.mean),), series, "mean")
    return [Whisker(x, interval.low, interval.high, series), dot] if interval.bounded else [dot]


def curve_marks(curves: Curves, series: Series, averaged: bool = True) -> list[Mark]:
    """The seeds' thin curves and their thick mean; or only the seeds, with thicker lines."""
    if not averaged:
        return [Line(curve, series, "alone") for curve in curves.values()]
    several = len(curves) > 1
    marks: list[Mark] = [Line(curve, series, "seed") for curve in curves.values() if several]
    average = mean_curve(curves)
    return [*marks, Line(average, series, "mean")] if average else marks


def y_values(marks: Sequence[Mark]) -> list[float]:
    """The values that a vertical axis must hold to show all of `marks`."""
    values: list[float] = []
    for mark in marks:
        match mark:
            case Line() | Dots():
                values += [y for _, y in mark.points]
            case Whisker():
                values += [mark.low, mark.high]
            case Rule():
                values.append(mark.y)
    return values


def x_values(marks: Sequence[Mark]) -> list[float]:
    """The values that a horizontal axis must hold to show all lines in `marks`."""
    return [x for mark in marks if isinstance(mark, Line) for x, _ in mark.points]


def percent(value: float) -> str:
    return tick(value, "fraction")


def _description(subject: str, values: Sequence[str]) -> str:
    return f"{subject}: {'; '.join(values)}." if values else "No values."
