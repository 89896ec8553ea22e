"""The report's figures: which values each shows, and what its reader should look at."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from sigmoid_attention.report.chart import Panel, linear_axis, log_axis
from sigmoid_attention.report.format import plain, quantity
from sigmoid_attention.report.measured import Curve, Measured, curves, gap
from sigmoid_attention.report.panels import (
    apart_panel,
    arms_panel,
    cost_panel,
    curves_panel,
    finals_panel,
    gap_panel,
    lengths_panels,
    percent,
)
from sigmoid_attention.studies.results import ARMS, SIGMOID, SOFTMAX
from sigmoid_attention.studies.summary import LOSS

# Of a curve; more would not be told apart at this size.
MOST_POINTS = 80
MOST_LAYERS = 4

TRAINING_LOSS = "train_loss"
NORM = "attention_output_norm"
TASKS = {"recall_accuracy": "recall", "copy_accuracy": "copying"}
COSTS = {
    "operator_forward_seconds": ("Time, forward", "seconds"),
    "operator_training_seconds": ("Time, forward and backward", "seconds"),
    "operator_peak_bytes": ("Peak memory in tensors", "bytes"),
}


@dataclass(frozen=True)
class Figure:
    """Panels under one title and caption; `absent` says in words what has no values."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    absent: tuple[str, ...] = ()


def figures(measured: Measured) -> list[Figure]:
    """All figures of the report, in its order; one without panels has only words to show."""
    return [draw(measured) for draw in FIGURES]


def validation(measured: Measured) -> Figure:
    """Validation loss of every seed at the training length, and the paired difference."""
    panels: list[Panel] = []
    if lengths := measured.lengths(LOSS):
        n = lengths[0]
        at = {
            arm: {v.seed: v.value for v in measured.values(LOSS, arm) if v.length == n}
            for arm in ARMS
        }
        panels.append(arms_panel(at, measured.intervals(LOSS, n)))
        shared = sorted(at[SOFTMAX].keys() & at[SIGMOID].keys())
        if shared:
            paired = {seed: at[SIGMOID][seed] - at[SOFTMAX][seed] for seed in shared}
            panels.append(apart_panel(paired, measured.apart(LOSS, n)))
    return Figure(
        "validation",
        "Loss on held-out text",
        "A link joins the two runs of one seed, which began from the same weights and read the "
        "same batches. Look whether all links lean the same way, and whether the interval of the "
        "mean difference stays clear of zero. Lower is better.",
        tuple(panels),
        (*measured.absent(LOSS, "validation loss"), *_baseline(measured)),
    )


def training(measured: Measured) -> Figure:
    """Training loss by step, and the gap between the arms by step."""
    panels: list[Panel] = []
    by_arm = _curves(measured, TRAINING_LOSS)
    if by_arm:
        y_axis = linear_axis(_heights(by_arm), "nats per token", plain)
        panels.append(curves_panel("Training loss", by_arm, y_axis, _nats))
        apart = gap(by_arm.get(SIGMOID, {}), by_arm.get(SOFTMAX, {}))
        # The first steps differ by far more than all later ones and would flatten them.
        end = max((curve[-1][0] for curve in apart.values()), default=0.0)
        late = {s: tuple(p for p in curve if p[0] >= end / 10) for s, curve in apart.items()}
        if late and all(late.values()):
            panels.append(gap_panel(late, "nats per token"))
    return Figure(
        "training",
        "Loss during training",
        "Neighbouring steps are averaged. In the gap, above zero means that sigmoid attention is "
        "behind; the first tenth of the run is left out of it. Look whether the gap is closing, "
        "settled or opening when training ends.",
        tuple(panels),
        (*measured.absent(TRAINING_LOSS, "training loss"), *measured.cut_short(TRAINING_LOSS)),
    )


def longer(measured: Measured) -> Figure:
    """Validation loss at the training length and at multiples of it."""
    several = len(measured.lengths(LOSS)) > 1
    return Figure(
        "longer",
        "Reading beyond the training length",
        "Trained at the leftmost length, then asked to read more at once. Look whether one arm "
        "rises where the other stays flat: a sigmoid does not normalise, so what a row adds up "
        "grows with its length unless the bias or the positions hold it.",
        tuple(lengths_panels(measured, LOSS)) if several else (),
        () if several else ("Loss beyond the training length: not measured.",),
    )


