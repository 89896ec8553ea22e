"""Summarises the rows of a comparison: one `SummaryRow` for each question.

Values of a seed are paired by seed and compared as a difference with a t-interval. Times are paired
by round and compared as a ratio with an interval of order statistics.

A question is silent if neither arm has learnt anything that needs attention: a loss on text below
the bigram baseline, or an accuracy of one half in retrieval.

A task is all-or-nothing if, within an arm, some seeds solve it (accuracy of 90% or more) and others
stay below half. The mean of such values describes no run, and its interval exceeds the range from 0
to 100%. Instead, the seeds that solved the task are counted (`Solved`), over the seeds that both
arms have. The mean over training, which has the same problem, is left out.

At equal time: the loss of the arm with the shorter training step at its end is compared with the
other arm's loss after the same time, interpolated linearly between its held-out tests during
training. Time is steps times the median seconds of a training step.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import pyarrow as pa

from sigmoid_attention.lab.rows import ARMS, NONE, SIGMOID, SOFTMAX
from sigmoid_attention.lab.statistics import (
    Interval,
    median_interval,
    paired_difference,
    paired_ratio,
    t_interval,
)
from sigmoid_attention.studies.compare.results import Solved, SummaryRow
from sigmoid_attention.training.code_lengths import NEW, SEEN

# Values of one metric and length, by arm and by seed (or by round).
Values = dict[str, dict[int, float]]

# Bits per byte on held-out text: after training, by length; and during training, by step.
LOSS = "validation_bits_per_byte"
COURSE = "validation_during_training"
CONTEXTS = {
    SEEN: "Text, after 4 tokens that stood before",
    NEW: "Text, after 4 tokens that did not",
}
STEP = "step_seconds"
EQUAL_TIME = "validation_at_equal_time"
BASELINE = "bigram_bits_per_byte"
# The duration and the end time of every unit of the comparison.
UNIT_SECONDS, UNIT_END = "unit_seconds", "unit_end"
TASKS = {"recall": "Associative recall", "copy": "Copying"}
TIMES = {
    "operator_forward_seconds": "Operator forward",
    "operator_training_seconds": "Operator forward + backward",
}
# Accuracies: at SOLVED or above a task is solved, below LEARNT it is not learnt.
SOLVED, LEARNT = 0.9, 0.5
NO_BETTER_THAN_PAIRS = "neither arm beats a table of byte pairs"
NOT_LEARNT = "neither arm learnt it"


def summarise(rows: pa.Table) -> list[SummaryRow]:
    """All questions with values in the rows, the most important first."""
    losses = _losses(rows)
    return [
        *losses,
        *_by_context(rows, losses),
        *_at_equal_time(rows, losses),
        *_retrieval(rows),
        *_timings(rows, STEP, "Training step"),
        *_once(rows, "peak_memory_bytes", "Training step, memory in tensors", "bytes"),
        *(row for metric, label in TIMES.items() for row in _timings(rows, metric, label)),
        *_once(rows, "operator_peak_bytes", "Operator, memory in tensors", "bytes"),
    ]


def select(
    rows: pa.Table, metric: str, *, by: str, arms: Sequence[str] = ARMS
) -> dict[int, Values]:
    """A metric's values by length, arm and the column `by` ("seed" or "step")."""
    found: dict[int, Values] = defaultdict(lambda: {arm: {} for arm in arms})
    columns = ("metric", "arm", "length", by, "value")
    for name, arm, length, pair_number, value in zip(
        *(rows[column].to_pylist() for column in columns), strict=True
    ):
        if name == metric and arm in arms:
            found[length][arm][pair_number] = value
    return dict(sorted(found.items()))


def paired(values: Values) -> tuple[list[float], list[float]]:
    """The values that both arms have, softmax first, in the same order."""
    shared = sorted(values[SOFTMAX].keys() & values[SIGMOID].keys())
    return [values[SOFTMAX][at] for at in shared], [values[SIGMOID][at] for at in shared]


