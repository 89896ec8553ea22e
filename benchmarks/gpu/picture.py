"""The figure of docs/gpu.md: TFLOP/s by length, a panel for each operation and mask."""

from benchmarks.gpu import plan
from benchmarks.gpu.peers import NAMES, OURS
from benchmarks.plot import composed
from benchmarks.rows import Key, Row
from sigmoid_attention.report.chart import (
    Dots,
    Line,
    Mark,
    Panel,
    Series,
    linear_axis,
    ticked_axis,
)
from sigmoid_attention.report.format import token_count
from sigmoid_attention.report.panels import x_values, y_values

# In the order of drawing: our own operators lie on top.
DRAWN = dict(reversed(NAMES.items()))
SERIES = {
    "gluon": Series("gluon", "vermilion", (), "s"),
    "triton": Series("triton", "vermilion", (4, 2), "D"),
    "sdpa-flash": Series("sdpa-flash", "blue", (2, 3), "o", is_open=True),
    "sdpa-cudnn": Series("sdpa-cudnn", "blue", (7, 3), "^"),
    "flash-attn-2": Series("flash-attn-2", "ochre", (2, 3), "v"),
    "flash-attn-3": Series("flash-attn-3", "ochre", (7, 3), "P"),
    "flex-sigmoid": Series("flex-sigmoid", "green", (7, 3), "D"),
    "triton-sigmoid": Series("triton-sigmoid", "purple", (7, 3, 2, 3), "^"),
    "flash-sigmoid": Series("flash-sigmoid", "purple", (4, 2), "X"),
}
DIM = 128


def picture(rows: dict[Key, Row], device: str) -> bytes:
    """One SVG file; empty if there is nothing to draw."""
    lines = [
        [_panel(rows, operation, mask) for mask in ("full", "causal")]
        for operation in ("forward", "backward")
    ]
    lines = [line for line in lines if any(line)]
    if not lines:
        return b""
    return composed(lines, f"TFLOP/s on {device}", f"bf16, D = {DIM}, bias -log n", DRAWN, SERIES)


def _panel(rows: dict[Key, Row], operation: str, mask: str) -> Panel | None:
    cases = [c for c in plan.cases(operation) if (c.mask, c.dim) == (mask, DIM)]
    marks: list[Mark] = []
    values: list[str] = []
    for peer in DRAWN:
        measured = [rows.get((case, peer, 0)) for case in sorted(cases, key=lambda c: c.length)]
        points = tuple(
            (float(row.case.length), row.flops_per_second / 1e12)
            for row in measured
            if row and row.costs
        )
        if points:
            line_role, dot_role = ("mean", "mean") if peer in OURS else ("alone", "seed")
            marks.append(Line(points, SERIES[peer], line_role))
            marks.append(Dots(points, SERIES[peer], dot_role))
            values += [f"{NAMES[peer]} {y:.0f} at {x:.0f}" for x, y in points]
    if not marks:
        return None
    ticks = [(n, token_count(int(n))) for n in sorted(set(x_values(marks)))]
    return Panel(
        f"{operation.capitalize()}, {mask}",
        ticked_axis(ticks, "sequence length in tokens", log=True),
        linear_axis([0.0, *y_values(marks)], "TFLOP/s", lambda value: f"{value:g}"),
        tuple(marks),
        f"TFLOP/s: {'; '.join(values)}.",
    )
