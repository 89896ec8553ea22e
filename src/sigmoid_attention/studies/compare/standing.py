"""The rule by which one question of a comparison is judged, and its wording.

Every question gets a standing from the 95% interval of the difference (sigmoid - softmax, paired)
and a margin below which a difference does not matter:

    equal      the whole interval lies within the margin
    worse      otherwise, if all of it lies on the side that is bad for sigmoid
    better     otherwise, if all of it lies on the good side
    undecided  otherwise, and wherever there is no interval
    silent     checked first: the question does not compare the arms (see `summary`)

Margins: 1% of softmax's loss for text, 5 points of accuracy for retrieval, 5% for times and memory
(single measurements, as memory is, count as exact).

An all-or-nothing task (see `summary`) is judged by the seeds that solved it under one arm alone:
an exact sign test on them gives worse or better at p < 0.05, else undecided. It is never equal,
because agreement of a few seeds does not show that all seeds would agree.

`reading` gives the wording of a standing, for the table in the terminal and for the report.
"""

import math
from typing import Literal, NamedTuple

from sigmoid_attention.lab.rows import SIGMOID, SOFTMAX
from sigmoid_attention.lab.statistics import CONFIDENCE, FEWEST_FOR_INTERVAL, Interval, sign_test
from sigmoid_attention.studies.compare.results import Gain, Solved, SummaryRow
from sigmoid_attention.studies.compare.summary import LEARNT, SOLVED

LOSS_MARGIN = 0.01
ACCURACY_MARGIN = 0.05
COST_MARGIN = 0.05
LOSSES = ("bits/byte", "bits/token")

Standing = Literal["equal", "worse", "better", "undecided", "silent"]

RULE = (
    f"Every question has a {CONFIDENCE:.0%} interval of the difference, sigmoid against softmax, "
    "paired by seed (times: by turn).",
    f"Equal: the whole interval lies within a margin. It is {LOSS_MARGIN:.0%} of softmax’s loss, "
    f"{100 * ACCURACY_MARGIN:.0f} points of accuracy, or {COST_MARGIN:.0%} of time or memory.",
    "Better or worse: otherwise, if the whole interval lies on one side of no difference.",
    f"Undecided: otherwise, and always with fewer than {FEWEST_FOR_INTERVAL} seeds.",
    "Retrieval is judged by the accuracy after training. Where that is undecided, the mean "
    "accuracy over training decides.",
    f"A run has solved a task with at least {SOLVED:.0%} right. If some seeds of an arm solve it "
    f"and others stay below {LEARNT:.0%}, a mean would describe no run. Then the seeds that solved "
    "it are counted. Sigmoid is worse if more seeds solved it under softmax alone than under "
    "sigmoid alone, and better the other way round, if an exact sign test on these seeds gives "
    f"p < {1 - CONFIDENCE:.2f}. Six seeds, all one way, are the fewest that decide.",
    "A question tells nothing while neither arm has learnt anything that needs attention. On text "
    "an arm must beat a table of byte pairs, in retrieval it must be right in "
    f"{LEARNT:.0%} of the cases.",
)
"""How a question is judged, as the report prints it."""


class Reading(NamedTuple):
    """The reading of a row: the favoured arm ("" for none), the standing in words, the reason."""

    arm: str
    words: str
    why: str


def reading(row: SummaryRow) -> Reading:
    """A row's standing in words; `why` describes the interval or the counts.

    Example:
        >>> arm, apart = Interval(0.9, 0.8, 1.0, 3), Interval(-0.3, -0.4, -0.2, 3)
        >>> reading(SummaryRow("m", "M", "fraction", -1, False, arm, arm, apart, "difference"))
        Reading(arm='softmax', words='Softmax better', why='interval excludes 0, n = 3')
    """
    apart, same = row.difference, 1 if row.kind == "ratio" else 0
    if apart.n == 0:
        lacking = [a for a, i in ((SOFTMAX, row.softmax), (SIGMOID, row.sigmoid)) if not i.n]
        why = f"{' and '.join(lacking)} not measured" if lacking else "no seed is in both arms"
        return Reading("", "Cannot be compared", why)
    why = solved_by(row.solved) if row.solved else _why(apart, same)
    better = "cheaper" if row.kind == "ratio" else "better"
    return {
        "better": Reading(SIGMOID, f"Sigmoid {better}", why),
        "worse": Reading(SOFTMAX, f"Softmax {better}", why),
        # An exact value, which is the same in all runs, is equal without a margin.
        "equal": Reading("", "Equal" if _exact(row) else "Equal within the margin", why),
        "undecided": Reading("", "Undecided", why),
        "silent": Reading("", "Tells nothing", row.silent),
    }[standing(row)]


