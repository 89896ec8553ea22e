"""The page of the routing study: a table of findings, a figure, and their provenance.

The same rows give the same bytes, so a page under version control changes only with its rows.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from sigmoid_attention.lab.figure import COLOURS, panels, styled, svg
from sigmoid_attention.lab.markers import split_at_markers
from sigmoid_attention.lab.rows import SIGMOID, SOFTMAX
from sigmoid_attention.lab.statistics import Interval
from sigmoid_attention.studies.routing import findings as rule
from sigmoid_attention.studies.routing.findings import QUANTITIES, RoutingFinding, findings, verdict
from sigmoid_attention.studies.routing.setting import PAIRS
from sigmoid_attention.training.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In a document, only the text between these markers is generated.
BEGIN, END = "<!-- routing -->", "<!-- /routing -->"
FIGURE = "routing.svg"
HEADINGS = ("experts", "quantity", SOFTMAX, SIGMOID, "sigmoid - softmax", "sigmoid is")


def publish(rows: pa.Table, document: Path) -> Path:
    """Write the findings between the markers of a document, and the figure in a folder of its name.

    Raises:
        ValueError: the document does not exist or has no markers, or no pair has finished.
        OSError: a file could not be written.
    """
    before, after = split_at_markers(document, BEGIN, END)
    folder = document.with_suffix("")
    text = markdown(rows, f"{folder.name}/{FIGURE}")
    write_whole(folder / FIGURE, svg(draw(findings(rows))))
    write_whole(document, f"{before}\n{text}{after}".encode())
    return document


def markdown(rows: pa.Table, figure: str) -> str:
    """The verdict, the rule, the command, the table and the figure, in Markdown."""
    results = findings(rows)
    if not results:
        raise ValueError("rows: no pair of arms has finished in both")
    parts = [
        "Made by `sigmoid-attention routing` from its rows: what is typed in here is lost.",
        f"**Verdict.** {verdict(results)}",
        f"**Rule.** {_rule()}",
        f"**Command.** `{command(rows)}`, on {_made_on(rows)}.",
        f"**Compute.** {_compute(rows)}",
        table(results),
        f"![How far apart the arms of every pair are, with 95 % intervals over seeds]({figure})",
    ]
    return "\n\n".join(parts) + "\n"


def table(results: Sequence[RoutingFinding]) -> str:
    """A Markdown table with one row per finding."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(cells(finding) for finding in results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(finding: RoutingFinding) -> list[str]:
    """The cells of a finding's row, one for each of ``HEADINGS``."""
    return [
        finding.pair,
        f"{finding.quantity.label} ({finding.quantity.meaning})",
        f"{finding.softmax.mean:.3f}",
        f"{finding.sigmoid.mean:.3f}",
        finding.difference.signed(3),
        finding.standing,
    ]


def command(rows: pa.Table) -> str:
    """The command that reproduces these rows."""
    setting = json.loads(rows["setting"][0].as_py())
    seeds = len(rows["seed"].unique())
    options = {"data": setting["data"], "seeds": seeds, "steps": setting["steps"]}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return shlex.join(["sigmoid-attention", "routing", *words])


def draw(results: Sequence[RoutingFinding]) -> "Figure":
    """A figure with a panel for each quantity: the difference of the arms of every pair."""
    figure, axes = panels(len(QUANTITIES))
    with styled():
        for axis, quantity in zip(axes, QUANTITIES, strict=True):
            axis.set_title(quantity.label)
            axis.set_xlabel(f"{SIGMOID} - {SOFTMAX}")
            axis.set_yticks(range(len(PAIRS)), list(PAIRS))
            axis.set_ylim(len(PAIRS) - 0.5, -0.5)
            axis.axvline(0.0, color="black", linewidth=0.8)
            for height, pair in enumerate(PAIRS):
                for finding in results:
                    if (finding.pair, finding.quantity) == (pair, quantity):
                        _bar(axis, finding.difference, height)
    return figure


def _bar(axis: "Axes", interval: Interval, height: float) -> None:
    axis.plot(interval.mean, height, "o", color=COLOURS[SIGMOID])
    if interval.bounded:
        axis.plot([interval.low, interval.high], [height, height], "-", color=COLOURS[SIGMOID])


def _rule() -> str:
    """The rule, from the docstring of its module."""
    text = " ".join((rule.__doc__ or "").partition("Rule: ")[2].split())
    return text[:1].upper() + text[1:]


def _compute(rows: pa.Table) -> str:
    names, arms, values = (rows[name].to_pylist() for name in ("metric", "arm", "value"))
    parts = []
    for pair in PAIRS:
        counts = {
            metric: sorted(
                {
                    int(value)
                    for name, arm, value in zip(names, arms, values, strict=True)
                    if name == metric and arm.rpartition(" ")[0] == pair
                }
            )
            for metric in ("parameters", "active_parameters")
        }
        if all(counts.values()):
            of, active = (" or ".join(f"{n:,}" for n in counts[name]) for name in counts)
            parts.append(f"{active} of {of} parameters multiply a token in “{pair}”")
    return f"In both arms {'; '.join(parts)}."


def _made_on(rows: pa.Table) -> str:
    machine = json.loads(rows["machine"][0].as_py())
    versions = json.loads(rows["versions"][0].as_py())
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return f"{machine['processor']}, {threads}, torch {versions['torch']}"
