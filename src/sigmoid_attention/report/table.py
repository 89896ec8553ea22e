"""The summary as tables: what each arm measured, how far apart they lie, and the verdict on it."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from sigmoid_attention.report.format import difference, quantity
from sigmoid_attention.studies.compare.results import Fusion, Gain, SummaryRow
from sigmoid_attention.studies.compare.standing import Reading, gain_reading, pace, reading, share

HEADINGS = ("Question", "Verdict", "Softmax", "Sigmoid", "Sigmoid against softmax")
FUSED_HEADINGS = ("Question", "Verdict", "Unfused", "Fused", "Fused against unfused")
# By the beginning of a metric's name; the first that fits.
GROUPS = (
    (("validation",), "Language modelling"),
    (("recall", "copy"), "Retrieval"),
    (("step", "peak"), "Cost of training"),
    (("",), "Cost of the operator alone"),
)
Cells = tuple[str, str, str, str]


def cells(row: SummaryRow) -> Cells:
    """What each arm measured, how far they lie apart, and the interval around that.

    Example:
        >>> from sigmoid_attention.lab.statistics import Interval
        >>> arm, ratio = Interval(0.06, 0.05, 0.07, 9), Interval(0.92, 0.85, 1.0, 9)
        >>> cells(SummaryRow("step_seconds", "", "seconds", -1, True, arm, arm, ratio, "ratio"))
        ('60.0 ms', '60.0 ms', '8% faster', '0.920×, 0.850 to 1.000')
    """
    if solved := row.solved:
        more = f"{solved.sigmoid - solved.softmax:+d}".replace("-", "−").replace("+0", "0")
        softmax, sigmoid = (f"{n} of {solved.seeds}" for n in (solved.softmax, solved.sigmoid))
        return softmax, sigmoid, f"{more} seeds", ""
    softmax, sigmoid = (quantity(i.mean, row.unit) for i in (row.softmax, row.sigmoid))
    apart, around = difference(row.difference, row.unit, row.kind)
    if row.kind == "ratio" and row.difference.n:
        return softmax, sigmoid, *_ratio(row.difference.mean, row.unit, apart, around)
    return softmax, sigmoid, apart, around


def gain_cells(gain: Gain) -> Cells:
    """The same for what the fused operator gains."""
    unfused, fused = (quantity(i.mean, "seconds") for i in (gain.unfused, gain.fused))
    ratio, around = difference(gain.ratio, "seconds", "ratio")
    return unfused, fused, *_ratio(gain.ratio.mean, "seconds", ratio, around)


def _ratio(ratio: float, unit: str, said: str, around: str) -> tuple[str, str]:
    # Without the verb: "is 8% faster", "takes as long".
    words = share(ratio) if unit == "bytes" else pace(ratio).partition(" ")[2]
    return words, f"{said}, {around}" if around else said


def summary_table(rows: Sequence[SummaryRow]) -> str:
    """The `<table>` of the summary, in groups; the verdict stands beside the question or below."""
    if not rows:
        return '<p class="absent">Nothing to sum up: no run has finished.</p>'
    ordered = sorted(rows, key=lambda row: [name for _, name in GROUPS].index(_group(row)))
    bodies = "\n".join(_body(name, group) for name, group in groupby(ordered, key=_group))
    return _table("Summary table", HEADINGS, bodies)


def fused_table(gains: Sequence[Gain]) -> str:
    """The `<table>` of what fusing the operator gains."""
    lines = (_line(gain.label, "", gain_reading(gain), gain_cells(gain)) for gain in gains)
    return _table("Fused and unfused", FUSED_HEADINGS, f"<tbody>\n{chr(10).join(lines)}\n</tbody>")


def no_gain(fusion: Fusion) -> str:
    """Why there is no figure for what the fused operator gains, where there is none."""
    return f"not measured, since sigmoid attention ran in {fusion.operator}"


def _table(name: str, headings: Sequence[str], bodies: str) -> str:
    question, verdict, *others = map(escape, headings)
    heads = "".join(f'<th scope="col">{heading}</th>' for heading in others)
    first = f'<th scope="col">{_question(question, verdict)}</th>'
    return (
        f'<div class="scroll" role="region" aria-label="{name}" tabindex="0">\n'
        f'<table class="summary">\n<thead><tr>{first}{heads}</tr></thead>\n{bodies}\n</table>\n'
        "</div>"
    )


def _question(name: str, verdict: str) -> str:
    """The first cell: beside one another where there is room, else the verdict below."""
    return (
        f'<div class="question"><div class="name">{name}</div>'
        f'<div class="reading">{verdict}</div></div>'
    )


def _body(name: str, rows: Iterable[SummaryRow]) -> str:
    head = f'<tr><th scope="rowgroup" colspan="{len(HEADINGS) - 1}">{escape(name)}</th></tr>'
    lines = "\n".join(_line(row.label, _hint(row), reading(row), cells(row)) for row in rows)
    return f"<tbody>\n{head}\n{lines}\n</tbody>"


def _hint(row: SummaryRow) -> str:
    """The unit, and which way is better; a ratio's words say that themselves."""
    if row.solved:
        return "seeds that solved it, more is better"
    if row.kind == "ratio":
        return ""
    unit = "bits per byte, " if row.unit == "bits/byte" else ""
    return f"{unit}{'lower' if row.lower_is_better else 'higher'} is better"


def _line(label: str, hint: str, found: Reading, numbers: Cells) -> str:
    first, second, apart, around = map(escape, numbers)
    # "n = 4" stays in one line, and so does an interval.
    why = escape(found.why).replace(" = ", "\u00a0=\u00a0")
    around = ", ".join(f"<span>{part}</span>" for part in around.split(", "))
    question = _question(
        f"{escape(label)}<small>{escape(hint)}</small>",
        f'<span class="mark {found.arm}">{found.words}</span><small>{why}</small>',
    )
    return (
        f'<tr><th scope="row">{question}</th><td>{first}</td><td>{second}</td>'
        f"<td>{apart}<small>{around}</small></td></tr>"
    )


def _group(row: SummaryRow) -> str:
    return next(name for starts, name in GROUPS if row.metric.startswith(starts))
