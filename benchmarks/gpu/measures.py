"""What the targets of a GPU are measured by; `ours` is the row of what a user gets.

Times are compared within rounds that were shared: the row of whoever is compared holds what ours
cost beside it.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from benchmarks.gpu.peers import OURS, SIGMOID, SOFTMAX
from benchmarks.operations import DTYPES, Case
from benchmarks.rows import Key, Row, merged

USERS = "ours"
# A softmax that is as fast as they get: to be faster than torch's older one says little.
STRONG = ("sdpa-cudnn", "flash-attn-2", "flash-attn-3")
DELIBERATE = ("NotImplementedError", "ModuleNotFoundError")


def with_ours(rows: dict[Key, Row]) -> dict[Key, Row]:
    """The rows, and one of the peer "ours" for each case: of what `impl="auto"` takes.

    Of errors the worse of both kernels, whatever it takes, and none without both. Its stamp says
    `by` whom it is.
    """
    by_case: dict[Case, dict[str, Row]] = {}
    for row in rows.values():
        if row.peer in OURS:
            by_case.setdefault(row.case, {})[row.peer] = row
    chosen = [
        _worst(own) if case.operation == "error" else _taken(own) for case, own in by_case.items()
    ]
    return merged(
        rows,
        [replace(row, peer=USERS, stamp=row.stamp | {"by": row.peer}) for row in chosen if row],
    )


def refuses(row: Row) -> bool:
    """Whether it says itself that it does not do this; else it failed."""
    return bool(row.refused) and row.refused.startswith(DELIBERATE)


def _worst(own: dict[str, Row]) -> Row | None:
    answers = [row for row in own.values() if not refuses(row)]
    if len(own) < len(OURS) or not answers:
        return next(iter(own.values())) if len(own) == len(OURS) else None
    return max(answers, key=lambda row: largest((row.error or {"": math.inf}).values()))


def _taken(own: dict[str, Row]) -> Row | None:
    told = [row.stamp["auto"] for row in own.values() if "auto" in row.stamp]
    # Who ended the process before it could tell is not passed over.
    order = told[0] if told else list(own)
    for peer in order:
        row = own.get(peer)
        if row is None or not refuses(row):
            return row
    return None


def tflops(row: Row, rows: dict[Key, Row]) -> float | None:
    """Tera floating-point operations a second, of the matrix products alone."""
    return row.flops_per_second / 1e12 if row.costs else None


def over_softmax(row: Row, rows: dict[Key, Row]) -> float | None:
    """The fastest softmax peer's time over the row's."""
    return min(compared(row, rows, SOFTMAX).values(), default=None)


def over_peers(row: Row, rows: dict[Key, Row]) -> float | None:
    """The same of the fastest of all others."""
    return min(compared(row, rows, (*SOFTMAX, *SIGMOID)).values(), default=None)


def compared(row: Row, rows: dict[Key, Row], peers: tuple[str, ...]) -> dict[str, float]:
    """Each peer's time over the row's, by name, from rounds that both shared."""
    found = {}
    for peer in peers if row.costs else ():
        other = rows.get((row.case, peer, row.threads))
        beside = other.stamp.get("beside", {}) if other else {}
        own = beside.get(row.stamp.get("by", row.peer))
        if other and other.costs and own:
            found[peer] = other.cost / own
    return found


def against(measure: str, row: Row, rows: dict[Key, Row]) -> tuple[str, ...]:
    """Whom a measure compares the row with; nobody where it compares with no peer."""
    peers = {"over_softmax": SOFTMAX, "over_peers": (*SOFTMAX, *SIGMOID)}.get(measure, ())
    return tuple(compared(row, rows, peers))


def lacks(measure: str, row: Row, rows: dict[Key, Row]) -> bool:
    """Whether somebody did not answer without whom a comparison decides nothing."""
    there = against(measure, row, rows)
    if measure not in ("over_softmax", "over_peers"):
        return False
    short = measure == "over_peers" and "triton-sigmoid" not in there
    return short or not {*there} & {*STRONG}


def share_of_copy(row: Row, rows: dict[Key, Row]) -> float | None:
    """Bytes of the cache a second, over those of a copy from memory to memory."""
    speeds = [
        copy_speed(other)
        for other in rows.values()
        if other.case.operation == "copy" and other.costs
    ]
    return read_speed(row) / max(speeds) if speeds and row.costs else None


def floor_units(row: Row, rows: dict[Key, Row]) -> float | None:
    """The largest error of output and gradients, in units of what rounding has to cost."""
    return largest(row.error.values()) if row.error else None


def largest(errors: Iterable[float]) -> float:
    """The largest; infinite where one is no number, which no comparison would find."""
    return max(error if math.isfinite(error) else math.inf for error in errors)


def read_speed(row: Row) -> float:
    """Bytes a second at which a decoding step reads keys and values."""
    case = row.case
    numbers = 2 * case.batch * (case.key_heads or case.heads) * case.length * case.dim
    return numbers * DTYPES[case.dtype].itemsize / row.cost


def copy_speed(row: Row) -> float:
    """Bytes a second that a copy reads and writes, counted both."""
    return 2 * row.case.length * DTYPES[row.case.dtype].itemsize / row.cost


GPU_MEASURES = {
    "tflops": tflops,
    "over_softmax": over_softmax,
    "over_peers": over_peers,
    "share_of_copy": share_of_copy,
    "floor_units": floor_units,
}
