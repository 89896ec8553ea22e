"""The figure of the recipe study: losses by length and place, and what happens during training.

Curves are means over the seeds, and over the layers where a metric has them. A panel without rows
is left out.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sigmoid_attention.lab.figure import COLOURS, OTHERS, panels, styled
from sigmoid_attention.studies.recipe.results import best_softmax
from sigmoid_attention.studies.recipe.standing import Standing, recommended
from sigmoid_attention.studies.recipe.unit import (
    CENTRED,
    COMMON,
    COPYING,
    COURSE,
    LOSS,
    PART,
    WINDOWED,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MASS = "attention_mass"
# Shown beside the best softmax and the recommended candidate.
COMPARED = ("sigmoid", "sigmoid-paper")

# A metric's mean over seeds and layers, by a number of its rows.
Curve = Mapping[int, float]


@dataclass(frozen=True)
class Panel:
    """A panel's title, labels, and metrics: a solid line of the first, a dashed one of the second.

    ``by`` is the column of the horizontal axis.
    """

    title: str
    xlabel: str
    ylabel: str
    by: str
    metrics: tuple[str, ...]
    scales: tuple[str, str] = ("linear", "linear")


PANELS = (
    Panel("held-out loss, during training", "step", "bits per byte", "step", (COURSE,)),
    Panel(
        "held-out loss, by length",
        "length; dashed: with a window of n",
        "bits per byte",
        "length",
        (LOSS, WINDOWED),
        ("log", "linear"),
    ),
    Panel("loss by eighths of the window", "eighth", "bits per byte", "step", (PART,)),
    Panel("gain of copying random symbols", "step", "bits", "step", (COPYING,)),
    Panel(
        "variance of logits in the rows' means",
        "step; dashed: after centring",
        "share",
        "step",
        (COMMON, CENTRED),
    ),
    Panel("mass of a row", "step", "mean over layers", "step", (MASS,), ("linear", "log")),
)


def draw(rows: Sequence[Mapping[str, Any]], ranking: list[Standing]) -> "Figure":
    """The figure for the best softmax, the recommended candidate, and those that it replaces."""
    arms = _arms(ranking)
    curves = _curves([row for row in rows if row["arm"] in arms])
    shown = [panel for panel in PANELS if any((arm, panel.metrics[0]) in curves for arm in arms)]
    figure, axes = panels(len(shown))
    palette = dict(zip(arms, (COLOURS["softmax"], COLOURS["sigmoid"], *OTHERS), strict=False))
    with styled():
        for ax, panel in zip(axes, shown, strict=True):
            for metric, style in zip(panel.metrics, ("-", "--"), strict=False):
                for arm, name in arms.items():
                    curve = curves.get((arm, metric))
                    if curve:
                        points = sorted(curve[panel.by].items())
                        label = name if style == "-" else None
                        ax.plot(*zip(*points, strict=True), style, color=palette[arm], label=label)
            _axes(ax, panel)
        axes[0].legend()
    return figure


def _arms(ranking: list[Standing]) -> dict[str, str]:
    """The candidates shown, by the ``arm`` of their rows."""
    softmax = best_softmax([own.candidate for own in ranking])
    sigmoid = recommended(ranking)
    names = [softmax, *([sigmoid.candidate] if sigmoid else []), *COMPARED]
    by_name = {own.candidate: f"{own.candidate} @ {own.lr:g}" for own in ranking}
    return {by_name[name]: name for name in dict.fromkeys(names) if name in by_name}


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, Curve]]:
    """Means by arm and metric, along the steps and along the lengths."""
    values: dict = defaultdict(lambda: {"step": defaultdict(list), "length": defaultdict(list)})
    for row in rows:
        for column in ("step", "length"):
            values[row["arm"], row["metric"]][column][row[column]].append(row["value"])
    return {
        key: {
            column: {place: mean(numbers) for place, numbers in places.items()}
            for column, places in columns.items()
        }
        for key, columns in values.items()
    }


def _axes(ax: "Axes", panel: Panel) -> None:
    ax.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
    plain = FuncFormatter(lambda number, _: f"{number:g}")
    if panel.scales[0] == "log":
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(plain)
    if panel.scales[1] == "log":
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(plain)
        ax.yaxis.set_minor_formatter(NullFormatter())
