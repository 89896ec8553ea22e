"""Small charts as inline SVG: two axes and the marks between them.

Colours are not written here: every mark carries the class of its arm, and the page's style sheet
gives the class its ink, in light and in dark. The arms differ in more than colour: softmax is
dashed with open circles, sigmoid solid with filled squares.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

# One unit is one CSS pixel on a narrow phone, so that text has its true size there.
WIDTH, HEIGHT = 368, 256
TOP, RIGHT, BOTTOM = 30, 16, 44
CHARACTER = 7.0  # the width of a digit at the style sheet's size for ticks

Form = Callable[[float], str]
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A range, its ticks with their labels, and how values are laid along it."""

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def fraction(self, value: float) -> float:
        """Where `value` lies between `low` (0) and `high` (1)."""
        if self.log:
            # Zero has no place here and stands on the axis itself.
            value = max(value, self.low)
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(values: Sequence[float], title: str, form: Form, *, tight: bool = False) -> Axis:
    """An axis over `values` with ticks at multiples of 1, 2 or 5; `tight` leaves no margin."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1.0) * 0.1, high + (abs(high) or 1.0) * 0.1
    margin = 0.0 if tight else 0.06 * (high - low)
    low, high = low - margin, high + margin
    return Axis(title, low, high, tuple((t, form(t)) for t in _round_ticks(low, high)))


def log_axis(values: Sequence[float], title: str, form: Form, *, binary: bool = False) -> Axis:
    """A logarithmic axis over the positive `values`: ticks at powers of ten, or finer if few.

    `binary` puts them at powers of two instead, where whole KiB and MiB are.
    """
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive) / 1.2, max(positive) * 1.2
    ticks: list[float] = []
    if binary:
        first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
        ticks = [2.0**p for p in range(first, last + 1, max(last - first, 0) // 5 + 1)]
    else:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5)):
            ticks = [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]
            if len(ticks) >= 3:
                break
    if len(ticks) < 2:
        ticks = _round_ticks(low, high)
    return Axis(title, low, high, tuple((t, form(t)) for t in ticks), log=True)


def ticked_axis(ticks: Sequence[tuple[float, str]], title: str, *, log: bool = False) -> Axis:
    """An axis whose ticks are the measured places themselves (lengths, seeds, arms)."""
    low, high = min(place for place, _ in ticks), max(place for place, _ in ticks)
    if log:
        return Axis(title, low / 1.35, high * 1.35, tuple(ticks), log=True)
    return Axis(title, low - 0.5, high + 0.5, tuple(ticks))


@dataclass(frozen=True)
class Frame:
    """The plotting area of a panel: where a pair of values lies, in the picture's units."""

    x: Axis
    y: Axis

    @property
    def left(self) -> float:
        return 12 + CHARACTER * max((len(label) for _, label in self.y.ticks), default=1)

    @property
    def right(self) -> float:
        return WIDTH - RIGHT

    @property
    def bottom(self) -> float:
        return HEIGHT - BOTTOM

    def across(self, x: float) -> float:
        return round(self.left + self.x.fraction(x) * (self.right - self.left), 1)

    def down(self, y: float) -> float:
        return round(self.bottom - self.y.fraction(y) * (self.bottom - TOP), 1)


@dataclass(frozen=True)
class Line:
    """A curve; `role` is "seed" (thin), "mean" (thick), "alone" (a seed where there is no mean) or
    "pair" (a faint link of two values)."""

    points: tuple[Point, ...]
    arm: str
    role: str

    def svg(self, frame: Frame) -> str:
        path = " ".join(f"{frame.across(x)},{frame.down(y)}" for x, y in self.points)
        return f'<polyline class="line {self.arm} {self.role}" points="{path}"/>'


@dataclass(frozen=True)
class Dot:
    """One value; the marker's shape is the arm's, its size that of a "seed" or a "mean"."""

    x: float
    y: float
    arm: str
    role: str

    def svg(self, frame: Frame) -> str:
        return marker(frame.across(self.x), frame.down(self.y), self.arm, self.role)


@dataclass(frozen=True)
class Whisker:
    """An interval, drawn with caps."""

    x: float
    low: float
    high: float
    arm: str

    def svg(self, frame: Frame) -> str:
        x, bottom, top = frame.across(self.x), frame.down(self.low), frame.down(self.high)
        caps = f"M{x - 4:.1f},{bottom}h8M{x - 4:.1f},{top}h8"
        return f'<path class="whisker {self.arm}" d="M{x},{bottom}V{top}{caps}"/>'


@dataclass(frozen=True)
class Rule:
    """A level to compare with, over the whole width, such as no difference."""

    y: float

    def svg(self, frame: Frame) -> str:
        return f'<path class="rule" d="M{frame.left},{frame.down(self.y)}H{frame.right}"/>'


@dataclass(frozen=True)
class Note:
    """A few characters above a point, to its left, where a rising curve leaves room."""

    x: float
    y: float
    text: str

    def svg(self, frame: Frame) -> str:
        x, y = frame.across(self.x) + 8, frame.down(self.y) - 9
        return f'<text class="note" x="{x:.1f}" y="{y:.1f}">{escape(self.text)}</text>'


Mark = Line | Dot | Whisker | Rule | Note


@dataclass(frozen=True)
class Panel:
    """One chart: a title, two axes, marks drawn in their order, and what they show in words."""

    title: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    description: str

    def svg(self) -> str:
        """The panel as one `<svg>` element that scales with its box."""
        frame = Frame(self.x, self.y)
        label = escape(f"{self.title}. {self.description}", quote=True)
        parts = [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">',
            f'<text class="title" x="0" y="13">{escape(self.title)}'
            f'<tspan class="unit" dx="8">{escape(self.y.title)}</tspan></text>',
        ]
        for value, text in self.y.ticks:
            y = frame.down(value)
            parts.append(f'<path class="grid" d="M{frame.left},{y}H{frame.right}"/>')
            parts.append(f'<text class="tick y" x="{frame.left - 6}" y="{y + 4:.1f}">{text}</text>')
        base = frame.bottom
        parts.append(f'<path class="axis" d="M{frame.left},{base}H{frame.right}"/>')
        for value, text in self.x.ticks:
            x = frame.across(value)
            parts.append(f'<path class="axis" d="M{x},{base}v4"/>')
            parts.append(f'<text class="tick x" x="{x}" y="{base + 17}">{escape(text)}</text>')
        parts.append(
            f'<text class="unit x" x="{frame.right}" y="{HEIGHT - 6}">{escape(self.x.title)}</text>'
        )
        parts.extend(mark.svg(frame) for mark in self.marks)
        return "\n".join([*parts, "</svg>"])


def marker(x: float, y: float, arm: str, role: str) -> str:
    """A marker around a point of the picture: softmax an open circle, sigmoid a filled square.

    What belongs to neither is a diamond.
    """
    size = 4.0 if role == "mean" else 2.5
    if arm == "softmax":
        return f'<circle class="dot softmax {role}" cx="{x}" cy="{y}" r="{size + 0.5}"/>'
    if arm == "sigmoid":
        corner = f'x="{x - size:.1f}" y="{y - size:.1f}"'
        return f'<rect class="dot sigmoid {role}" {corner} width="{2 * size}" height="{2 * size}"/>'
    half = size + 1.5
    diamond = f"M{x},{y - half:.1f}l{half},{half}l{-half},{half}l{-half},{-half}z"
    return f'<path class="dot {arm} {role}" d="{diamond}"/>'


def _round_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between `low` and `high`: four to eight."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounded, so that 3 * 0.1 is labelled 0.3.
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, last + 1)]
