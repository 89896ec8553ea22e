"""The summary as a table: what each arm measured, how far apart, and how to read that."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from sigmoid_attention.report.format import difference, quantity
from sigmoid_attention.studies.results import (
    SIGMOID,
    SOFTMAX,
    Fusion,
    Gain,
    Interval,
    SummaryRow,
)
from sigmoid_attention.studies.summary import LOSS
from sigmoid_attention.studies.verdict import cost_standing, learnt, standing

HEADINGS = ("", "Softmax", "Sigmoid", "Sigmoid against softmax", "Reading")
FUSED_HEADINGS = ("Sigmoid, fused or not", "Unfused", "Fused", "Fused against unfused", "Reading")
# By the beginning of a metric's name; the first that fits.
GROUPS = (
    (("validation",), "Language modelling"),
    (("recall", "copy"), "Retrieval"),
    (("step", "peak", "parameters"), "Cost of training"),
    (("",), "Cost of the operator alone"),
)
# Units that a number does not carry itself.
NAMED_UNITS = ("bits/byte", "nats/token")


def summary_table(
    rows: Sequence[SummaryRow], fusion: Fusion | None = None, baseline: float = math.inf
) -> str:
    """The `<table>` of the summary, in groups, in a box of its own that scrolls sideways.

    `baseline` is the loss that a table of byte pairs reaches, in bits per byte.
    """
    if not rows:
        return '<p class="absent">Nothing to sum up: no run has finished.</p>'
    heads = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in HEADINGS)
    ordered = sorted(rows, key=lambda row: [name for _, name in GROUPS].index(_group(row)))
    bodies = "\n".join(_body(name, group, baseline) for name, group in groupby(ordered, key=_group))
    if fusion:
        bodies += f"\n{_fused_body(fusion)}"
    return (
        '<div class="scroll" role="region" aria-label="Summary table" tabindex="0">\n'
        f'<table class="summary">\n<thead><tr>{heads}</tr></thead>\n{bodies}\n</table>\n</div>'
    )


def reading(row: SummaryRow, baseline: float = math.inf) -> tuple[str, str, str]:
    """What a row says: which arm it favours (or none), in words, and what the interval holds.

    The words are those of the verdict's rule, under which a difference inside a margin counts as
    none; whether the interval excludes no difference (0, or a ratio of 1) is said beside them.

    Example:
        >>> from sigmoid_attention.studies.results import Interval, SummaryRow
        >>> arm = Interval(0.9, 0.8, 1.0, 3)
        >>> apart = Interval(-0.3, -0.4, -0.2, 3)
        >>> reading(SummaryRow("m", "M", "fraction", -1, False, arm, arm, apart, "difference"))
        ('softmax', 'Softmax better', 'interval excludes 0, n = 3')
    """
    apart, same = row.difference, 1 if row.kind == "ratio" else 0
    if apart.n == 0:
        lacking = [a for a, i in ((SOFTMAX, row.softmax), (SIGMOID, row.sigmoid)) if not i.n]
        why = f"{' and '.join(lacking)} not measured" if lacking else "no seed is in both arms"
        return "", "Cannot be compared", why
    why = _why(apart, same)
    if row.metric.endswith("_accuracy") and not learnt(row):
        return "", "Tells nothing", "neither arm learnt it"
    if row.metric == LOSS and min(row.softmax.mean, row.sigmoid.mean) >= baseline:
        return "", "Tells nothing", "neither arm beats a table of byte pairs"
    # A count that is the same in all runs needs no interval to be called equal.
    exact = row.kind == "ratio" and apart.mean == same and not apart.low < apart.high
    found = "equal" if exact else standing(row)
    better = "cheaper" if row.kind == "ratio" else "better"
    return {
        "better": (SIGMOID, f"Sigmoid {better}", why),
        "worse": (SOFTMAX, f"Softmax {better}", why),
        "equal": ("", "Equal" if exact else "Equal within the margin", why),
        "undecided": ("", "Undecided", why),
    }[found]


def gain_reading(gain: Gain) -> tuple[str, str]:
    """What a gain says in words, by the verdict's rule, and what its interval holds.

    Example:
        >>> from sigmoid_attention.studies.results import Gain, Interval
        >>> arm, ratio = Interval(0.1, 0.09, 0.11, 9), Interval(0.6, 0.5, 0.7, 9)
        >>> gain_reading(Gain("step_seconds", "Training step", -1, arm, arm, ratio))
        ('Fused faster', 'interval excludes 1, n = 9')
    """
    words = {
        "better": "Fused faster",
        "worse": "Fused slower",
        "equal": "Equal within the margin",
        "undecided": "Undecided",
    }
    return words[cost_standing(gain.ratio)], _why(gain.ratio, 1)


def no_gain(fusion: Fusion) -> str:
    """Why there is no figure for what the fused operator gains, where there is none."""
    return f"not measured, since sigmoid attention ran in {fusion.operator}"


def _why(apart: Interval, same: int) -> str:
    if apart.bounded:
        holds = "includes" if apart.low <= same <= apart.high else "excludes"
        return f"interval {holds} {same}, n = {apart.n}"
    return "measured once" if apart.n == 1 else f"no interval from n = {apart.n}"


def _fused_body(fusion: Fusion) -> str:
    first, *others = FUSED_HEADINGS
    if not fusion.gains:
        return (
            f"<tbody>\n{_group_head(first)}\n"
            '<tr><th scope="row">Training step, fused against unfused</th>'
            f'<td class="reading" colspan="{len(others)}"><span>{escape(no_gain(fusion))}</span>'
            "</td></tr>\n</tbody>"
        )
    heads = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in others)
    lines = "\n".join(map(_gain_line, fusion.gains))
    return (
        f'<tbody>\n<tr class="heads"><th scope="rowgroup">{escape(first)}</th>{heads}</tr>\n'
        f"{lines}\n</tbody>"
    )


def _gain_line(gain: Gain) -> str:
    words, why = gain_reading(gain)
    ratio, around = difference(gain.ratio, "seconds", "ratio")
    times = "".join(f"<td>{quantity(i.mean, 'seconds')}</td>" for i in (gain.unfused, gain.fused))
    return (
        f'<tr><th scope="row">{escape(gain.label)}<small>lower is better</small></th>{times}'
        f"<td>{ratio}<small>{around}</small></td>"
        f'<td class="reading"><span class="mark">{words}</span><small>{why}</small></td></tr>'
    )


def _body(name: str, rows: Iterable[SummaryRow], baseline: float) -> str:
    lines = "\n".join(_line(row, baseline) for row in rows)
    return f"<tbody>\n{_group_head(name)}\n{lines}\n</tbody>"


def _group_head(name: str) -> str:
    return f'<tr><th scope="rowgroup" colspan="{len(HEADINGS)}">{escape(name)}</th></tr>'


def _line(row: SummaryRow, baseline: float) -> str:
    arm, words, why = reading(row, baseline)
    apart, around = difference(row.difference, row.unit, row.kind)
    arms = "".join(f"<td>{quantity(i.mean, row.unit)}</td>" for i in (row.softmax, row.sigmoid))
    better = "lower is better" if row.lower_is_better else "higher is better"
    unit = f"{row.unit}, " if row.unit in NAMED_UNITS else ""
    return (
        f'<tr><th scope="row">{escape(row.label)}<small>{escape(unit)}{better}</small></th>{arms}'
        f"<td>{apart}<small>{around}</small></td>"
        f'<td class="reading"><span class="mark {arm}">{words}</span><small>{why}</small></td></tr>'
    )


def _group(row: SummaryRow) -> str:
    return next(name for starts, name in GROUPS if row.metric.startswith(starts))
