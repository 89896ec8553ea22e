"""The kinds of panel that the figures are put together from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sigmoid_attention.lab.rows import ARMS, SIGMOID, SOFTMAX
from sigmoid_attention.lab.statistics import Interval
from sigmoid_attention.report.chart import (
    Axis,
    Dot,
    Form,
    Line,
    Mark,
    Note,
    Panel,
    Rule,
    Whisker,
    linear_axis,
    log_axis,
    ticked_axis,
)
from sigmoid_attention.report.format import compact, plain, quantity, signed, tick, token_count
from sigmoid_attention.report.measured import Curve, Measured, mean, mean_curve

# The class of a mark that belongs to no arm but to how far the two lie apart.
APART = "difference"
# Side by side where both arms stand at the same place.
SIDE = {SOFTMAX: -1.0, SIGMOID: 1.0}

Curves = Mapping[int, Curve]


def arms_panel(at: Mapping[str, Mapping[int, float]], intervals: Mapping[str, Interval]) -> Panel:
    """Both arms' values by seed, linked where they share one, with mean and interval beside."""
    place = {SOFTMAX: 0.0, SIGMOID: 1.0}
    marks: list[Mark] = [
        Line(((0.0, at[SOFTMAX][seed]), (1.0, at[SIGMOID][seed])), APART, "pair")
        for seed in sorted(at[SOFTMAX].keys() & at[SIGMOID].keys())
    ]
    for arm in ARMS:
        marks += [Dot(place[arm], y, arm, "seed") for y in at[arm].values()]
        marks += with_interval(place[arm] + 0.2 * SIDE[arm], intervals.get(arm), arm)
    y_axis = linear_axis(heights(marks), "bits per byte", plain)
    said = [f"{arm} {quantity(mean(at[arm].values()), 'bits/byte')}" for arm in ARMS if at[arm]]
    ticks = [(x, arm) for arm, x in place.items()]
    return Panel("Each seed", ticked_axis(ticks, ""), y_axis, tuple(marks), _say("Means", said))


def apart_panel(paired: Mapping[int, float], interval: Interval | None) -> Panel:
    """The difference of the arms seed by seed, and its mean with the interval."""
    marks: list[Mark] = [Rule(0.0)]
    marks += [Dot(float(i), paired[seed], APART, "seed") for i, seed in enumerate(paired)]
    ticks = [(float(i), f"seed {seed}") for i, seed in enumerate(paired)]
    # Names of many seeds would run into each other.
    if len(ticks) > 4:
        ticks = [(x, name.removeprefix("seed ")) for x, name in ticks]
    aside = len(paired) + (0.5 if len(paired) > 4 else 0.0)
    ticks.append((aside, "mean"))
    marks += with_interval(aside, interval, APART)
    y_axis = linear_axis([0.0, *heights(marks)], "bits per byte", signed)
    said = [f"seed {seed} {signed(value)}" for seed, value in paired.items()]
    x_axis = ticked_axis(ticks, "seed" if len(paired) > 4 else "")
    return Panel("Sigmoid − softmax", x_axis, y_axis, tuple(marks), _say("By seed", said))


def curves_panel(
    title: str,
    by_arm: Mapping[str, Curves],
    y_axis: Axis,
    form: Form,
    *,
    along: str = "training step",
    averaged: bool = True,
) -> Panel:
    """Curves over training: every seed thin and the mean thick, or, not `averaged`, seeds alone."""
    marks = [mark for arm, of in by_arm.items() for mark in curve_marks(of, arm, averaged)]
    if averaged:
        ends = [(arm, mean_curve(of)) for arm, of in by_arm.items()]
    else:
        ends = [(arm, curve) for arm, of in by_arm.items() for curve in of.values()]
    said = [f"{arm} from {form(c[0][1])} to {form(c[-1][1])}" for arm, c in ends if c]
    x_axis = linear_axis(places(marks), along, compact, tight=True)
    what = "Means" if averaged else "Seeds"
    return Panel(title, x_axis, y_axis, tuple(marks), _say(what, said))


def gap_panel(of: Curves, unit: str, *, along: str = "training step") -> Panel:
    """How far the arms lie apart over training, around no difference."""
    marks: list[Mark] = [Rule(0.0), *curve_marks(of, APART)]
    x_axis = linear_axis(places(marks), along, compact, tight=True)
    y_axis = linear_axis([0.0, *heights(marks)], unit, signed)
    end = mean(curve[-1][1] for curve in of.values())
    return Panel("Sigmoid − softmax", x_axis, y_axis, tuple(marks), f"Ends at {signed(end)}.")


