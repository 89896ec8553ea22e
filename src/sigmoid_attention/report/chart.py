"""Small charts with two axes and marks, drawn by matplotlib.

The series differ in colour, dashes and markers: softmax has dashes and open circles, sigmoid a
solid line and filled squares.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from sigmoid_attention.lab.figure import DOTS_PER_INCH, drawing, pixels, themed
from sigmoid_attention.lab.rows import SIGMOID, SOFTMAX
from sigmoid_attention.lab.theme import PALETTE, inline

# In CSS pixels. On a narrow phone a chart is not scaled, so its text keeps its size.
WIDTH, HEIGHT = 368, 268
TOP, RIGHT, BOTTOM = 44, 16, 44
CHARACTER = 7.0  # the width of a digit at the size of the ticks' labels
KEY_WIDTH, KEY_HEIGHT = 32, 14
# The width and opacity of a line by its role.
LINE_ROLES = {"mean": (2.25, 1.0), "seed": (0.9, 0.5), "alone": (1.5, 0.75), "pair": (1.0, 0.45)}
# Relative marker sizes, which give all shapes about the area of a square.
MARKER_SIZES = {"s": 1.0, "o": 1.13, "D": 0.98, "^": 1.3, "v": 1.3, "X": 1.2, "P": 1.2}
DOT_ROLES = {"mean": 8.0, "seed": 5.0}

Form = Callable[[float], str]
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """The style of one kind of marks: the palette's colour, dashes, and the marker's shape.

    An `is_open` marker is filled with the colour of the page.
    """

    name: str
    colour: str
    dashes: tuple[float, ...] = ()
    marker: str = "D"
    is_open: bool = False

    @property
    def ink(self) -> str:
        return PALETTE[self.colour].light


ARM_SERIES = {
    SOFTMAX: Series(SOFTMAX, "blue", (6, 3), "o", is_open=True),
    SIGMOID: Series(SIGMOID, "vermilion", (), "s"),
}
# Sigmoid minus softmax.
DIFFERENCE = Series("difference", "slate")


@dataclass(frozen=True)
class Axis:
    """A range and its ticks with their labels."""

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False


def linear_axis(values: Sequence[float], title: str, form: Form, *, tight: bool = False) -> Axis:
    """A linear axis over `values`, ticks at multiples of 1, 2 or 5; `tight` leaves no margin."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1.0) * 0.1, high + (abs(high) or 1.0) * 0.1
    margin = 0.0 if tight else 0.06 * (high - low)
    low, high = low - margin, high + margin
    return Axis(title, low, high, tuple((t, form(t)) for t in _round_ticks(low, high)))


def log_axis(values: Sequence[float], title: str, form: Form, *, binary: bool = False) -> Axis:
    """A logarithmic axis over the positive `values`: ticks at powers of ten, or finer if few.

    `binary` puts the ticks at powers of two instead, for whole KiB and MiB.
    """
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive) / 1.2, max(positive) * 1.2
    ticks: list[float] = []
    for digits in ((1.0,),) if binary else ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        locator = LogLocator(2 if binary else 10, digits, numticks=7)
        ticks = [float(t) for t in locator.tick_values(low, high) if low <= t <= high]
        if len(ticks) >= 3:
            break
    if len(ticks) < 2:
        ticks = _round_ticks(low, high)
    return Axis(title, low, high, tuple((t, form(t)) for t in ticks), log=True)


def ticked_axis(ticks: Sequence[tuple[float, str]], title: str, *, log: bool = False) -> Axis:
    """An axis with ticks at the measured positions (lengths, seeds, arms)."""
    low, high = min(at for at, _ in ticks), max(at for at, _ in ticks)
    if log:
        return Axis(title, low / 1.6, high * 1.35, tuple(ticks), log=True)
    return Axis(title, low - 0.5, high + 0.5, tuple(ticks))


def _round_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between `low` and `high`: three to seven."""
    ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)
    slack = 1e-9 * (high - low)
    # Rounded, so that 3 * 0.1 is labelled 0.3.
    digits = max(0, 1 - math.floor(math.log10(ticks[1] - ticks[0])))
    return [round(float(t), digits) for t in ticks if low - slack <= t <= high + slack]


@dataclass(frozen=True)
class Line:
    """A curve; `role` is "seed" (thin), "mean" (thick), "alone" (a seed without a mean) or
    "pair" (a faint link of two values)."""

    points: tuple[Point, ...]
    series: Series
    role: str

    def draw(self, ax: Axes) -> None:
        x, y = _on_axes(ax, self.points)
        width, opacity = LINE_ROLES[self.role]
        (line,) = ax.plot(x, y, color=self.series.ink, linewidth=width, alpha=opacity)
        if self.series.dashes:
            # matplotlib's unit for dashes is the line width; here they are in pixels.
            line.set_dashes([length / width for length in self.series.dashes])
        line.set_gid(f"line {self.series.name} {self.role}")


@dataclass(frozen=True)
class Dots:
    """Single values; the series sets the marker's shape, the role ("seed", "mean") its size."""

    points: tuple[Point, ...]
    series: Series
    role: str

    def draw(self, ax: Axes) -> None:
        x, y = _on_axes(ax, self.points)
        (dots,) = ax.plot(
            x,
            y,
            self.series.marker,
            color=self.series.ink,
            alpha=1.0 if self.role == "mean" or self.series.is_open else 0.75,
            markersize=DOT_ROLES[self.role] * MARKER_SIZES[self.series.marker],
            markeredgewidth=1.6 if self.series.is_open else 0.0,
        )
        if self.series.is_open:
            dots.set_markerfacecolor(PALETTE["paper"].light)
        dots.set_gid(f"dots {self.series.name} {self.role}")


