"""Finds spikes, and a mass that is too large at the start, in the records of a training."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from sigmoid_attention.diagnosis.finding import Finding
from sigmoid_attention.diagnosis.rules import LARGEST_MASS
from sigmoid_attention.training.recorder import read_records

# A spike is a gradient norm above ten times the median of the records before it.
SPIKE = 10.0
BEFORE = 20
FEWEST_BEFORE = 5

Course = dict[int, float]


def history(folder: Path) -> Iterator[Finding]:
    """The faults in a recorder's folder. Raises ``ValueError`` if it has no records."""
    courses: dict[tuple[str, str, int], Course] = defaultdict(dict)
    squares: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for row in read_records(folder).to_pylist():
        key = row["quantity"], row["statistic"], row["layer"]
        if key[:2] == ("gradient", "norm"):
            squares[row["layer"]][row["step"]] += row["value"] ** 2
        elif key[:2] in (("gradient_norm", "value"), ("attention_weights", "row_mass_mean")):
            courses[key][row["step"]] = row["value"]
    by_layer = {
        layer: {step: square**0.5 for step, square in course.items()}
        for layer, course in squares.items()
        if layer >= 0
    }
    yield from _start(courses)
    yield from _spikes(courses.get(("gradient_norm", "value", -1), {}), by_layer)


def _start(courses: dict[tuple[str, str, int], Course]) -> Iterator[Finding]:
    first = {
        layer: course[min(course)]
        for (quantity, _, layer), course in sorted(courses.items())
        if quantity == "attention_weights" and min(course) == 0
    }
    large = {layer: mass for layer, mass in first.items() if mass > LARGEST_MASS}
    if large:
        layer, mass = max(large.items(), key=lambda pair: pair[1])
        yield Finding(
            "mass at the start",
            f"step 0, layer{'s' * (len(large) > 1)} {', '.join(map(str, large))}",
            f"the weights of a row had the sum {mass:.1f} in the mean in layer {layer}, where a "
            f"softmax has 1.",
            "Start from a lower bias: -log n makes the mass about 1 (bias=NegLogLength(n)).",
        )


def _spikes(norms: Course, by_layer: dict[int, Course]) -> Iterator[Finding]:
    steps = sorted(norms)
    spikes = [(step, ratio) for step in steps if (ratio := _ratio(norms, step)) > SPIKE]
    if not spikes:
        return
    step, ratio = max(spikes, key=lambda pair: pair[1])
    layers = {layer: _ratio(course, step) for layer, course in by_layer.items() if step in course}
    where = ""
    if layers:
        layer = max(layers, key=lambda each: layers[each])
        where = f" It is largest in layer {layer} ({layers[layer]:.0f} times)."
    yield Finding(
        "spike",
        f"step {step}",
        f"the norm of the gradient is {ratio:.0f} times its median before; there are "
        f"{len(spikes)} such records in {len(steps)}.{where}",
        "Clip the gradient (clip_norm=1.0), lengthen the warm-up or lower the learning rate; "
        "hybrid norm makes spikes rarer.",
    )


def _ratio(course: Course, step: int) -> float:
    before = [course[earlier] for earlier in sorted(course) if earlier < step][-BEFORE:]
    if len(before) < FEWEST_BEFORE or not median(before) > 0:
        return 0.0
    return course[step] / median(before)
