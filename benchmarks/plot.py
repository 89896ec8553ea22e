"""The figure of docs/benchmarks.md: speed against SDPA by length, for every peer, as one SVG."""

from collections.abc import Mapping, Sequence

from benchmarks.listing import times
from benchmarks.rows import Key, Ratio, Row
from benchmarks.targets import OURS
from sigmoid_attention.lab.figure import drawing, pixels, themed
from sigmoid_attention.lab.theme import PALETTE, standalone
from sigmoid_attention.report.chart import (
    HEIGHT,
    KEY_HEIGHT,
    KEY_WIDTH,
    WIDTH,
    Axis,
    Dots,
    Line,
    Mark,
    Panel,
    Rule,
    Series,
    Whisker,
    draw_key,
    log_axis,
    ticked_axis,
    write_text,
)
from sigmoid_attention.report.format import token_count
from sigmoid_attention.report.panels import y_values

# In the order of drawing: our own operator lies on top.
PEERS = {
    "eager-softmax": "eager softmax",
    "eager-sigmoid": "eager sigmoid",
    "tiled": "tiled PyTorch",
    "flex": "flex_attention (softmax)",
    OURS: "this operator",
}
SERIES = {
    "eager-softmax": Series("eager-softmax", "blue", (2, 3), "o", is_open=True),
    "eager-sigmoid": Series("eager-sigmoid", "purple", (7, 3, 2, 3), "^"),
    "tiled": Series("tiled", "ochre", (4, 2), "v"),
    "flex": Series("flex", "green", (7, 3), "D"),
    OURS: Series(OURS, "vermilion", (), "s"),
}
DTYPES = ("fp32", "bf16")
OPERATIONS = (
    ("Forward, causal", "forward", "causal"),
    ("Forward + backward, causal", "forward+backward", "causal"),
    ("One query against a cache", "decode", "full"),
)
DIM = 64
SHORTEST = 1024
COLUMNS = 2
# In pixels.
MARGIN, GAP, HEAD, KEY_GAP, KEY_LINE = 20, 24, 76, 8, 22
CHARACTER = 7.0

PeerCurve = list[tuple[int, Ratio]]


def plot(rows: dict[Key, Row]) -> bytes:
    """The rows with the most threads and head dim 64, a panel for each operation and dtype.

    A panel without rows is left out. Raises ``ValueError`` if no panel has rows.
    """
    threads = max((row.threads for row in rows.values()), default=0)
    grid: list[list[tuple[str, dict[str, PeerCurve]] | None]] = []
    for title, operation, mask in OPERATIONS:
        line = [
            (f"{title}, {dtype}", curves) if curves else None
            for dtype in DTYPES
            for curves in [_curves(rows, operation, dtype, mask, threads)]
        ]
        if any(line):
            grid.append(line)
    if not grid:
        raise ValueError(f"there is nothing to draw: these rows have no ratio at D = {DIM}")
    # One scale for all panels, so that they can be compared.
    ratios = [y for line in grid for part in line if part for y in y_values(_marks(part[1]))]
    y_axis = log_axis(ratios, "times faster than SDPA (1×)", lambda value: f"{value:g}×")
    panels = [[part and _panel(*part, y_axis) for part in line] for line in grid]
    setting = f"D = {DIM}, B = 1, H = 8, {threads} threads"
    return composed(
        panels, "Times faster than scaled_dot_product_attention", setting, PEERS, SERIES
    )


def _curves(
    rows: dict[Key, Row], operation: str, dtype: str, mask: str, threads: int
) -> dict[str, PeerCurve]:
    curves: dict[str, PeerCurve] = {}
    for row in sorted(rows.values(), key=lambda row: row.case.length):
        case = row.case
        setting = (case.operation, case.dtype, case.mask, case.dim, row.threads)
        if setting != (operation, dtype, mask, DIM, threads) or case.length < SHORTEST:
            continue
        if row.ratio and row.peer in PEERS:
            curves.setdefault(row.peer, []).append((case.length, row.ratio))
    return curves


def _marks(curves: dict[str, PeerCurve]) -> list[Mark]:
    """The line of each peer, ours with its spread; SDPA is the rule at one."""
    marks: list[Mark] = [Rule(1.0)]
    for peer, series in SERIES.items():
        if peer not in curves:
            continue
        points = tuple((float(n), ratio.value) for n, ratio in curves[peer])
        marks.append(Line(points, series, "mean" if peer == OURS else "alone"))
        if peer == OURS:
            marks += [Whisker(n, ratio.low, ratio.high, series) for n, ratio in curves[peer]]
        marks.append(Dots(points, series, "mean" if peer == OURS else "seed"))
    return marks


def _panel(title: str, curves: dict[str, PeerCurve], y_axis: Axis) -> Panel:
    lengths = sorted({n for curve in curves.values() for n, _ in curve})
    ticks = [(float(n), token_count(n)) for n in lengths]
    x_axis = ticked_axis(ticks, "sequence length in tokens", log=True)
    values = "; ".join(
        f"{PEERS[peer]} {times(ratio.value)} at {n}"
        for peer, curve in curves.items()
        for n, ratio in curve
    )
    description = f"Times faster than SDPA: {values}."
    return Panel(title, x_axis, y_axis, tuple(_marks(curves)), description)


def composed(
    panels: Sequence[Sequence[Panel | None]],
    title: str,
    setting: str,
    names: Mapping[str, str],
    series: Mapping[str, Series],
) -> bytes:
    """The panels in lines, under a title and a legend of the peers in them.

    The last of the `names` comes first in the legend.
    """
    width = 2 * MARGIN + COLUMNS * WIDTH + GAP * (COLUMNS - 1)
    shown = [panel for line in panels for panel in line if panel]
    drawn = {m.series.name for panel in shown for m in panel.marks if isinstance(m, Line)}
    keys = _legend([peer for peer in reversed(list(names)) if peer in drawn], names, width)
    head = HEAD + max(y for _, _, y in keys)
    figure = pixels(width, head + len(panels) * (HEIGHT + GAP))
    with drawing():
        figure.set_facecolor(PALETTE["paper"].light)
        ink = PALETTE["ink"].light
        write_text(figure, MARGIN, 26, title, size=15, weight="bold", color=ink, gid="title")
        write_text(figure, width - MARGIN, 26, setting, horizontalalignment="right")
        for peer, x, y in keys:
            draw_key(figure, x, 45 + y, series[peer])
            write_text(figure, x + KEY_WIDTH + KEY_GAP, 49 + KEY_HEIGHT / 2 + y, names[peer])
        for i, line in enumerate(panels):
            for j, panel in enumerate(line):
                if panel:
                    panel.draw(figure, MARGIN + j * (WIDTH + GAP), head + i * (HEIGHT + GAP))
        root = themed(figure)
    # matplotlib writes points.
    root.attrib |= {name: root.get(name, "").removesuffix("pt") for name in ("width", "height")}
    descriptions = " ".join(f"{panel.title}. {panel.description}" for panel in shown)
    return standalone(root, f"{title}. {setting}. {descriptions}")


def _legend(
    peers: Sequence[str], names: Mapping[str, str], width: float
) -> list[tuple[str, float, float]]:
    """The keys side by side: each peer's x, and its y below the first line."""
    keys, x, y = [], float(MARGIN), 0.0
    for peer in peers:
        needed = KEY_WIDTH + CHARACTER * len(names[peer]) + 2 * KEY_GAP
        if x > MARGIN and x + needed > width:
            x, y = float(MARGIN), y + KEY_LINE
        keys.append((peer, x, y))
        x += needed
    return keys