def lengths_panels(measured: Measured, metric: str) -> list[Panel]:
    """A metric by sequence length, and the difference of the arms by length."""
    lengths = measured.lengths(metric)
    marks: list[Mark] = []
    said: list[str] = []
    for arm in measured.arms(metric):
        # Aside by a little, so that one interval does not hide the other.
        shift = 1 + 0.04 * SIDE[arm]
        means = measured.means(metric, arm)
        marks.append(Line(tuple((n * shift, y) for n, y in means.items()), arm, "mean"))
        marks += [Dot(v.length * shift, v.value, arm, "seed") for v in measured.values(metric, arm)]
        for n, y in means.items():
            marks += with_interval(n * shift, measured.intervals(metric, n).get(arm), arm)
            said.append(f"{arm} at {n} tokens {quantity(y, 'bits/byte')}")
    ticks = [(float(n), f"{token_count(n)} ({n / lengths[0]:.3g}×)") for n in lengths]
    x_axis = ticked_axis(ticks, "tokens read at once", log=True)
    y_axis = linear_axis(heights(marks), "bits per byte", plain)
    panels = [Panel("Loss by length", x_axis, y_axis, tuple(marks), _say("Means", said))]
    known = [(n, apart) for n in lengths if (apart := measured.apart(metric, n)) and apart.n]
    if known:
        rule: list[Mark] = [Rule(0.0)]
        gaps = rule + [mark for n, apart in known for mark in with_interval(n, apart, APART)]
        y_axis = linear_axis(heights(gaps), "bits per byte", signed)
        said = [f"at {n} tokens {signed(apart.mean)}" for n, apart in known]
        panels.append(Panel("Sigmoid − softmax", x_axis, y_axis, tuple(gaps), _say("Means", said)))
    return panels


def finals_panel(
    names: Sequence[str],
    at: Sequence[Mapping[str, Sequence[float]]],
    intervals: Sequence[Mapping[str, Interval]],
) -> Panel:
    """Last accuracies of several tasks side by side: every seed, with mean and interval beside."""
    marks: list[Mark] = []
    said: list[str] = []
    for task, name in enumerate(names):
        for arm in ARMS:
            ends = at[task].get(arm, ())
            marks += [Dot(task + 0.12 * SIDE[arm], y, arm, "seed") for y in ends]
            if around := intervals[task].get(arm):
                # No accuracy lies outside, whatever the interval of a mean does.
                around = replace(around, low=max(around.low, 0.0), high=min(around.high, 1.0))
            marks += with_interval(task + 0.25 * SIDE[arm], around, arm)
            if ends and intervals[task]:
                said.append(f"{arm}, {name}: {quantity(mean(ends), 'fraction')} on average")
            elif ends:
                said.append(f"{arm}, {name}: {', '.join(percent(y) for y in ends)}")
    x_axis = ticked_axis([(float(i), name) for i, name in enumerate(names)], "")
    y_axis = linear_axis([1.0, *heights(marks)], "answers right", percent)
    return Panel("After training", x_axis, y_axis, tuple(marks), _say("Right answers", said))


def cost_panel(measured: Measured, metric: str, title: str, unit: str) -> Panel:
    """Time or memory by sequence length, both axes logarithmic, the ratio written above."""
    cost = {arm: measured.means(metric, arm) for arm in ARMS}
    marks: list[Mark] = []
    said: list[str] = []
    for arm in ARMS:
        marks.append(Line(tuple(cost[arm].items()), arm, "mean"))
        marks += [Dot(n, value, arm, "mean") for n, value in cost[arm].items()]
        said += [f"{arm} at {n} tokens {quantity(value, unit)}" for n, value in cost[arm].items()]
    for n in sorted(cost[SOFTMAX].keys() & cost[SIGMOID].keys()):
        # The summary's ratio is that of paired timings; a quotient of means only stands in for it.
        apart = measured.apart(metric, n)
        ratio = apart.mean if apart and apart.n else cost[SIGMOID][n] / cost[SOFTMAX][n]
        marks.append(Note(n, max(cost[arm][n] for arm in ARMS), f"{ratio:.2g}×"))
        said.append(f"ratio at {n} tokens {ratio:.2f}")
    ticks = [(float(n), token_count(n)) for n in measured.lengths(metric)]
    x_axis = ticked_axis(ticks, "sequence length", log=True)
    # Room above for the ratio at the highest point.
    top = [1.5 * y for y in heights(marks)]
    y_axis = log_axis(
        [*heights(marks), *top], "", lambda value: tick(value, unit), binary=unit == "bytes"
    )
    return Panel(title, x_axis, y_axis, tuple(marks), _say("By length", said))


def with_interval(x: float, interval: Interval | None, arm: str) -> list[Mark]:
    """A mean with its whisker; the mean alone where it has no interval, nothing where no mean."""
    if interval is None or interval.n == 0:
        return []
    dot = Dot(x, interval.mean, arm, "mean")
    return [Whisker(x, interval.low, interval.high, arm), dot] if interval.bounded else [dot]


def curve_marks(of: Curves, arm: str, averaged: bool = True) -> list[Mark]:
    """The seeds' curves, thin, and over them their mean, thick; or the seeds alone, less thin."""
    if not averaged:
        return [Line(curve, arm, "alone") for curve in of.values()]
    seeds: list[Mark] = [Line(curve, arm, "seed") for curve in of.values()] if len(of) > 1 else []
    average = mean_curve(of)
    return [*seeds, Line(average, arm, "mean")] if average else seeds


def heights(marks: Sequence[Mark]) -> list[float]:
    """The values that a vertical axis must hold to show all of `marks`."""
    found: list[float] = []
    for mark in marks:
        match mark:
            case Line():
                found += [y for _, y in mark.points]
            case Whisker():
                found += [mark.low, mark.high]
            case Dot() | Rule():
                found.append(mark.y)
    return found


def places(marks: Sequence[Mark]) -> list[float]:
    """The values that a horizontal axis must hold to show all lines in `marks`."""
    return [x for mark in marks if isinstance(mark, Line) for x, _ in mark.points]


def percent(value: float) -> str:
    return tick(value, "fraction")


def _say(what: str, parts: Sequence[str]) -> str:
    return f"{what}: {'; '.join(parts)}." if parts else "No values."
