"""The rule by which a comparison's verdict is computed from its summary.

Every question gets a standing from the 95% interval of the difference (sigmoid - softmax, paired)
and a margin below which a difference does not matter:

    equal      the whole interval lies within the margin
    worse      otherwise, if all of it lies on the side that is bad for sigmoid
    better     otherwise, if all of it lies on the good side
    undecided  otherwise, and wherever there is no interval

Margins: 1% of softmax's loss for text, 5 points of accuracy for retrieval, 5% for times and memory
(single measurements, as memory is, count as exact). A task that is undecided by the accuracy in
the end is judged by the mean accuracy over training: whether a seed learns just before or just
after the last step is luck, how late it learns is less so.

A question tells nothing as long as neither arm has learnt anything there that needs attention: on
text, below the loss of a table of byte pairs; in retrieval, right in half of the cases. Without
such a text there is no verdict. Otherwise the headline says the first that holds: a quality
(text at the training length, a task) is worse; one is undecided; longer text is worse; one is
better; none of these. Cost is said beside it and never weighed against quality.
"""

import math
from collections.abc import Sequence
from typing import Literal

import pyarrow as pa

from sigmoid_attention.studies.results import Interval, SummaryRow, Verdict
from sigmoid_attention.studies.statistics import CONFIDENCE, FEWEST_FOR_INTERVAL
from sigmoid_attention.studies.summary import LOSS, STEP, TASKS, select_values

LOSS_MARGIN = 0.01
ACCURACY_MARGIN = 0.05
COST_MARGIN = 0.05
LEARNT = 0.5

Standing = Literal["equal", "worse", "better", "undecided"]

RULE = (
    f"Each question is judged by the {CONFIDENCE:.0%} interval of the difference, sigmoid against "
    f"softmax, paired by seed. Equal: the whole interval lies within a margin "
    f"({LOSS_MARGIN:.0%} of softmax's loss; {100 * ACCURACY_MARGIN:.0f} points of accuracy; "
    f"{COST_MARGIN:.0%} of time or memory). Otherwise worse or better, if all of it lies on one "
    f"side of no difference; otherwise undecided, as is everything with fewer than "
    f"{FEWEST_FOR_INTERVAL} seeds. Retrieval is judged by the accuracy in the end and, where that "
    f"is undecided, by the mean accuracy over training. A question tells nothing while neither arm "
    f"has learnt what needs attention: text below the loss of a table of byte pairs, retrieval "
    f"right in half of the cases. The headline is the first that holds of: no text that tells "
    f"something; a quality (text at the training length, a retrieval task) worse; one undecided; "
    f"longer text worse; one better; none of these. Cost is said beside it, not weighed against "
    f"quality."
)
"""The same rule in a paragraph, which the report prints."""


def standing(row: SummaryRow) -> Standing:
    """Where the sigmoid stands in one question, by the rule of this module.

    Example:
        >>> arm, apart = Interval(2.0, 1.9, 2.1, 3), Interval(0.01, 0.005, 0.015, 3)
        >>> row = SummaryRow(LOSS, "", "bits/byte", 256, True, arm, arm, apart, "difference")
        >>> standing(row)
        'equal'
    """
    apart = row.difference
    if row.kind == "ratio":
        return cost_standing(apart)
    low, high = (apart.low, apart.high) if row.lower_is_better else (-apart.high, -apart.low)
    return _stand(low, high, _margin(row))


