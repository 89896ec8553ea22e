"""The rule by which a comparison's verdict is computed from its summary.

`standing` judges one question: equal, worse, better, undecided, or silent. A task whose final
accuracy is undecided is judged by the mean accuracy over training, because whether a seed learns
just before or just after the last step is more random than how late it learns.

If the text at the training length is silent or has no interval, there is no verdict. Otherwise the
headline is the first of `ORDER` that holds. Cost is stated separately and never weighed against
quality.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import pyarrow as pa

from sigmoid_attention.lab.statistics import CONFIDENCE, FEWEST_FOR_INTERVAL
from sigmoid_attention.studies.compare.results import SummaryRow, Verdict
from sigmoid_attention.studies.compare.standing import (
    LOSS_MARGIN,
    RULE,
    Standing,
    pace,
    share,
    standing,
)
from sigmoid_attention.studies.compare.summary import (
    LOSS,
    STEP,
    TASKS,
    baseline_bits,
    late_change_of_gap,
    select_values,
)

ORDER = (
    "Text tells nothing, or has no interval: no verdict.",
    "Text at the training length or a retrieval task is worse: sigmoid is behind. On text it is "
    "closing if the difference became smaller in the second half of the training, by the whole "
    "interval of this change.",
    "One of these is undecided: not decided.",
    "Longer text is worse: level up to the training length only.",
    "Text at the training length or a retrieval task is better: sigmoid is ahead there.",
    f"None of these: sigmoid is level within {LOSS_MARGIN:.0%}.",
)
"""The headlines in order: the first that holds is taken. Cost is said beside it."""


def judge(summary: Sequence[SummaryRow], rows: pa.Table) -> Verdict:
    """The verdict on a summary; `rows` are used for the baseline and the number of steps."""
    text = [row for row in summary if row.metric == LOSS]
    qualities = [_longer_clause(text[1:]), *map(_task_clause, tasks(summary))]
    others = "; ".join(filter(None, qualities))
    sentences = [
        *(_text_sentence(row, baseline_bits(rows)) for row in text[:1]),
        *([f"{others[0].upper()}{others[1:]}."] if others else []),
        _cost_sentence(summary, rows),
    ]
    return Verdict(_headline(summary, text, rows), " ".join(sentences), RULE, ORDER)


def _headline(summary: Sequence[SummaryRow], text: Sequence[SummaryRow], rows: pa.Table) -> str:
    if not text or not text[0].difference.n:
        return "No verdict: no run on text has finished in both arms"
    seeds = text[0].difference.n
    if seeds < FEWEST_FOR_INTERVAL:
        given = "1 seed gives" if seeds == 1 else f"{seeds} seeds give"
        return f"No verdict: {given} no interval, {FEWEST_FOR_INTERVAL} would"
    if text[0].silent:
        return (
            "No verdict: neither arm has learnt more of the text than its byte pairs; "
            f"train longer (--steps {longer(rows)})"
        )
    by = {"text": standing(text[0])}
    by |= {task.name.lower(): task.standing for task in tasks(summary)}
    lost = [name for name, found in by.items() if found == "worse"]
    still_open = [name for name, found in by.items() if found == "undecided"]
    gained = [name for name, found in by.items() if found == "better"]
    worse_beyond = any(standing(row) == "worse" for row in text[1:])
    if lost:
        quality = f"Keep softmax here: sigmoid attention is behind at {listed(lost)}"
        if "text" in lost and late_change_of_gap(rows).high < 0:
            quality += ", and closing on text"
    elif still_open:
        quality = f"Not decided: too few seeds to tell the arms apart at {listed(still_open)}"
    elif worse_beyond:
        quality = "Sigmoid attention is level up to the training length, and behind beyond it"
    elif gained:
        quality = f"Sigmoid attention is ahead here at {listed(gained)}"
    else:
        quality = f"Sigmoid attention is level here, within {LOSS_MARGIN:.0%} of softmax's loss"
    return f"{quality}; {_cost_clause(summary)}"


def steps(rows: pa.Table) -> int:
    """The number of steps of the longest run on text."""
    return max(select_values(rows, "train_loss", "step"), default=0)


def longer(rows: pa.Table) -> int:
    """The number of steps to try next if neither arm learnt the text."""
    return max(300, 4 * steps(rows))


def _cost_clause(summary: Sequence[SummaryRow]) -> str:
    row = next((row for row in summary if row.metric == STEP and row.difference.n), None)
    if row is None:
        return "its cost was not measured"
    found = standing(row)
    if found == "equal":
        return "a training step takes as long"
    if found == "undecided":
        return "whether a training step takes longer is not decided"
    return f"a training step {pace(row.difference.mean)}"


class RetrievalTask(NamedTuple):
    """A retrieval task: its final accuracy and, unless it is all-or-nothing, that over training."""

    name: str
    end: SummaryRow
    over: SummaryRow | None

    @property
    def standing(self) -> Standing:
        found = standing(self.end)
        return standing(self.over) if found == "undecided" and self.over else found


def tasks(summary: Sequence[SummaryRow]) -> list[RetrievalTask]:
    """The retrieval tasks of a summary."""
    by_metric = {row.metric: row for row in summary}
    return [
        RetrievalTask(name, by_metric[end], by_metric.get(f"{end}_over_training"))
        for task, name in TASKS.items()
        if (end := f"{task}_accuracy") in by_metric
    ]


# The predicate of a sentence for each standing.
_PREDICATES = {
    "better": "sigmoid better",
    "worse": "softmax better",
    "equal": "equal within the margin",
    "undecided": "undecided",
}


def _text_sentence(row: SummaryRow, baseline: float) -> str:
    apart = row.difference
    if not apart.n:
        return "On held-out text the arms cannot be compared."
    needed = (
        f"sigmoid attention needs {row.sigmoid.mean:.3f} bits per byte, "
        f"softmax {row.softmax.mean:.3f}"
    )
    if row.silent:
        return f"Held-out text tells nothing: {needed}, and a table of byte pairs {baseline:.3f}."
    around = (
        f", {CONFIDENCE:.0%} interval {_signed(apart.low)} to {_signed(apart.high)}"
        if apart.bounded
        else ""
    )
    numbers = f"{needed} (difference {_signed(apart.mean)}{around})"
    return {
        "better": f"Sigmoid is better on held-out text: {numbers}.",
        "worse": f"Softmax is better on held-out text: {numbers}.",
        "equal": f"On held-out text the arms are equal within the margin: {numbers}.",
        "undecided": f"On held-out text it is undecided: {numbers}.",
    }[standing(row)]


def _longer_clause(text: Sequence[SummaryRow]) -> str:
    """The standings beyond the training length, with neighbours of equal standing merged."""
    parts = []
    compared = [row for row in text if row.difference.n and not row.silent]
    for found, rows in groupby(compared, key=standing):
        parts.append(
            f"at {listed([f'{row.length:,}' for row in rows])} tokens {_PREDICATES[found]}"
        )
    return f"beyond the training length: {', '.join(parts)}" if parts else ""


def _task_clause(task: RetrievalTask) -> str:
    end, over, name = task.end, task.over, task.name.lower()
    if not end.difference.n:
        return ""
    if end.silent:
        return f"{name}: tells nothing ({end.silent})"
    predicate = _PREDICATES[task.standing]
    if solved := end.solved:
        if solved.softmax == solved.sigmoid == solved.both:
            counts = f"the same {solved.both} of {solved.seeds} seeds under both arms"
        else:
            counts = (
                f"{solved.sigmoid} of {solved.seeds} seeds under sigmoid attention, "
                f"by {solved.softmax} under softmax"
            )
        return f"{name}: {predicate} (solved by {counts})"
    timing = {"worse": ", learnt later", "better": ", learnt sooner"}
    late = timing.get(standing(over), "") if over else ""
    sigmoid, softmax = f"{end.sigmoid.mean:.1%}", f"{end.softmax.mean:.1%}"
    right = f"{sigmoid} right against {softmax}" if sigmoid != softmax else f"both {softmax} right"
    return f"{name}: {predicate} ({right}{late})"


def _cost_sentence(summary: Sequence[SummaryRow], rows: pa.Table) -> str:
    by_metric = {row.metric: row for row in summary if row.difference.n}
    parts = []
    if step := by_metric.get(STEP):
        parts.append(
            f"a training step of the sigmoid arm {pace(step.difference.mean)}"
            + (" (undecided)" if standing(step) == "undecided" else "")
        )
    if memory := by_metric.get("peak_memory_bytes"):
        parts.append(f"needs {share(memory.difference.mean)} memory")
    size = max(select_values(rows, "parameters", "value"), default=0)
    models = f"models of {size:,.0f} parameters after {steps(rows):,} steps"
    if not parts:
        return f"These are {models}; their cost was not measured."
    return f"In these {models}, {listed(parts)}."


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def listed(parts: Sequence[str]) -> str:
    """Words with commas between them and "and" before the last."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
