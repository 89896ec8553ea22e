"""Markdown from measured rows: ratios by length, checks, and sentences of facts."""

import statistics
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.listing import ABSENT, times
from benchmarks.mixtures import Check
from benchmarks.operations import DTYPES, Case
from benchmarks.rows import Key, Row
from benchmarks.targets import DENSE, MET, NOT_MET, OURS, share_of_peak
from sigmoid_attention.report.format import quantity, token_count

WIDTH = 100
BEGIN, END = "<!-- benchmark -->", "<!-- /benchmark -->"


@dataclass(frozen=True)
class Ratios:
    """One table: our ratio to the baseline, a column for each length, a line for each operation and
    dtype."""

    title: str
    lines: tuple[tuple[str, str, str], ...]  # label, operation, mask
    lengths: tuple[int, ...]
    dims: tuple[int, ...] = (64, 128)


TABLES = (
    Ratios(
        "attention, times faster than SDPA",
        (
            ("forward, full", "forward", "full"),
            ("forward, causal", "forward", "causal"),
            ("forward + backward, full", "forward+backward", "full"),
            ("forward + backward, causal", "forward+backward", "causal"),
        ),
        (128, 256, 1024, 2048, 4096, 8192),
    ),
    Ratios(
        "one query against a cache, times faster than SDPA",
        (("decoding", "decode", "full"),),
        (4096, 8192, 16384, 32768),
    ),
    Ratios(
        "ALiBi, causal, times faster than without skipping",
        (
            ("forward", "alibi-forward", "causal"),
            ("forward + backward", "alibi-forward+backward", "causal"),
        ),
        (4096, 8192, 16384),
        dims=(64,),
    ),
)


