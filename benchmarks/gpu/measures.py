"""What the targets of a GPU are measured by; `ours` is the row of what a user gets."""

import math
from collections.abc import Iterable
from dataclasses import replace

from benchmarks.gpu.peers import OURS, SOFTMAX
from benchmarks.operations import DTYPES, Case
from benchmarks.rows import Key, Row, merged

USERS = "ours"


def with_ours(rows: dict[Key, Row]) -> dict[Key, Row]:
    """The rows, and one of the peer "ours" for each case: of gluon where it accepts, or triton."""
    chosen: dict[Case, Row] = {}
    for row in rows.values():
        if row.peer in OURS:
            before = chosen.get(row.case)
            better = before is None or before.refused or (row.peer == OURS[0] and not row.refused)
            chosen[row.case] = row if better else before
    return merged(rows, [replace(row, peer=USERS) for row in chosen.values()])


def tflops(row: Row, rows: dict[Key, Row]) -> float | None:
    """Tera floating-point operations a second, of the matrix products alone."""
    return row.flops_per_second / 1e12 if row.costs else None


def over_softmax(row: Row, rows: dict[Key, Row]) -> float | None:
    """The fastest softmax peer's time over the row's."""
    return _fastest(row, rows, SOFTMAX)


def over_peers(row: Row, rows: dict[Key, Row]) -> float | None:
    """The same of the fastest of all others."""
    others = {other.peer for other in rows.values()} - {*OURS, USERS}
    return _fastest(row, rows, tuple(others))


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


def _fastest(row: Row, rows: dict[Key, Row], peers: tuple[str, ...]) -> float | None:
    found = [rows.get((row.case, peer, row.threads)) for peer in peers]
    costs = [other.cost for other in found if other and other.costs]
    return min(costs) / row.cost if costs and row.costs else None


GPU_MEASURES = {
    "tflops": tflops,
    "over_softmax": over_softmax,
    "over_peers": over_peers,
    "share_of_copy": share_of_copy,
    "floor_units": floor_units,
}
