"""The style of all figures: sizes, colours, log-log axes, and reproducible SVG.
The figures of the studies are files of several panels (`panels`, `loglog`, `svg`), the charts of
the report and of the benchmarks are laid out in pixels (`pixels`, `drawing`, `themed`).

Shape letters: N sample sizes, R replicates.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree.ElementTree import Element

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator

from sigmoid_attention.lab.theme import PALETTE, standalone, with_classes

# The papers' blue and green for the two gates. All colours are shades that readers with any colour
# vision can distinguish (after Okabe and Ito).
COLOURS = {
    "sigmoid": "#0072b2",
    "softmax": "#009e73",
    "normalised_sigmoid": "#56b4e9",
    "tanh": "#d55e00",
    "relu": "#cc79a7",
    "hard_sigmoid": "#e69f00",
    "sqrt_softplus": "#8c564b",
    "sparsemax": "#7f7f7f",
    "entmax15": "#000000",
}
OTHERS = ("#d55e00", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
PANEL_INCHES = (3.6, 3.0)
COLUMNS = 3
# Points of matplotlib and of SVG: one is a pixel.
DOTS_PER_INCH = 72
INK, QUIET, HAIR, PAPER = (PALETTE[name].light for name in ("ink", "quiet", "hair", "paper"))

# Text stays text, and the ids of elements depend on the figure only.
SVG_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sigmoid-attention",
}
STYLE: dict[Any, Any] = SVG_STYLE | {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(color=OTHERS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "errorbar.capsize": 2.0,
    # With a background, because the page around the file may have the other colour scheme.
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "figure.figsize": PANEL_INCHES,
    "font.size": 9.0,
    "grid.color": HAIR,
    "legend.fontsize": "small",
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.0,
    "savefig.facecolor": PAPER,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
CHART_STYLE: dict[Any, Any] = SVG_STYLE | {
    "axes.axisbelow": True,
    "axes.edgecolor": QUIET,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.linewidth": 0.75,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 12.0,
    "grid.color": HAIR,
    "grid.linewidth": 0.75,
    "text.color": QUIET,
    "text.parse_math": False,
    "xtick.color": QUIET,
    "xtick.labelsize": 12.0,
    "xtick.major.pad": 3.0,
    "xtick.major.size": 4.0,
    "xtick.major.width": 0.75,
    "ytick.color": QUIET,
    "ytick.labelsize": 12.0,
    "ytick.major.pad": 6.0,
    "ytick.major.size": 0.0,
}


@contextmanager
def styled() -> Iterator[None]:
    """A context in which figures are drawn and saved in the style of the studies."""
    with matplotlib.rc_context(STYLE):
        yield


def panels(count: int, columns: int = COLUMNS) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels side by side, in rows of at most ``columns``.

    Example:
        >>> figure, axes = panels(4)
        >>> len(axes), figure.get_size_inches().round(1).tolist()
        (4, [10.8, 6.0])
    """
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    width, height = PANEL_INCHES
    with styled():
        figure = Figure(figsize=(width * columns, height * rows))
        axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    return figure, axes


def loglog(
    ax: Axes,
    sizes_N: np.ndarray,
    values_NR: np.ndarray,
    label: str | None,
    slope: float | None = None,
    *,
    colour: str | None = None,
    dashed: bool = False,
) -> None:
    """Plot medians over replicates against n on logarithmic axes, with interquartile bars.

    Args:
        sizes_N: numbers of observations.
        values_NR: a loss; NaN is left out, and so are sizes with only NaN.
        label: the entry of the legend; without labels there is no legend.
        slope: of the least-squares line through the logarithms of the medians; by default there
            is no line.
        colour: a gate's name, or a colour of matplotlib's; by default the next of the cycle.
        dashed: draw a dashed line and open points.
    """
    finite = np.isfinite(values_NR).any(axis=1)
    sizes = np.asarray(sizes_N, dtype=float)[finite]
    if len(sizes) == 0:
        return
    low, middle, high = np.nanquantile(values_NR[finite], (0.25, 0.5, 0.75), axis=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    # Minor ticks would double the bytes of the SVG, and sizes are whole decades.
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(_Plain(minor_thresholds=(1.0, 0.4)))
    ax.set_xlabel("n")
    points, *_ = ax.errorbar(
        sizes,
        middle,
        (middle - low, high - middle),
        fmt="o",
        color=COLOURS.get(colour, colour) if colour else None,
        markerfacecolor=PAPER if dashed else None,
    )
    ink, line = points.get_color(), "--" if dashed else "-"
    if slope is not None:
        log_n = np.log(sizes)
        height = np.log(np.maximum(middle, 1e-300)).mean()
        ax.plot(sizes, np.exp(height + slope * (log_n - log_n.mean())), line, color=ink)
    if label:
        # For the legend only, which shows a point on a line without a bar.
        face = points.get_markerfacecolor()
        ax.plot([], [], f"o{line}", color=ink, markerfacecolor=face, label=label)
        ax.legend()


class _Plain(LogFormatter):
    """Tick labels for an axis shorter than a decade: 0.6, not 6e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def svg(figure: Figure, title: str = "") -> bytes:
    """The figure as a reproducible SVG file for light and dark pages.

    `title` is the text for screen readers.
    """
    with styled():
        return standalone(themed(figure), title)


@contextmanager
def drawing() -> Iterator[None]:
    """A context in which charts are drawn and saved in the style of the report."""
    with matplotlib.rc_context(CHART_STYLE):
        yield


def pixels(width: float, height: float) -> Figure:
    """An empty figure of this size in pixels, without a background."""
    size = width / DOTS_PER_INCH, height / DOTS_PER_INCH
    return Figure(figsize=size, dpi=DOTS_PER_INCH, facecolor="none")


def themed(figure: Figure) -> Element:
    """The figure as the root element of an SVG with classes in place of colours."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return with_classes(buffer.getvalue())