@dataclass(frozen=True)
class Whisker:
    """An interval, drawn with caps."""

    x: float
    low: float
    high: float
    series: Series

    def draw(self, ax: Axes) -> None:
        x, y = _on_axes(ax, ((self.x, self.low), (self.x, self.high)))
        ink = self.series.ink
        (bar,) = ax.plot(x, y, "_-", color=ink, linewidth=1.5, markersize=8, markeredgewidth=1.5)
        bar.set_gid(f"whisker {self.series.name}")


@dataclass(frozen=True)
class Rule:
    """A reference level over the whole width, such as no difference."""

    y: float

    def draw(self, ax: Axes) -> None:
        ax.axhline(self.y, color=PALETTE["quiet"].light, linewidth=1.25, zorder=1.5, gid="rule")


@dataclass(frozen=True)
class Note:
    """A short text above and to the left of a point, where a rising curve leaves space."""

    x: float
    y: float
    text: str

    def draw(self, ax: Axes) -> None:
        ax.annotate(
            self.text,
            (self.x, self.y),
            (8, 9),
            textcoords="offset points",
            horizontalalignment="right",
            color=PALETTE["ink"].light,
            gid="note",
        )


Mark = Line | Dots | Whisker | Rule | Note


@dataclass(frozen=True)
class Panel:
    """One chart: a title, two axes, marks drawn in their order, and a description in words."""

    title: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    description: str

    def svg(self) -> str:
        """The panel as one `<svg>` element that scales with its box."""
        figure = pixels(WIDTH, HEIGHT)
        with drawing():
            self.draw(figure)
            return inline(themed(figure), f"{self.title}. {self.description}")

    def draw(self, figure: Figure, across: float = 0, down: float = 0) -> None:
        """Draw the panel into a figure, with its upper left corner at (`across`, `down`) pixels."""

        def write(x: float, y: float, text: str, **style: Any) -> None:
            write_text(figure, across + x, down + y, text, **style)

        write(0, 13, self.title, gid="title", size=13, weight="bold", color=PALETTE["ink"].light)
        write(0, 30, self.y.title)
        write(WIDTH - RIGHT, HEIGHT - 6, self.x.title, horizontalalignment="right")
        ax = self._axes(figure, across, down)
        for mark in self.marks:
            mark.draw(ax)
        for artist in (*ax.lines, *ax.texts, *ax.get_ygridlines()):
            # A mark at the edge is not clipped.
            artist.set_clip_on(False)

    def _axes(self, figure: Figure, across: float, down: float) -> Axes:
        left = 12 + CHARACTER * max((len(label) for _, label in self.y.ticks), default=1)
        box = across + left, down + TOP, WIDTH - RIGHT - left, HEIGHT - BOTTOM - TOP
        ax = figure.add_axes(_fractions(figure, *box), facecolor="none")
        scales = ["log" if axis.log else "linear" for axis in (self.x, self.y)]
        ax.set(xscale=scales[0], yscale=scales[1])
        for axis, values in ((ax.xaxis, self.x), (ax.yaxis, self.y)):
            axis.set_minor_locator(NullLocator())
            axis.set_ticks([at for at, _ in values.ticks], [label for _, label in values.ticks])
            for label in axis.get_ticklabels():
                label.set_gid(f"tick {axis.axis_name}")
        ax.set_xlim(self.x.low, self.x.high)
        ax.set_ylim(self.y.low, self.y.high)
        return ax


def key_svg(series: Series) -> str:
    """The series' line and marker as SVG, for a legend."""
    figure = pixels(KEY_WIDTH, KEY_HEIGHT)
    with drawing():
        draw_key(figure, 0, 0, series)
        return inline(themed(figure))


def draw_key(figure: Figure, across: float, down: float, series: Series) -> None:
    """Draw the series' line and marker, KEY_WIDTH x KEY_HEIGHT pixels, at (`across`, `down`)."""
    ax = figure.add_axes(_fractions(figure, across, down, KEY_WIDTH, KEY_HEIGHT))
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_axis_off()
    Line(((0.0, 0.5), (1.0, 0.5)), series, "mean").draw(ax)
    Dots(((0.5, 0.5),), series, "mean").draw(ax)
    for artist in ax.lines:
        artist.set_clip_on(False)


def _on_axes(ax: Axes, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of points; on a logarithmic axis zero is drawn at the lower end."""
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    return x, np.maximum(y, ax.get_ylim()[0]) if ax.get_yscale() == "log" else y


def write_text(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Write text with its baseline at (`x`, `y`) pixels from the upper left corner."""
    x, y, _, _ = _fractions(figure, x, y, 0, 0)
    figure.text(x, y, text, verticalalignment="baseline", **style)


def _fractions(
    figure: Figure, x: float, y: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """A box in matplotlib's coordinates; `x` and `y` are its upper left corner in pixels."""
    across, down = figure.get_size_inches() * DOTS_PER_INCH
    return x / across, 1 - (y + height) / down, width / across, height / down
