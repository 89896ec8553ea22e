"""The figures of the report: the values of each, and a caption that explains it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from sigmoid_attention.lab.rows import ARMS, NONE, SIGMOID, SOFTMAX
from sigmoid_attention.lab.statistics import Interval
from sigmoid_attention.report.chart import Panel, linear_axis, log_axis
from sigmoid_attention.report.comparison_values import (
    ComparisonValues,
    Curve,
    curve_differences,
    curves,
    scaled_x,
)
from sigmoid_attention.report.format import difference, plain, quantity, signed
from sigmoid_attention.report.panels import (
    arms_panel,
    cost_panel,
    curves_panel,
    difference_curves_panel,
    difference_panel,
    final_accuracy_panel,
    lengths_panels,
    percent,
)
from sigmoid_attention.studies.compare.standing import reading, solved_by
from sigmoid_attention.studies.compare.summary import COURSE, EQUAL_TIME, LOSS, STEP

# More points of a curve could not be distinguished at this size.
MOST_POINTS = 80
MOST_LAYERS = 4

TRAINING_LOSS = "train_loss"
TASKS = {"recall_accuracy": "recall", "copy_accuracy": "copying"}
COSTS = {
    "operator_forward_seconds": ("Time, forward", "seconds"),
    "operator_training_seconds": ("Time, forward and backward", "seconds"),
    "operator_peak_bytes": ("Peak memory in tensors", "bytes"),
}


@dataclass(frozen=True)
class ReportFigure:
    """Panels under one title and caption; `absent` has sentences on missing values.

    Each line of the caption is a paragraph.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    absent: tuple[str, ...] = ()


def figures(measured: ComparisonValues) -> list[ReportFigure]:
    """All figures of the report, in its order; a figure without panels has only text."""
    return [draw(measured) for draw in FIGURES]


def validation(measured: ComparisonValues) -> ReportFigure:
    """Validation loss of every seed at the training length, and the paired difference."""
    panels: list[Panel] = []
    if lengths := measured.lengths(LOSS):
        n = lengths[0]
        losses = {
            arm: {v.seed: v.value for v in measured.values(LOSS, arm) if v.length == n}
            for arm in ARMS
        }
        panels.append(arms_panel(losses, measured.intervals(LOSS, n)))
        shared = sorted(losses[SOFTMAX].keys() & losses[SIGMOID].keys())
        if shared:
            differences = {seed: losses[SIGMOID][seed] - losses[SOFTMAX][seed] for seed in shared}
            panels.append(difference_panel(differences, measured.difference(LOSS, n)))
    return ReportFigure(
        "validation",
        "Loss on held-out text",
        "A link joins the two runs of one seed, which began from the same weights and read the "
        "same batches. Look whether all links lean the same way, and whether the interval of the "
        "mean difference stays clear of zero. Lower is better.",
        tuple(panels),
        (*measured.absent(LOSS, "validation loss"), *_baseline(measured)),
    )


def training(measured: ComparisonValues) -> ReportFigure:
    """Held-out loss during training by tokens and by seconds, its difference, and training loss."""
    panels: list[Panel] = []
    tokens = measured.tokens_per_step
    held_out = _curves(measured, COURSE, bins=10**9)
    seconds = {arm: measured.means(STEP, arm).get(NONE) for arm in held_out}
    if held_out and tokens:
        y_axis = linear_axis(_y_values(held_out), "bits per byte", plain)
        over_tokens = {arm: scaled_x(of, tokens) for arm, of in held_out.items()}
        panels.append(curves_panel("Held-out text", over_tokens, y_axis, _bits, "tokens read"))
        if all(seconds.values()):
            over_time = {arm: scaled_x(of, seconds[arm] or 0.0) for arm, of in held_out.items()}
            title, along = "Held-out text, by time", "seconds of training"
            panels.append(curves_panel(title, over_time, y_axis, _bits, along))
        differences = curve_differences(over_tokens.get(SIGMOID, {}), over_tokens.get(SOFTMAX, {}))
        if differences and all(differences.values()):
            panels.append(difference_curves_panel(differences, "bits per byte", "tokens read"))
    learning = _curves(measured, TRAINING_LOSS)
    if learning and tokens:
        y_axis = linear_axis(_y_values(learning), "bits per byte", plain)
        learning = {arm: scaled_x(of, tokens) for arm, of in learning.items()}
        panels.append(curves_panel("Training text", learning, y_axis, _bits, "tokens read"))
    return ReportFigure(
        "training",
        "Loss during training",
        "\n".join(
            [
                "During training both arms are tested on the same pieces of the held-out text; the "
                "numbers above are from all of it. Where the difference is above zero, sigmoid "
                "attention is behind.",
                *_trend(measured.late_change),
                *_equal_time(measured),
            ]
        ),
        tuple(panels),
        (
            *measured.absent(COURSE, "held-out loss during training"),
            *measured.absent(TRAINING_LOSS, "training loss"),
            *measured.cut_short(TRAINING_LOSS),
        ),
    )


