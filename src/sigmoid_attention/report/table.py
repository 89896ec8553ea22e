"""The summary as HTML tables: each arm's measurement, the difference, and the verdict."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

from sigmoid_attention.report.format import difference, quantity
from sigmoid_attention.report.html import from_template
from sigmoid_attention.studies.compare.results import Fusion, Gain, SummaryRow
from sigmoid_attention.studies.compare.standing import Reading, gain_reading, pace, reading, share

HEADINGS = ("Question", "Verdict", "Softmax", "Sigmoid", "Sigmoid against softmax")
FUSED_HEADINGS = ("Question", "Verdict", "Unfused", "Fused", "Fused against unfused")
# Groups by the prefix of a metric's name; the first match counts.
GROUPS = (
    (("validation", "bits_after"), "Language modelling"),
    (("recall", "copy"), "Retrieval"),
    (("step", "peak"), "Cost of training"),
    (("",), "Cost of the operator alone"),
)
Cells = tuple[str, str, str, str]


def cells(row: SummaryRow) -> Cells:
    """The measurement of each arm, the difference, and its interval.

    Example:
        >>> from sigmoid_attention.lab.statistics import Interval
        >>> arm, ratio = Interval(0.06, 0.05, 0.07, 9), Interval(0.92, 0.85, 1.0, 9)
        >>> cells(SummaryRow("step_seconds", "", "seconds", -1, True, arm, arm, ratio, "ratio"))
        ('60.0 ms', '60.0 ms', '8% faster', '0.920×, 0.850 to 1.000')
    """
    if solved := row.solved:
        change = f"{solved.sigmoid - solved.softmax:+d}".replace("-", "−").replace("+0", "0")
        softmax, sigmoid = (f"{n} of {solved.seeds}" for n in (solved.softmax, solved.sigmoid))
        return softmax, sigmoid, f"{change} seeds", ""
    softmax, sigmoid = (quantity(i.mean, row.unit) for i in (row.softmax, row.sigmoid))
    amount, interval = difference(row.difference, row.unit, row.kind)
    if row.kind == "ratio" and row.difference.n:
        return softmax, sigmoid, *_ratio(row.difference.mean, row.unit, amount, interval)
    return softmax, sigmoid, amount, interval


def gain_cells(gain: Gain) -> Cells:
    """The time without and with the fused operator, their ratio, and its interval."""
    unfused, fused = (quantity(i.mean, "seconds") for i in (gain.unfused, gain.fused))
    ratio, interval = difference(gain.ratio, "seconds", "ratio")
    return unfused, fused, *_ratio(gain.ratio.mean, "seconds", ratio, interval)


def _ratio(ratio: float, unit: str, number: str, interval: str) -> tuple[str, str]:
    # The verb is removed: "is 8% faster", "takes as long".
    words = share(ratio) if unit == "bytes" else pace(ratio).partition(" ")[2]
    return words, f"{number}, {interval}" if interval else number


def summary_table(rows: Sequence[SummaryRow]) -> Markup:
    """The `<table>` of the summary, in groups; each verdict is in the cell of its metric."""
    if not rows:
        return Markup('<p class="absent">Nothing to sum up: no run has finished.</p>')
    ordered = sorted(rows, key=lambda row: [name for _, name in GROUPS].index(_group(row)))
    groups = [
        {"name": name, "rows": [_line(r.label, _hint(r), reading(r), cells(r)) for r in group]}
        for name, group in groupby(ordered, key=_group)
    ]
    return from_template("summary.html", headings=HEADINGS, groups=groups)


def fused_table(gains: Sequence[Gain]) -> Markup:
    """The `<table>` of the gains by fusing the operator."""
    rows = [_line(gain.label, "", gain_reading(gain), gain_cells(gain)) for gain in gains]
    return from_template("fused.html", headings=FUSED_HEADINGS, rows=rows)


def no_gain(fusion: Fusion) -> str:
    """The reason why the gain of the fused operator is not known."""
    return f"not measured, since sigmoid attention ran in {fusion.operator}"


def _hint(row: SummaryRow) -> str:
    """The unit, and which direction is better; the words of a ratio already include the latter."""
    if row.solved:
        return "seeds that solved it, more is better"
    if row.kind == "ratio":
        return ""
    unit = {"bits/byte": "bits per byte, ", "bits/token": "bits per token, "}.get(row.unit, "")
    return f"{unit}{'lower' if row.lower_is_better else 'higher'} is better"


def _line(label: str, hint: str, verdict: Reading, numbers: Cells) -> dict[str, Any]:
    """The values of the template `line`."""
    left, right, amount, interval = numbers
    return {
        "label": label,
        "hint": hint,
        "reading": verdict,
        # Non-breaking spaces keep "n = 4" on one line.
        "why": verdict.why.replace(" = ", "\u00a0=\u00a0"),
        "left": left,
        "right": right,
        "difference": amount,
        "interval": interval,
    }


def _group(row: SummaryRow) -> str:
    return next(name for starts, name in GROUPS if row.metric.startswith(starts))