def gain_reading(gain: Gain) -> Reading:
    """A gain's standing in words, by the same rule, with its interval as the reason.

    Example:
        >>> arm, ratio = Interval(0.1, 0.09, 0.11, 9), Interval(0.6, 0.5, 0.7, 9)
        >>> gain_reading(Gain("step_seconds", "Training step", -1, arm, arm, ratio)).words
        'Fused faster'
    """
    words = {
        "better": "Fused faster",
        "worse": "Fused slower",
        "equal": "Equal within the margin",
        "undecided": "Undecided",
    }
    return Reading("", words[cost_standing(gain.ratio)], _why(gain.ratio, 1))


def solved_by(solved: Solved) -> str:
    """The seeds solved by both arms or by one arm alone, in words.

    Example:
        >>> solved_by(Solved(2, 2, 2, 4)), solved_by(Solved(3, 1, 1, 4))
        ('solved by the same 2 of 4 seeds', 'solved by 2 seeds under softmax alone')
    """
    alone = {SOFTMAX: solved.softmax - solved.both, SIGMOID: solved.sigmoid - solved.both}
    if not any(alone.values()):
        return f"solved by the same {solved.both} of {solved.seeds} seeds"
    parts = [
        f"by {number} seed{'' if number == 1 else 's'} under {arm} alone"
        for arm, number in alone.items()
        if number
    ]
    return f"solved {', '.join(parts)}"


def _why(apart: Interval, same: int) -> str:
    if apart.bounded:
        holds = "includes" if apart.low <= same <= apart.high else "excludes"
        return f"interval {holds} {same}, n = {apart.n}"
    return "measured once" if apart.n == 1 else f"no interval from n = {apart.n}"


def _exact(row: SummaryRow) -> bool:
    apart = row.difference
    return row.kind == "ratio" and apart.mean == 1 and not apart.low < apart.high


def standing(row: SummaryRow) -> Standing:
    """The standing of the sigmoid in one question, by the rule of this module.

    Example:
        >>> arm, apart = Interval(2.0, 1.9, 2.1, 3), Interval(0.01, 0.005, 0.015, 3)
        >>> row = SummaryRow("loss", "", "bits/byte", 256, True, arm, arm, apart, "difference")
        >>> standing(row)
        'equal'
    """
    if row.silent:
        return "silent"
    if row.solved:
        return _counted(row.solved)
    apart = row.difference
    if row.kind == "ratio":
        return "equal" if _exact(row) else cost_standing(apart)
    low, high = (apart.low, apart.high) if row.lower_is_better else (-apart.high, -apart.low)
    return _stand(low, high, margin(row))


def cost_standing(ratio: Interval) -> Standing:
    """The standing of the second of two times or memories; `ratio` is second / first.

    Example:
        >>> cost_standing(Interval(0.7, 0.6, 0.8, 9)), cost_standing(Interval(1.0, 0.98, 1.02, 9))
        ('better', 'equal')
    """
    low, high = ratio.low - 1, ratio.high - 1
    if ratio.n == 1:
        low = high = ratio.mean - 1
    return _stand(low, high, COST_MARGIN)


def _stand(low: float, high: float, margin: float) -> Standing:
    if math.isnan(low) or math.isnan(high):
        return "undecided"
    if -margin <= low and high <= margin:
        return "equal"
    if low > 0:
        return "worse"
    return "better" if high < 0 else "undecided"


def _counted(solved: Solved) -> Standing:
    softmax, sigmoid = solved.softmax - solved.both, solved.sigmoid - solved.both
    if sign_test(softmax, sigmoid) >= 1 - CONFIDENCE:
        return "undecided"
    return "worse" if softmax > sigmoid else "better"


def margin(row: SummaryRow) -> float:
    """The margin of a question that is not a ratio."""
    return LOSS_MARGIN * row.softmax.mean if row.unit in LOSSES else ACCURACY_MARGIN


def pace(ratio: float) -> str:
    """A time that is `ratio` times another, as a verb phrase on speed.

    "8% faster" means 8% less time.

    Example:
        >>> pace(0.92), pace(1.21), pace(3.4), pace(0.4), pace(1.0)
        ('is 8% faster', 'is 21% slower', 'takes 3.4 times as long', 'is 2.5 times as fast', \
'takes as long')
    """
    percent = round(100 * abs(ratio - 1))
    if percent == 0:
        return "takes as long"
    if ratio > 1:
        return f"is {percent}% slower" if ratio < 2 else f"takes {ratio:.2g} times as long"
    return f"is {percent}% faster" if ratio > 0.5 else f"is {1 / ratio:.2g} times as fast"


def share(ratio: float) -> str:
    """An amount that is `ratio` times another, in words.

    Example:
        >>> share(0.97), share(1.21), share(2.1), share(1.0)
        ('3% less', '21% more', '2.1 times as much', 'as much')
    """
    percent = round(100 * abs(ratio - 1))
    if percent == 0:
        return "as much"
    if ratio < 1:
        return f"{percent}% less"
    return f"{percent}% more" if ratio < 2 else f"{ratio:.2g} times as much"
