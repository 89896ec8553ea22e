"""Complete tables of rows and standings for the terminal."""

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from benchmarks.mixtures import Check
from benchmarks.operations import OPERATIONS
from benchmarks.rows import Row
from benchmarks.targets import INCOMPLETE, MET, NOT_MET, Standing
from sigmoid_attention.report.format import quantity

ABSENT = "–"


def listing(rows: Iterable[Row]) -> Table:
    """All rows; a refused one shows its reason."""
    table = _table(("case", "threads", "peer"), ("cost", "GFLOP/s", "ratio", "of rounds"), ("",))
    for row in rows:
        key = str(row.case), str(row.threads), row.peer
        if row.refused:
            table.add_row(*key, *[ABSENT] * 4, Text(row.refused))
            continue
        errors = [f"{part} {error:.2g}" for part, error in (row.error or {}).items()]
        note = f"error: {', '.join(errors)}" if errors else ""
        if not row.costs:
            table.add_row(*key, *[ABSENT] * 4, note)
            continue
        unit = OPERATIONS[row.case.operation].quantity
        computes = not row.bytes and row.case.operation != "copy"
        rate = f"{row.flops_per_second / 1e9:.0f}" if computes else ABSENT
        ratio, spread = ABSENT, ABSENT
        if row.ratio:
            ratio = f"{times(row.ratio.value)}x"
            spread = f"{times(row.ratio.low)} to {times(row.ratio.high)}"
        table.add_row(*key, quantity(row.cost, unit), rate, ratio, spread, note)
    return table


def standings_table(standings: Iterable[Standing]) -> Table:
    """Each target with its worst value and the case of it."""
    table = _table(("target",), ("bound", "worst"), ("", "rows", "worst at"))
    for standing in standings:
        target = standing.target
        bound = f"{'>=' if target.at_least else '<='} {target.bound:g}"
        worst, where = ABSENT, ""
        if standing.worst:
            (case, _, threads), value = standing.worst
            worst, where = f"{value:.4g}", f"{case}, threads {threads}"
        color = {MET: "green", INCOMPLETE: "yellow"}.get(standing.verdict, "red")
        rows = f"{standing.measured} of {len(target.keys)}"
        if standing.refused:
            rows += f", {standing.refused} refused"
        table.add_row(target.name, bound, worst, Text(standing.verdict, color), rows, where)
    return table


def checks_table(checks: Iterable[Check]) -> Table:
    """Each check with its bound and its measured value."""
    table = _table(("check",), ("bound", "measured"), ("unit", "", "seen beside it"))
    for check in checks:
        bound = f"{'>=' if check.at_least else '<='} {check.bound:.4g}"
        verdict = Text(MET, "green") if check.met else Text(NOT_MET, "red")
        table.add_row(check.name, bound, f"{check.value:.4g}", check.unit, verdict, check.said)
    return table


def times(value: float) -> str:
    """A ratio in three digits or so.

    Example:
        >>> times(0.126), times(2.456), times(14.72), times(123.4)
        ('0.13', '2.46', '14.7', '123')
    """
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _table(left: Iterable[str], right: Iterable[str], rest: Iterable[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right")
    for heading in rest:
        table.add_column(heading)
    return table
