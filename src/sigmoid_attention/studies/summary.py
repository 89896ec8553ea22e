"""From a comparison's rows to the questions that it answers: one `SummaryRow` each.

What belongs to a seed is paired by seed and compared as a difference with a t-interval; what was
timed is paired by round and compared as a ratio with an interval of order statistics.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import pyarrow as pa

from sigmoid_attention.studies.results import ARMS, NONE, SIGMOID, SOFTMAX, Interval, SummaryRow
from sigmoid_attention.studies.statistics import (
    median_interval,
    paired_difference,
    paired_ratio,
    t_interval,
)

# Values of one metric and length, by arm and by seed (or by round).
Values = dict[str, dict[int, float]]

# Bits per byte on held-out text: after training, by length; and on the way, by step.
LOSS = "validation_bits_per_byte"
COURSE = "validation_during_training"
STEP = "step_seconds"
# Of every unit of the comparison: how long it took, and when it was finished.
UNIT_SECONDS, UNIT_END = "unit_seconds", "unit_end"
TASKS = {"recall": "Associative recall", "copy": "Copying"}
TIMES = {
    "operator_forward_seconds": "Operator forward",
    "operator_training_seconds": "Operator forward + backward",
}


def summarise(rows: pa.Table) -> list[SummaryRow]:
    """Every question that the rows have an answer to, in the order of a reader's interest."""
    return [
        *_losses(rows),
        *_retrieval(rows),
        *_timings(rows, STEP, "Training step"),
        *_once(rows, "peak_memory_bytes", "Training step, memory in tensors", "bytes"),
        *(row for metric, label in TIMES.items() for row in _timings(rows, metric, label)),
        *_once(rows, "operator_peak_bytes", "Operator, memory in tensors", "bytes"),
        *_once(rows, "parameters", "Parameters", "parameters"),
    ]


def select(
    rows: pa.Table, metric: str, *, by: str, arms: Sequence[str] = ARMS
) -> dict[int, Values]:
    """A metric's values by length, arm and the column `by` ("seed" or "step")."""
    found: dict[int, Values] = defaultdict(lambda: {arm: {} for arm in arms})
    columns = ("metric", "arm", "length", by, "value")
    for name, arm, length, place, value in zip(
        *(rows[column].to_pylist() for column in columns), strict=True
    ):
        if name == metric and arm in arms:
            found[length][arm][place] = value
    return dict(sorted(found.items()))


def paired(values: Values) -> tuple[list[float], list[float]]:
    """What both arms have, softmax first, in the same order."""
    shared = sorted(values[SOFTMAX].keys() & values[SIGMOID].keys())
    return [values[SOFTMAX][at] for at in shared], [values[SIGMOID][at] for at in shared]


def _losses(rows: pa.Table) -> list[SummaryRow]:
    by_length = select(rows, LOSS, by="seed")
    shortest = min(by_length, default=1)
    return [
        _difference(
            LOSS,
            f"Text, {length} tokens"
            + (f" ({length // shortest} n)" if length > shortest else " (n)"),
            "bits/byte",
            values,
            length=length,
            lower_is_better=True,
        )
        for length, values in by_length.items()
    ]


def _retrieval(rows: pa.Table) -> list[SummaryRow]:
    answer = []
    for task, label in TASKS.items():
        metric = f"{task}_accuracy"
        curves = accuracy_curves(rows, metric)
        at_the_end = {arm: {s: c[max(c)] for s, c in of.items()} for arm, of in curves.items()}
        overall = {
            arm: {s: sum(c.values()) / len(c) for s, c in of.items()} for arm, of in curves.items()
        }
        if any(at_the_end.values()):
            answer += [
                _difference(metric, f"{label}, in the end", "fraction", at_the_end),
                _difference(
                    f"{metric}_over_training", f"{label}, over training", "fraction", overall
                ),
            ]
    return answer


def accuracy_curves(rows: pa.Table, metric: str) -> dict[str, dict[int, dict[int, float]]]:
    """Accuracy by arm, seed and step."""
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
        label=label if length == NONE else f"{label}, {length} tokens",
        unit=unit,
        length=length,
        lower_is_better=True,
        softmax=interval(list(values[SOFTMAX].values())),
        sigmoid=interval(list(values[SIGMOID].values())),
        difference=paired_ratio(*paired(values)),
        kind="ratio",
    )


def select_values(rows: pa.Table, metric: str, column: str, *, arm: str | None = None) -> list:
    """What stands in `column` of every row of a metric, or of those of one arm."""
    names, arms, values = (rows[name].to_pylist() for name in ("metric", "arm", column))
    return [
        value
        for name, of, value in zip(names, arms, values, strict=True)
        if name == metric and arm in (None, of)
    ]


def whole_run_peak(rows: pa.Table) -> float:
    """The most memory that any process of the run has held, in bytes; NaN if none was noted."""
    return max(select_values(rows, "process_peak_bytes", "value"), default=math.nan)