def with_block(text: str, block: str) -> str:
    """The text of a page with `block` between its markers.

    Raises ``ValueError`` if the markers are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page must hold {BEGIN} and {END}, one after the other")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def checks_block(checks: Iterable[Check]) -> str:
    """Checks in Markdown, and the machine."""
    lines = ["| | bound | measured | | seen beside it |", "|---|---|---|---|---|"]
    stamps = {}
    for check in checks:
        bound = f"{'>=' if check.at_least else '<='} {check.bound:g} {check.unit}"
        verdict = MET if check.met else NOT_MET
        measured = f"{check.value:.3f} {check.unit}"
        lines.append(f"| {check.name} | {bound} | {measured} | {verdict} | {check.said} |")
        machine, torch = check.stamp["machine"], check.stamp["versions"]["torch"]
        stamps[f"{machine['processor']}, {_threads(check.stamp['threads'])}, torch {torch}"] = None
    return "\n".join([*lines, "", f"Measured on {'; '.join(stamps)}."])


def cpu_block(rows: dict[Key, Row], image: str) -> str:
    """The rows in Markdown; `image` is the path of the plot from docs/benchmarks.md.

    Of several numbers of threads the largest is shown.
    """
    ours = [row for row in rows.values() if row.peer == OURS and not row.refused]
    if not ours:
        return "Nothing has been measured yet; `make bench-cpu` does."
    threads = max(row.threads for row in ours)
    shown = {key: row for key, row in rows.items() if row.threads == threads}
    facts = [*_headline(shown), *_skipping_error(shown), *_memory(shown), *_peak(shown)]
    parts = [
        _setting(max((row.stamp for row in ours), key=lambda stamp: stamp["date"]), threads),
        *(_table(shown, ratios, threads) for ratios in TABLES),
        "\n".join(_item(fact) for fact in [*facts, *_spread(shown)]),
        f"![Speed against SDPA by length: this operator and other ways]({image})",
        _refusals(shown),
    ]
    return "\n\n".join(part for part in parts if part)


def _setting(stamp: dict[str, Any], threads: int) -> str:
    machine = stamp["machine"]
    return textwrap.fill(
        f"SDPA is `scaled_dot_product_attention`, softmax at the same shape: B = 1, H = 8, "
        f"D = 64 / 128. Both took turns on {machine['processor']}, {machine['cores']} cores, "
        f"{_threads(threads)}, kernel path {stamp['kernel']}, torch {stamp['versions']['torch']}, "
        f"{stamp['date'][:10]}.",
        WIDTH,
    )


def _table(rows: dict[Key, Row], ratios: Ratios, threads: int) -> str:
    lines: list[str] = []
    for label, operation, mask in ratios.lines:
        for dtype in DTYPES:
            cells = [
                _cell(rows, [Case(operation, dtype, n, dim, mask) for dim in ratios.dims], threads)
                for n in ratios.lengths
            ]
            if set(cells) != {ABSENT}:
                lines.append(f"| {label}, {dtype} | {' | '.join(cells)} |")
    heads = [f"N = {token_count(n)}" for n in ratios.lengths]
    head = f"| {ratios.title} | {' | '.join(heads)} |\n{'|---' * (len(heads) + 1)}|"
    return "\n".join([head, *lines]) if lines else ""


def _cell(rows: dict[Key, Row], cases: Sequence[Case], threads: int) -> str:
    ours = [rows.get((case, OURS, threads)) for case in cases]
    shown = [times(row.ratio.value) if row and row.ratio else ABSENT for row in ours]
    return ABSENT if set(shown) == {ABSENT} else " / ".join(shown)


def _headline(rows: dict[Key, Row]) -> list[str]:
    return [
        f"At {row.case.length:,} tokens ({row.case.dtype}, causal, D = {row.case.dim}) sigmoid "
        f"attention under ALiBi takes {quantity(row.cost, 'seconds')}, SDPA without ALiBi "
        f"{quantity(row.cost * row.ratio.value, 'seconds')}: {times(row.ratio.value)} times faster."
        for row in _of(rows, "headline")
        if row.ratio
    ]


def _skipping_error(rows: dict[Key, Row]) -> list[str]:
    ratios = [
        row.error[part] / dense.error[part]
        for operation in ("alibi-forward", "alibi-forward+backward")
        for row in _of(rows, operation)
        if (dense := rows.get((row.case, DENSE, row.threads))) and row.error and dense.error
        for part in row.error
    ]
    if not ratios:
        return []
    return [f"Skipping changes the error against float64 by a factor of {max(ratios):.3f} at most."]


def _memory(rows: dict[Key, Row]) -> list[str]:
    named = (("memory-forward", "forward"), ("memory-forward+backward", "with backward"))
    passes = [(name, row) for operation, name in named for row in _of(rows, operation) if row.ratio]
    costs = [
        f"{name} {row.case.dtype} {quantity(row.cost, 'bytes')} "
        f"({quantity(row.cost * row.ratio.value, 'bytes')})"
        for name, row in passes
        if row.ratio
    ]
    return [
        f"Extra memory at N = {token_count(row.case.length)}, H = {row.case.heads}, "
        f"D = {row.case.dim}, causal, with SDPA's in brackets: {', '.join(costs)}."
        for _, row in passes[:1]
    ]


def _peak(rows: dict[Key, Row]) -> list[str]:
    shares: dict[str, list[float]] = {}
    for row in _of(rows, "forward"):
        share = share_of_peak(row, rows) if row.case.length >= 2048 else None
        if share is not None:
            shares.setdefault(row.case.dtype, []).append(share)
    if not shares:
        return []
    ranges = [f"{dtype} {min(s):.0%} to {max(s):.0%}" for dtype, s in shares.items()]
    return [
        f"Share of the rate of torch's and oneDNN's fastest matrix product that forward reaches "
        f"from 2k tokens on: {', '.join(ranges)}."
    ]


def _spread(rows: dict[Key, Row]) -> list[str]:
    spreads = [
        (row.ratio.high - row.ratio.low) / (2 * row.ratio.value)
        for row in rows.values()
        if row.peer == OURS and row.ratio and not row.bytes
    ]
    if not spreads:
        return []
    return [
        f"Ratios are those of medians; single rounds lie around them by "
        f"±{statistics.median(spreads):.0%} in the median shape, ±{max(spreads):.0%} in the worst."
    ]


def _refusals(rows: dict[Key, Row]) -> str:
    """What peers refused: the reason for a missing line in the figure."""
    lengths: dict[tuple[str, str], set[int]] = {}
    reasons: dict[tuple[str, str], str] = {}
    for row in rows.values():
        if row.refused:
            key = row.peer, row.case.operation
            lengths.setdefault(key, set()).add(row.case.length)
            reasons[key] = row.refused.partition(". ")[0].removesuffix(".")
    refusals = [
        f"{peer}, {operation}, N = {', '.join(token_count(n) for n in sorted(values))} "
        f"({reasons[peer, operation]})"
        for (peer, operation), values in lengths.items()
    ]
    return textwrap.fill(f"Refused: {'; '.join(refusals)}.", WIDTH) if refusals else ""


def _of(rows: dict[Key, Row], operation: str) -> list[Row]:
    return [
        row
        for row in rows.values()
        if row.case.operation == operation and row.peer == OURS and not row.refused
    ]


def _item(fact: str) -> str:
    return textwrap.fill(fact, WIDTH, initial_indent="- ", subsequent_indent="  ")


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"
