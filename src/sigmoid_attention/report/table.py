"""The summary as a table: what each arm measured, how far apart, and how to read that."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from ..studies.results import SIGMOID, SOFTMAX, SummaryRow
from .format import difference, quantity

HEADINGS = ("", "Softmax", "Sigmoid", "Sigmoid against softmax", "Reading")
# By the beginning of a metric's name; the first that fits.
GROUPS = (
    (("validation", "train_loss"), "Language modelling"),
    (("recall", "copy"), "Retrieval"),
    (("attention", "largest", "residual", "gradient"), "Inside the network"),
    (("",), "Cost"),
)


def summary_table(rows: Sequence[SummaryRow]) -> str:
    """The `<table>` of the summary, in groups, in a box of its own that scrolls sideways."""
    if not rows:
        return '<p class="absent">No summary: nothing was measured in both arms.</p>'
    heads = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in HEADINGS)
    ordered = sorted(rows, key=lambda row: [name for _, name in GROUPS].index(_group(row)))
    bodies = "\n".join(_body(name, group) for name, group in groupby(ordered, key=_group))
    return (
        '<div class="scroll" role="region" aria-label="Summary table" tabindex="0">\n'
        f'<table class="summary">\n<thead><tr>{heads}</tr></thead>\n{bodies}\n</table>\n</div>'
    )


def reading(row: SummaryRow) -> tuple[str, str, str]:
    """What a row's difference says: which arm it favours (or none), in words, and why.

    The interval decides: a difference whose interval holds no difference (0, or a ratio of 1) is
    called none, whatever its mean.

    Example:
        >>> from sigmoid_attention.studies.results import Interval, SummaryRow
        >>> arm = Interval(2.0, 1.9, 2.1, 3)
        >>> apart = Interval(0.03, 0.01, 0.05, 3)
        >>> reading(SummaryRow("m", "M", "bits/byte", -1, True, arm, arm, apart, "difference"))
        ('softmax', 'Softmax better', 'interval excludes 0, n = 3')
    """
    apart, ratio = row.difference, row.kind == "ratio"
    same = 1.0 if ratio else 0.0
    if apart.n == 0:
        lacking = [a for a, i in ((SOFTMAX, row.softmax), (SIGMOID, row.sigmoid)) if not i.n]
        why = f"{' and '.join(lacking)} not measured" if lacking else "no seed is in both arms"
        return "", "Cannot be compared", why
    if not apart.bounded:
        words = "Measured once" if apart.n == 1 else "Undecided"
        return "", words, f"no interval from n = {apart.n}"
    if apart.low == apart.high == same:
        return "", "Equal", f"n = {apart.n}"
    if apart.low <= same <= apart.high:
        return "", "No clear difference", f"interval includes {same:.0f}, n = {apart.n}"
    sigmoid_wins = (apart.mean < same) == row.lower_is_better
    if ratio:
        words = "Sigmoid cheaper" if sigmoid_wins else "Softmax cheaper"
    else:
        words = "Sigmoid better" if sigmoid_wins else "Softmax better"
    return (
        SIGMOID if sigmoid_wins else SOFTMAX,
        words,
        f"interval excludes {same:.0f}, n = {apart.n}",
    )


def _body(name: str, rows: Iterable[SummaryRow]) -> str:
    lines = "\n".join(_line(row) for row in rows)
    head = f'<tr><th scope="rowgroup" colspan="{len(HEADINGS)}">{escape(name)}</th></tr>'
    return f"<tbody>\n{head}\n{lines}\n</tbody>"


def _line(row: SummaryRow) -> str:
    arm, words, why = reading(row)
    apart, around = difference(row.difference, row.unit, row.kind)
    arms = "".join(f"<td>{quantity(i.mean, row.unit)}</td>" for i in (row.softmax, row.sigmoid))
    better = "lower is better" if row.lower_is_better else "higher is better"
    unit = "" if row.unit in ("seconds", "bytes", "fraction", "") else f"{row.unit}, "
    return (
        f'<tr><th scope="row">{escape(row.label)}<small>{escape(unit)}{better}</small></th>{arms}'
        f"<td>{apart}<small>{around}</small></td>"
        f'<td class="reading"><span class="mark {arm}">{words}</span><small>{why}</small></td></tr>'
    )


def _group(row: SummaryRow) -> str:
    return next(name for starts, name in GROUPS if row.metric.startswith(starts))