def _losses(rows: pa.Table) -> list[SummaryRow]:
    baseline = baseline_bits(rows)
    by_length = select(rows, LOSS, by="seed")
    shortest = min(by_length, default=1)
    found = [
        _difference(
            LOSS,
            f"Text, {length:,} tokens"
            + (f" ({length // shortest} n)" if length > shortest else " (n)"),
            "bits/byte",
            values,
            length=length,
            lower_is_better=True,
        )
        for length, values in by_length.items()
    ]
    return [
        replace(row, silent=NO_BETTER_THAN_PAIRS)
        if min(row.softmax.mean, row.sigmoid.mean) >= baseline
        else row
        for row in found
    ]


def baseline_bits(rows: pa.Table) -> float:
    """Bits per byte of the bigram baseline; infinite if it was not measured."""
    return max(select_values(rows, BASELINE, "value"), default=math.inf)


def _by_context(rows: pa.Table, losses: Sequence[SummaryRow]) -> list[SummaryRow]:
    silent = losses[0].silent if losses else ""
    return [
        replace(
            _difference(metric, label, "bits/token", values, length=length, lower_is_better=True),
            silent=silent,
        )
        for metric, label in CONTEXTS.items()
        for length, values in select(rows, metric, by="seed").items()
    ]


def _at_equal_time(rows: pa.Table, losses: Sequence[SummaryRow]) -> list[SummaryRow]:
    turns = select(rows, STEP, by="step").get(NONE)
    curves = curves_by_step(rows, COURSE)
    if turns is None or not (all(turns.values()) and all(curves.values())):
        return []
    step = {arm: median_interval(list(turns[arm].values())).mean for arm in ARMS}
    seconds = min(step.values()) * min(max(c) for of in curves.values() for c in of.values())
    values = {
        arm: {seed: _between(curve, seconds / step[arm]) for seed, curve in of.items()}
        for arm, of in curves.items()
    }
    row = _difference(
        EQUAL_TIME,
        f"Text, at equal training time ({seconds:.3g} s each)",
        "bits/byte",
        values,
        lower_is_better=True,
    )
    return [replace(row, silent=losses[0].silent if losses else "")]


def _between(curve: dict[int, float], step: float) -> float:
    """The curve's value at a step, linearly interpolated; before the first point its value."""
    places = sorted(curve)
    after = next((at for at in places if at >= step), places[-1])
    before = max((at for at in places if at < after), default=after)
    if after == before or step >= after:
        return curve[after]
    share = max((step - before) / (after - before), 0.0)
    return (1 - share) * curve[before] + share * curve[after]


def late_change_of_gap(rows: pa.Table) -> Interval:
    """The change of the gap sigmoid - softmax on held-out text in the second half of training."""
    curves = curves_by_step(rows, COURSE)
    shared = sorted(curves[SOFTMAX].keys() & curves[SIGMOID].keys())

    def gap(seed: int, share: float) -> float:
        at = {arm: share * max(curves[arm][seed]) for arm in ARMS}
        return _between(curves[SIGMOID][seed], at[SIGMOID]) - _between(
            curves[SOFTMAX][seed], at[SOFTMAX]
        )

    return t_interval([gap(seed, 1.0) - gap(seed, 0.5) for seed in shared])


def _retrieval(rows: pa.Table) -> list[SummaryRow]:
    answer = []
    for task, label in TASKS.items():
        metric = f"{task}_accuracy"
        curves = curves_by_step(rows, metric)
        at_the_end = {arm: {s: c[max(c)] for s, c in of.items()} for arm, of in curves.items()}
        overall = {
            arm: {s: sum(c.values()) / len(c) for s, c in of.items()} for arm, of in curves.items()
        }
        if not any(at_the_end.values()):
            continue
        end = _difference(metric, f"{label}, in the end", "fraction", at_the_end)
        if found := all_or_nothing(at_the_end):
            answer.append(replace(end, solved=found))
            continue
        learnt = max(end.softmax.mean, end.sigmoid.mean) >= LEARNT
        over = _difference(
            f"{metric}_over_training", f"{label}, over training", "fraction", overall
        )
        answer += [replace(row, silent="" if learnt else NOT_LEARNT) for row in (end, over)]
    return answer