def _trend(change: Interval) -> list[str]:
    """Whether the difference was shrinking when training ended."""
    if not change.bounded:
        return []
    around = f"{signed(change.mean)}, 95% interval {signed(change.low)} to {signed(change.high)}"
    if change.low <= 0 <= change.high:
        return [
            f"In the second half of training the difference did not change measurably ({around})."
        ]
    verb = "lost" if change.mean > 0 else "gained"
    return [
        f"In the second half of training sigmoid attention {verb} {abs(change.mean):.2g} bits per "
        f"byte on softmax ({around})."
    ]


def _equal_time(measured: ComparisonValues) -> list[str]:
    """Which arm has the lower loss at equal time, from the summary's row."""
    row = measured.row(EQUAL_TIME)
    if row is None or not row.difference.n:
        return []
    step = {arm: measured.means(STEP, arm)[NONE] for arm in ARMS}
    faster, slower = sorted(ARMS, key=lambda arm: step[arm])
    end = max(v.step for v in measured.values(COURSE, faster))
    seconds = end * step[faster]
    amount, around = difference(row.difference, row.unit, row.kind)
    return [
        f"At equal time, after {seconds:.3g} s, {faster} has done all {end:,} steps and {slower} "
        f"{round(seconds / step[slower]):,}. Then sigmoid attention needs "
        f"{_bits(row.sigmoid.mean)} bits per byte and softmax {_bits(row.softmax.mean)}: "
        f"{reading(row).words.lower()} ({amount}{f', {around}' if around else ''}). The slower arm "
        "has not reached the end of its learning-rate schedule then, which is a disadvantage."
    ]


def longer(measured: ComparisonValues) -> ReportFigure:
    """Validation loss at the training length and at multiples of it."""
    several = len(measured.lengths(LOSS)) > 1
    return ReportFigure(
        "longer",
        "Reading beyond the training length",
        "Trained at the leftmost length, then tested on longer sequences. Look whether one arm "
        "rises where the other stays flat: a sigmoid does not normalise, so the sum of a row "
        "grows with its length unless the bias or the positions limit it.",
        tuple(lengths_panels(measured, LOSS)) if several else (),
        () if several else ("Loss beyond the training length: not measured.",),
    )


def retrieval(measured: ComparisonValues) -> ReportFigure:
    """Accuracy of associative recall and of copying, over training and at its end."""
    panels: list[Panel] = []
    # Every held-out test is shown, because averaging would hide sudden learning.
    accuracy = {metric: _curves(measured, metric, bins=10**9) for metric in TASKS}
    accuracy = {metric: by_arm for metric, by_arm in accuracy.items() if by_arm}
    for metric, by_arm in accuracy.items():
        y_axis = linear_axis([0.0, 1.0], "right answers", percent)
        name, averaged = TASKS[metric].capitalize(), not measured.solved(metric)
        panels.append(curves_panel(name, by_arm, y_axis, percent, averaged=averaged))
    if accuracy:
        ends = [
            {arm: [curve[-1][1] for curve in of.values()] for arm, of in by_arm.items()}
            for by_arm in accuracy.values()
        ]
        intervals = [measured.intervals(metric) for metric in accuracy]
        tasks = [TASKS[metric] for metric in accuracy]
        panels.append(final_accuracy_panel(tasks, ends, intervals))
    return ReportFigure(
        "retrieval",
        "Retrieval",
        "Separate models, trained on synthetic sequences and tested on others: to give the "
        "value that followed a key earlier (recall), and to repeat earlier tokens (copying). "
        "Published follow-ups suspect that sigmoid attention loses here at equal loss. Look at "
        "the height reached and at how many steps it takes to get there.",
        tuple(panels),
        (
            *(note for metric, task in TASKS.items() for note in _solved(measured, metric, task)),
            *(note for metric, task in TASKS.items() for note in measured.absent(metric, task)),
        ),
    )


