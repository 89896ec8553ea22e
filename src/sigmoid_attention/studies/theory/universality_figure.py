"""The figures of the universality study: error against steepness, and error against size.

Each function has its own dash pattern, so curves differ without colours.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sigmoid_attention.lab.figure import COLOURS, panels, styled
from sigmoid_attention.lab.rows import ARMS
from sigmoid_attention.studies.theory.universality import UniversalityFindings

DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = {"sigmoid": "s", "softmax": "o"}
PROOF_COLOUR = "#000000"


def steepness_figure(by_function: Mapping[str, Mapping[float, float]], error: float) -> Figure:
    """The construction's L^p error against the steepness of its sigmoids, a curve a function.

    ``error`` is the requested error, drawn as a horizontal line.
    """
    figure, (ax,) = panels(1)
    with styled():
        figure.set_size_inches(4.8, 3.4)
        ax.axhline(error, color="#000000", linewidth=0.8, label="requested")
        for (name, errors), dash in zip(by_function.items(), cycle(DASHES), strict=False):
            ax.plot(list(errors), list(errors.values()), linestyle=dash, label=name)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda steepness, _: f"{steepness:g}"))
        _few_labels(ax)
        ax.set_xlabel("steepness")
        ax.set_ylabel("error of the construction")
        ax.legend()
    return figure


def size_figure(findings: Sequence[UniversalityFindings]) -> Figure:
    """L2 error against number of parameters, of the proof on each grid and of trained models.

    Each trained size shows its mean over seeds and the 95% interval; there is a panel a function.
    """
    figure, axes = panels(len(findings))
    with styled():
        for ax, finding in zip(axes, findings, strict=True):
            _size_panel(ax, finding)
        axes[0].set_ylabel("L2 error")
        axes[-1].legend()
    return figure


def _size_panel(ax: Axes, finding: UniversalityFindings) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.plot(
        list(finding.proof), list(finding.proof.values()), "D-", color=PROOF_COLOUR, label="proof"
    )
    for arm in ARMS:
        sizes = list(finding.trained[arm])
        intervals = list(finding.trained[arm].values())
        means = [interval.mean for interval in intervals]
        # An interval of few seeds may reach below zero, which a logarithmic axis cannot show.
        below = [min(i.mean - i.low, 0.9 * i.mean) if i.bounded else 0.0 for i in intervals]
        above = [i.high - i.mean if i.bounded else 0.0 for i in intervals]
        ax.errorbar(
            sizes,
            means,
            (below, above),
            fmt=f"{MARKERS[arm]}-",
            color=COLOURS[arm],
            markerfacecolor="white" if arm == "softmax" else None,
            label=f"trained, {arm}",
        )
    _few_labels(ax)
    ax.set_title(finding.name, loc="left")
    ax.set_xlabel("parameters")


def _few_labels(ax: Axes) -> None:
    """Errors as plain numbers, at 1, 2 and 5 times powers of ten, and no ticks between labels."""
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{error:g}"))
    # Minor ticks are most of such an SVG's bytes.
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_locator(NullLocator())