def cost_standing(ratio: Interval) -> Standing:
    """Where the second of two times or memories stands, by the same rule; `ratio` is to the first.

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


def _margin(row: SummaryRow) -> float:
    return LOSS_MARGIN * row.softmax.mean if row.metric == LOSS else ACCURACY_MARGIN


def learnt(row: SummaryRow) -> bool:
    """Whether a retrieval task tells anything: an arm is right in half of the cases."""
    return max(row.softmax.mean, row.sigmoid.mean) >= LEARNT


def judge(summary: Sequence[SummaryRow], rows: pa.Table) -> Verdict:
    """The verdict on a summary; of `rows` it reads the baseline and the size of the runs."""
    text = [row for row in summary if row.metric == LOSS]
    tasks = _tasks(summary)
    baseline = max(select_values(rows, "bigram_bits_per_byte", "value"), default=math.inf)
    sentences = [
        *(_text_sentence(row, baseline) for row in text[:1]),
        *_longer_sentence(text[1:]),
        *(_task_sentence(name, end, overall) for name, (end, overall) in tasks.items()),
        *_cost_sentence(summary),
        _limits_sentence(rows, text),
    ]
    return Verdict(_headline(summary, text, tasks, baseline), " ".join(sentences), RULE)


def _headline(
    summary: Sequence[SummaryRow],
    text: Sequence[SummaryRow],
    tasks: dict[str, tuple[SummaryRow, SummaryRow]],
    baseline: float,
) -> str:
    if not text or not text[0].difference.n:
        return "No verdict: no run on text has finished in both arms"
    seeds = text[0].difference.n
    if seeds < FEWEST_FOR_INTERVAL:
        given = "1 seed gives" if seeds == 1 else f"{seeds} seeds give"
        return f"No verdict: {given} no interval, {FEWEST_FOR_INTERVAL} would"
    if min(text[0].softmax.mean, text[0].sigmoid.mean) >= baseline:
        return "No verdict: neither arm has learnt more of the text than its byte pairs"
    by = {"text": standing(text[0])}
    by |= {name.lower(): _task_standing(*rows) for name, rows in tasks.items() if learnt(rows[0])}
    lost = [name for name, found in by.items() if found == "worse"]
    still_open = [name for name, found in by.items() if found == "undecided"]
    gained = [name for name, found in by.items() if found == "better"]
    worse_beyond = any(standing(row) == "worse" for row in text[1:])
    if lost:
        quality = f"Keep softmax here: sigmoid attention is worse at {_list(lost)}"
    elif still_open:
        quality = f"Not decided: the runs differ too much at {_list(still_open)}"
    elif worse_beyond:
        quality = "Sigmoid attention is as good up to the training length, worse beyond it"
    elif gained:
        quality = f"Sigmoid attention is better here at {_list(gained)}"
    else:
        quality = "Sigmoid attention is as good here"
    return f"{quality}; {_cost_clause(summary)}"


def _cost_clause(summary: Sequence[SummaryRow]) -> str:
    step = next((row for row in summary if row.metric == STEP), None)
    if step is None or not step.difference.n:
        return "its cost was not measured"
    found = standing(step)
    if found == "equal":
        return "a training step takes as long"
    if found == "undecided":
        return "whether a training step takes longer is not decided"
    return f"a training step takes {step.difference.mean:.2f} times as long"


def _text_sentence(row: SummaryRow, baseline: float) -> str:
    apart = row.difference
    beside = "" if math.isinf(baseline) else f" (a table of byte pairs: {baseline:.3f})"
    return (
        f"On held-out text sigmoid attention takes {_signed(apart.mean)} bits a byte against "
        f"softmax's {row.softmax.mean:.3f}{beside}{_around(apart)}: {standing(row)} "
        f"(margin {_margin(row):.3f})."
    )


def _longer_sentence(longer: Sequence[SummaryRow]) -> list[str]:
    if not longer:
        return []
    parts = [
        f"{_signed(row.difference.mean)} at {row.length} tokens ({standing(row)})" for row in longer
    ]
    return [f"Beyond the training length the difference is {_list(parts)}."]


def _tasks(summary: Sequence[SummaryRow]) -> dict[str, tuple[SummaryRow, SummaryRow]]:
    """Each retrieval task by name: its accuracy in the end, and over training."""
    by_metric = {row.metric: row for row in summary}
    return {
        name: (by_metric[end], by_metric[f"{end}_over_training"])
        for task, name in TASKS.items()
        if (end := f"{task}_accuracy") in by_metric
    }


def _task_standing(end: SummaryRow, overall: SummaryRow) -> Standing:
    found = standing(end)
    return standing(overall) if found == "undecided" else found


def _task_sentence(name: str, end: SummaryRow, overall: SummaryRow) -> str:
    if not learnt(end):
        return (
            f"{name}: neither arm learnt it (softmax {end.softmax.mean:.0%}, "
            f"sigmoid {end.sigmoid.mean:.0%}), so it tells nothing here."
        )
    timing = {"worse": ", learnt later", "better": ", learnt sooner"}.get(standing(overall), "")
    return (
        f"{name}: {end.sigmoid.mean:.1%} right in the end against softmax's "
        f"{end.softmax.mean:.1%}{timing}: {_task_standing(end, overall)}."
    )


def _cost_sentence(summary: Sequence[SummaryRow]) -> list[str]:
    by_metric: dict[str, SummaryRow] = {}
    for row in summary:
        # The longest length of each comes last, and there the operator's cost shows most.
        if row.kind == "ratio" and row.difference.n:
            by_metric[row.metric] = row
    parts = []
    if step := by_metric.get(STEP):
        parts.append(f"a training step takes {_times(step)} the time")
    if memory := by_metric.get("peak_memory_bytes"):
        parts.append(f"it holds {_times(memory)} the memory")
    if operator := by_metric.get("operator_training_seconds"):
        parts.append(
            f"the operator alone, forward and backward at {operator.length} tokens, takes "
            f"{_times(operator)} the time of scaled_dot_product_attention"
        )
    return [f"Cost here: {_list(parts)}."] if parts else []


def _limits_sentence(rows: pa.Table, text: Sequence[SummaryRow]) -> str:
    size = max(select_values(rows, "parameters", "value"), default=0)
    steps = max(select_values(rows, "train_loss", "step"), default=0)
    seeds = text[0].difference.n if text else 0
    few = "" if seeds >= FEWEST_FOR_INTERVAL else " With so few seeds nothing here has an interval."
    return (
        f"These are models of {size:,.0f} parameters after {steps:,} steps: the run cannot tell "
        f"whether a difference grows or closes with size, with longer training or with a learning "
        f"rate of each arm's own.{few}"
    )


def _times(row: SummaryRow) -> str:
    apart = row.difference
    around = f" ({apart.low:.2f} to {apart.high:.2f})" if apart.bounded else ""
    return f"{apart.mean:.2f} times{around}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _around(apart: Interval) -> str:
    if not apart.bounded:
        return ""
    low, high = _signed(apart.low), _signed(apart.high)
    return f" ({CONFIDENCE:.0%} interval {low} to {high}, {apart.n} seeds)"


def _list(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