def _solved(measured: ComparisonValues, metric: str, task: str) -> list[str]:
    solved = measured.solved(metric)
    if solved is None:
        return []
    return [
        f"{task.capitalize()}: some seeds solve it and others learn nothing. A mean would "
        "describe none of them, so every seed has a line and there is no mean. Under softmax it "
        f"is solved by {solved.softmax} of {solved.seeds} seeds, under sigmoid attention by "
        f"{solved.sigmoid} ({solved_by(solved)})."
    ]


def norms(measured: ComparisonValues) -> ReportFigure:
    """The attention branch's output by step and layer."""
    return _by_layer(
        measured,
        "norms",
        "Size of the attention output",
        "What attention adds to the residual stream. Look at the start: a sigmoid whose bias is "
        "far above −log\u00a0n begins much larger than softmax, and that is how training becomes "
        "unstable. Then look for layers that keep growing or fall silent.",
        "attention_output_norm",
        "attention norm",
        "root mean square",
    )


def masses(measured: ComparisonValues) -> ReportFigure:
    """The mean sum of a row's weights by step and layer."""
    return _by_layer(
        measured,
        "masses",
        "Mass of a row",
        "The sum of all weights that one query gives, averaged over queries and heads. Under "
        "softmax it is 1. Under a sigmoid it is free: look for layers near 0, which have switched "
        "attention off, and for layers that climb far above 1.",
        "attention_mass",
        "row mass",
        "sum of weights",
    )


def largest(measured: ComparisonValues) -> ReportFigure:
    """The largest weight by step and layer."""
    return _by_layer(
        measured,
        "largest",
        "Largest weight",
        "The largest weight that any query gives to any key. Under softmax it is always 1, because "
        "the first token sees only itself. Under a sigmoid it is free: look whether training "
        "brings it near 1, where a key is read in full.",
        "largest_weight",
        "largest weight",
        "weight",
    )


def _by_layer(
    measured: ComparisonValues,
    name: str,
    title: str,
    caption: str,
    metric: str,
    metric_name: str,
    unit: str,
) -> ReportFigure:
    """A figure with a panel for each layer, or for some layers, on one logarithmic scale."""
    layers = measured.layers(metric)
    kept = min(len(layers), MOST_LAYERS)
    shown = [layers[round(i * (len(layers) - 1) / max(kept - 1, 1))] for i in range(kept)]
    by_layer = {layer: _curves(measured, metric, layer=layer) for layer in shown}
    panels: list[Panel] = []
    if shown:
        sizes = [y for by_arm in by_layer.values() for y in _y_values(by_arm)]
        y_axis = log_axis(sizes, unit, plain)
        for layer, by_arm in by_layer.items():
            layer_title = f"Layer {layer + 1} of {layers[-1] + 1}"
            panels.append(curves_panel(layer_title, by_arm, y_axis, plain))
    return ReportFigure(
        name,
        title,
        f"{caption} All panels share one logarithmic scale.",
        tuple(panels),
        (*measured.absent(metric, metric_name), *measured.fewer_seeds(metric, TRAINING_LOSS)),
    )


def operator(measured: ComparisonValues) -> ReportFigure:
    """Time and memory of the attention operator alone, by sequence length."""
    return ReportFigure(
        "operator",
        "Cost of the operator",
        "Attention alone, in alternation on the same tensors; softmax is torch’s fused operator. "
        "Both axes are logarithmic. The figure above each pair is sigmoid divided by softmax: "
        "above 1× sigmoid costs more. Look at the lengths that you train at. Memory is that of "
        "tensors; on a CPU the working arrays inside a fused operator are not counted.",
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


FIGURES: tuple[Callable[[ComparisonValues], ReportFigure], ...] = (
    validation,
    training,
    longer,
    retrieval,
    masses,
    largest,
    norms,
    operator,
)


def _curves(
    measured: ComparisonValues, metric: str, *, layer: int | None = None, bins: int = MOST_POINTS
) -> dict[str, dict[int, Curve]]:
    return {
        arm: curves(measured.values(metric, arm, layer=layer), bins=bins)
        for arm in measured.arms(metric)
    }


def _baseline(measured: ComparisonValues) -> tuple[str, ...]:
    if math.isinf(measured.baseline):
        return ()
    bits = quantity(measured.baseline, "bits/byte")
    return (f"For scale: a table of byte pairs reaches {bits} bits per byte without attention.",)


def _y_values(by_arm: dict[str, dict[int, Curve]]) -> list[float]:
    return [y for of in by_arm.values() for curve in of.values() for _, y in curve]


def _bits(value: float) -> str:
    return quantity(value, "bits/byte")