def retrieval(measured: Measured) -> Figure:
    """Accuracy of associative recall and of copying, over training and at its end."""
    panels: list[Panel] = []
    # Every held-out test is shown: they are few, and averaging would round off sudden learning.
    found = {metric: _curves(measured, metric, bins=10**9) for metric in TASKS}
    found = {metric: by_arm for metric, by_arm in found.items() if by_arm}
    for metric, by_arm in found.items():
        y_axis = linear_axis([0.0, 1.0], "answers right", percent)
        panels.append(curves_panel(TASKS[metric].capitalize(), by_arm, y_axis, percent))
    if found:
        ends = [
            {arm: [curve[-1][1] for curve in of.values()] for arm, of in by_arm.items()}
            for by_arm in found.values()
        ]
        intervals = [measured.intervals(metric) for metric in found]
        panels.append(finals_panel([TASKS[metric] for metric in found], ends, intervals))
    return Figure(
        "retrieval",
        "Retrieval",
        "Models of their own, trained on made-up sequences and tested on others: to give the "
        "value that once followed a key (recall), and to repeat what came before (copying). "
        "Published follow-ups suspect that sigmoid attention loses here at equal loss. Look at "
        "the height reached and at how many steps it takes to get there.",
        tuple(panels),
        tuple(note for metric, task in TASKS.items() for note in measured.absent(metric, task)),
    )


def norms(measured: Measured) -> Figure:
    """The attention branch's output by step, layer by layer, on one logarithmic scale."""
    layers = measured.layers(NORM)
    kept = min(len(layers), MOST_LAYERS)
    shown = [layers[round(i * (len(layers) - 1) / max(kept - 1, 1))] for i in range(kept)]
    by_layer = {layer: _curves(measured, NORM, layer=layer) for layer in shown}
    panels: list[Panel] = []
    if shown:
        sizes = [y for by_arm in by_layer.values() for y in _heights(by_arm)]
        y_axis = log_axis(sizes, "root mean square", plain)
        for layer, by_arm in by_layer.items():
            title = f"Layer {layer + 1} of {layers[-1] + 1}"
            panels.append(curves_panel(title, by_arm, y_axis, plain))
    return Figure(
        "norms",
        "Size of the attention output",
        "What attention adds to the residual stream, from the first step to the last; all panels "
        "share one logarithmic scale. Look at the start: a sigmoid whose bias is far above "
        "−log\u00a0n begins much larger than softmax, and that is how training becomes unstable. "
        "Then look for layers that keep growing or fall silent.",
        tuple(panels),
        (*measured.absent(NORM, "attention norm"), *measured.fewer_seeds(NORM, TRAINING_LOSS)),
    )


def operator(measured: Measured) -> Figure:
    """Time and memory of the attention operator alone, by sequence length."""
    return Figure(
        "operator",
        "Cost of the operator",
        "Attention alone, on the same tensors and by turns; softmax is torch’s own fused operator. "
        "Both axes are logarithmic. The figure above each pair is sigmoid divided by softmax: "
        "above 1× sigmoid costs more. Look at the lengths that you train at. Memory is that of "
        "tensors; on a CPU, what a fused operator of either arm works in is not in it.",
        tuple(
            cost_panel(measured, metric, title, unit)
            for metric, (title, unit) in COSTS.items()
            if measured.arms(metric)
        ),
        tuple(
            note
            for metric, (title, _) in COSTS.items()
            for note in measured.absent(metric, f"operator {title[0].lower()}{title[1:]}")
        ),
    )


FIGURES: tuple[Callable[[Measured], Figure], ...] = (
    validation,
    training,
    longer,
    retrieval,
    norms,
    operator,
)


def _curves(
    measured: Measured, metric: str, *, layer: int | None = None, bins: int = MOST_POINTS
) -> dict[str, dict[int, Curve]]:
    return {
        arm: curves(measured.values(metric, arm, layer=layer), bins=bins)
        for arm in measured.arms(metric)
    }


def _baseline(measured: Measured) -> tuple[str, ...]:
    if math.isinf(measured.baseline):
        return ()
    bits = quantity(measured.baseline, "bits/byte")
    return (f"For scale: a table of byte pairs reaches {bits} bits per byte without attention.",)


def _heights(by_arm: dict[str, dict[int, Curve]]) -> list[float]:
    return [y for of in by_arm.values() for curve in of.values() for _, y in curve]


def _nats(value: float) -> str:
    return quantity(value, "nats/token")
