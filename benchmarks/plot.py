"""The picture of docs/benchmarks.md: speed against SDPA by length, for every peer, as one SVG file.

It brings its own colours for light and dark pages, and its own ground to stand on.
"""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from benchmarks.listing import times
from benchmarks.rows import Key, Ratio, Row
from benchmarks.targets import OURS
from sigmoid_attention.report.chart import (
    HEIGHT,
    WIDTH,
    Axis,
    Dot,
    Line,
    Mark,
    Panel,
    Rule,
    Whisker,
    log_axis,
    marker,
    ticked_axis,
)
from sigmoid_attention.report.format import token_count
from sigmoid_attention.report.panels import heights

# In the order of drawing: what matters most lies on top.
PEERS = {
    "eager-softmax": "eager softmax",
    "eager-sigmoid": "eager sigmoid",
    "tiled": "tiled PyTorch",
    "flex": "flex_attention (softmax)",
    OURS: "this operator",
}
COLUMNS = ("fp32", "bf16")
LINES = (
    ("Forward, causal", "forward", "causal"),
    ("Forward + backward, causal", "forward+backward", "causal"),
    ("One query against a cache", "decode", "full"),
)
DIM = 64
SHORTEST = 1024
MARGIN, GAP, HEAD, KEY_HEIGHT = 20, 24, 76, 20

Curve = list[tuple[int, Ratio]]


def plot(rows: dict[Key, Row]) -> str:
    """The rows with the most threads and head dim 64, a panel an operation and dtype.

    A panel that has no rows is left out. Raises ``ValueError`` if there is none at all.
    """
    threads = max((row.threads for row in rows.values()), default=0)
    found: list[tuple[int, int, str, dict[str, Curve]]] = []
    for title, operation, mask in LINES:
        # A line without any rows takes no room.
        down = len({line for _, line, _, _ in found})
        for column, dtype in enumerate(COLUMNS):
            curves = _curves(rows, operation, dtype, mask, threads)
            if curves:
                found.append((column, down, f"{title}, {dtype}", curves))
    if not found:
        raise ValueError(f"there is nothing to draw: these rows have no ratio at D = {DIM}")
    marks = [_marks(curves) for *_, curves in found]
    # One scale for all, so that a height means the same everywhere.
    ratios = [ratio for of_panel in marks for ratio in heights(of_panel)]
    y_axis = log_axis(ratios, "SDPA = 1×", lambda value: f"{value:g}×")
    panels = [
        (column, line, _panel(title, curves, y_axis, tuple(of_panel)))
        for (column, line, title, curves), of_panel in zip(found, marks, strict=True)
    ]
    setting = f"D = {DIM}, B = 1, H = 8, {threads} threads"
    return composed(panels, "Times faster than scaled_dot_product_attention", setting, PEERS)


def _curves(
    rows: dict[Key, Row], operation: str, dtype: str, mask: str, threads: int
) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for row in sorted(rows.values(), key=lambda row: row.case.length):
        case = row.case
        wanted = (case.operation, case.dtype, case.mask, case.dim, row.threads)
        if wanted != (operation, dtype, mask, DIM, threads) or case.length < SHORTEST:
            continue
        if row.ratio and row.peer in PEERS:
            curves.setdefault(row.peer, []).append((case.length, row.ratio))
    return curves


def _marks(curves: dict[str, Curve]) -> list[Mark]:
    """Every peer's line, ours with its spread; SDPA's own is the rule at one."""
    marks: list[Mark] = [Rule(1.0)]
    for peer in PEERS:
        curve = curves.get(peer, [])
        if curve:
            marks.append(Line(tuple((n, ratio.value) for n, ratio in curve), peer, "mean"))
        for n, ratio in curve:
            if peer == OURS:
                marks.append(Whisker(n, ratio.low, ratio.high, peer))
            marks.append(Dot(n, ratio.value, peer, "mean" if peer == OURS else "seed"))
    return marks


def _panel(title: str, curves: dict[str, Curve], y_axis: Axis, marks: tuple[Mark, ...]) -> Panel:
    lengths = sorted({n for curve in curves.values() for n, _ in curve})
    x_axis = ticked_axis([(float(n), token_count(n)) for n in lengths], "tokens", log=True)
    said = "; ".join(
        f"{PEERS[peer]} {times(ratio.value)} at {n}"
        for peer, curve in curves.items()
        for n, ratio in curve
    )
    return Panel(title, x_axis, y_axis, marks, f"Times faster than SDPA: {said}.")


def composed(
    panels: Sequence[tuple[int, int, Panel]], title: str, setting: str, names: Mapping[str, str]
) -> str:
    """The panels in their columns and lines, under a title and a legend of the peers in them.

    What is named last comes first in the legend.
    """
    width = 2 * MARGIN + len(COLUMNS) * WIDTH + GAP * (len(COLUMNS) - 1)
    shown = {peer for *_, panel in panels for peer in _peers_in(panel)}
    keys, lines_of_keys = _legend([peer for peer in reversed(names) if peer in shown], names, width)
    head = HEAD + (lines_of_keys - 1) * KEY_HEIGHT
    lines = 1 + max(line for _, line, _ in panels)
    height = head + lines * (HEIGHT + GAP)
    style = files("benchmarks").joinpath("plot.css").read_text(encoding="utf-8")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">',
        f"<style>\n{style}</style>",
        f'<rect class="paper" width="{width}" height="{height}" rx="8"/>',
        f'<text class="title" x="{MARGIN}" y="24">{escape(title)}'
        f'<tspan class="unit" dx="8">{escape(setting)}</tspan></text>',
        *keys,
    ]
    for column, line, panel in panels:
        x, y = MARGIN + column * (WIDTH + GAP), head + line * (HEIGHT + GAP)
        box = f'x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}"'
        parts.append(f"<svg {box}>\n{panel.svg()}\n</svg>")
    return "\n".join([*parts, "</svg>\n"])


def _peers_in(panel: Panel) -> set[str]:
    return {mark.arm for mark in panel.marks if isinstance(mark, Line)}


def _legend(peers: Sequence[str], names: Mapping[str, str], width: int) -> tuple[list[str], int]:
    """The keys side by side, and in how many lines."""
    keys, x, line = [], float(MARGIN), 0
    for peer in peers:
        needed = 44 + 7.0 * len(names[peer])
        if x > MARGIN and x + needed > width:
            x, line = float(MARGIN), line + 1
        keys.append(_key(peer, names[peer], x, 48 + line * KEY_HEIGHT))
        x += needed
    return keys, line + 1


def _key(peer: str, name: str, x: float, y: float) -> str:
    role = "mean" if peer == OURS else "seed"
    return (
        f'<path class="line {peer}" d="M{x},{y}h28"/>{marker(x + 14, y, peer, role)}'
        f'<text x="{x + 34}" y="{y + 4}">{escape(name)}</text>'
    )
