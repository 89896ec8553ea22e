"""The picture of docs/gpu.md: TFLOP/s by length, a panel an operation, mask and head dim."""

from benchmarks.gpu import plan
from benchmarks.gpu.peers import NAMES, OURS
from benchmarks.plot import composed
from benchmarks.rows import Key, Row
from sigmoid_attention.report.chart import Dot, Line, Mark, Panel, linear_axis, ticked_axis
from sigmoid_attention.report.format import token_count

# In the order of drawing: what matters most lies on top.
DRAWN = dict(reversed(NAMES.items()))
DIM = 128


def picture(rows: dict[Key, Row], device: str) -> str:
    """One SVG file; empty where there is nothing to draw."""
    panels = [
        (column, line, panel)
        for line, operation in enumerate(("forward", "backward"))
        for column, mask in enumerate(("full", "causal"))
        if (panel := _panel(rows, operation, mask)) is not None
    ]
    if not panels:
        return ""
    first = min(line for _, line, _ in panels)
    panels = [(column, line - first, panel) for column, line, panel in panels]
    return composed(panels, f"TFLOP/s on {device}", f"bf16, D = {DIM}, bias -log n", DRAWN)


def _panel(rows: dict[Key, Row], operation: str, mask: str) -> Panel | None:
    cases = [c for c in plan.cases(operation) if (c.mask, c.dim) == (mask, DIM)]
    marks: list[Mark] = []
    for peer in DRAWN:
        found = [rows.get((case, peer, 0)) for case in sorted(cases, key=lambda c: c.length)]
        points = tuple(
            (float(row.case.length), row.flops_per_second / 1e12)
            for row in found
            if row and row.costs
        )
        if points:
            role = "mean" if peer in OURS else "seed"
            marks += [Line(points, peer, "mean"), *(Dot(x, y, peer, role) for x, y in points)]
    if not marks:
        return None
    lines = [mark for mark in marks if isinstance(mark, Line)]
    lengths = sorted({x for line in lines for x, _ in line.points})
    rates = [y for line in lines for _, y in line.points]
    said = "; ".join(
        f"{NAMES[line.arm]} {y:.0f} at {x:.0f}" for line in lines for x, y in line.points
    )
    return Panel(
        f"{operation.capitalize()}, {mask}",
        ticked_axis([(n, token_count(int(n))) for n in lengths], "tokens", log=True),
        linear_axis([0.0, *rates], "TFLOP/s", lambda value: f"{value:g}"),
        tuple(marks),
        f"TFLOP/s: {said}.",
    )