def all_or_nothing(accuracies: Values) -> Solved | None:
    """The number of seeds that solved an all-or-nothing task; None for other tasks.

    The rule is in the module's docstring.

    Example:
        >>> split = {"softmax": {0: 0.2, 1: 1.0, 2: 0.7}, "sigmoid": {0: 0.3, 1: 0.95, 2: 0.98}}
        >>> all_or_nothing(split)
        Solved(softmax=1, sigmoid=2, both=1, seeds=3)
        >>> all_or_nothing({"softmax": {0: 0.2, 1: 0.3}, "sigmoid": {0: 0.95, 1: 0.98}})
    """
    split = any(
        max(of.values(), default=0.0) >= SOLVED and min(of.values()) < LEARNT
        for of in accuracies.values()
    )
    first, second = paired(accuracies)
    if not split or not first:
        return None
    solved = [(a >= SOLVED, b >= SOLVED) for a, b in zip(first, second, strict=True)]
    return Solved(
        sum(a for a, _ in solved), sum(b for _, b in solved), sum(a and b for a, b in solved),
        len(solved),
    )  # fmt: skip


def curves_by_step(rows: pa.Table, metric: str) -> dict[str, dict[int, dict[int, float]]]:
    """A metric's values by arm, seed and step."""
    curves: dict[str, dict[int, dict[int, float]]] = {arm: defaultdict(dict) for arm in ARMS}
    columns = ("metric", "arm", "seed", "step", "value")
    for name, arm, seed, step, value in zip(
        *(rows[column].to_pylist() for column in columns), strict=True
    ):
        if name == metric:
            curves[arm][seed][step] = value
    return curves


def _timings(rows: pa.Table, metric: str, label: str) -> list[SummaryRow]:
    return [
        _ratio(metric, label, "seconds", values, length, median_interval)
        for length, values in select(rows, metric, by="step").items()
    ]


def _once(rows: pa.Table, metric: str, label: str, unit: str) -> list[SummaryRow]:
    return [
        _ratio(metric, label, unit, values, length, t_interval)
        for length, values in select(rows, metric, by="seed").items()
    ]


def _difference(
    metric: str,
    label: str,
    unit: str,
    values: Values,
    *,
    length: int = NONE,
    lower_is_better: bool = False,
) -> SummaryRow:
    return SummaryRow(
        metric=metric,
        label=label,
        unit=unit,
        length=length,
        lower_is_better=lower_is_better,
        softmax=t_interval(list(values[SOFTMAX].values())),
        sigmoid=t_interval(list(values[SIGMOID].values())),
        difference=paired_difference(*paired(values)),
        kind="difference",
    )


def _ratio(
    metric: str,
    label: str,
    unit: str,
    values: Values,
    length: int,
    interval: Callable[[list[float]], Interval],
) -> SummaryRow:
    return SummaryRow(
        metric=metric,
        label=label if length == NONE else f"{label}, {length:,} tokens",
        unit=unit,
        length=length,
        lower_is_better=True,
        softmax=interval(list(values[SOFTMAX].values())),
        sigmoid=interval(list(values[SIGMOID].values())),
        difference=paired_ratio(*paired(values)),
        kind="ratio",
    )


def select_values(rows: pa.Table, metric: str, column: str, *, arm: str | None = None) -> list:
    """The values in `column` of all rows of a metric, or of those of one arm."""
    names, arms, values = (rows[name].to_pylist() for name in ("metric", "arm", column))
    return [
        value
        for name, of, value in zip(names, arms, values, strict=True)
        if name == metric and arm in (None, of)
    ]


def whole_run_peak(rows: pa.Table) -> float:
    """The peak memory of any process of the run, in bytes; NaN if it was not recorded."""
    return max(select_values(rows, "process_peak_bytes", "value"), default=math.nan)
