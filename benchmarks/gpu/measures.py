"""The measures of the GPU targets; `ours` is the row of the implementation that a user gets.

Times are compared within the same rounds: the row of each peer holds the cost of our operators in
its rounds.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from benchmarks.gpu.peers import OURS, SIGMOID, SOFTMAX
from benchmarks.operations import DTYPES, Case
from benchmarks.rows import Key, Row, merged

USERS = "ours"
# The fastest softmax peers; to be faster than torch's older one is no achievement.
STRONG = ("sdpa-cudnn", "flash-attn-2", "flash-attn-3")
DELIBERATE = ("NotImplementedError", "ModuleNotFoundError")


def with_ours(rows: dict[Key, Row]) -> dict[Key, Row]:
    """The rows, and for each case a row of the peer "ours": of what `impl="auto"` takes.

    For errors it is the worse of both kernels, and none unless both are there. `by` in its stamp is
    the kernel.
    """
    by_case: dict[Case, dict[str, Row]] = {}
    for row in rows.values():
        if row.peer in OURS:
            by_case.setdefault(row.case, {})[row.peer] = row
    chosen = [
        _worst(ours) if case.operation == "error" else _taken(ours)
        for case, ours in by_case.items()
    ]
    return merged(
        rows,
        [replace(row, peer=USERS, stamp=row.stamp | {"by": row.peer}) for row in chosen if row],
    )


def refuses(row: Row) -> bool:
    """True if the peer refused the case itself; False if it failed."""
    return bool(row.refused) and row.refused.startswith(DELIBERATE)


def _worst(ours: dict[str, Row]) -> Row | None:
    computed = [row for row in ours.values() if not refuses(row)]
    if len(ours) < len(OURS) or not computed:
        return next(iter(ours.values())) if len(ours) == len(OURS) else None
    return max(computed, key=lambda row: largest((row.error or {"": math.inf}).values()))


def _taken(ours: dict[str, Row]) -> Row | None:
    orders = [row.stamp["auto"] for row in ours.values() if "auto" in row.stamp]
    # A kernel that ended the process before its stamp was written counts as well.
    for peer in orders[0] if orders else list(ours):
        row = ours.get(peer)
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
    """The fastest peer's time over the row's."""
    return min(compared(row, rows, (*SOFTMAX, *SIGMOID)).values(), default=None)


def compared(row: Row, rows: dict[Key, Row], peers: tuple[str, ...]) -> dict[str, float]:
    """Each peer's time over the row's, by name, from the same rounds."""
    ratios = {}
    for peer in peers if row.costs else ():
        other = rows.get((row.case, peer, row.threads))
        beside = other.stamp.get("beside", {}) if other else {}
        ours = beside.get(row.stamp.get("by", row.peer))
        if other and other.costs and ours:
            ratios[peer] = other.cost / ours
    return ratios


def against(measure: str, row: Row, rows: dict[Key, Row]) -> tuple[str, ...]:
    """The peers with which a measure compares the row; none for a measure without peers."""
    peers = {"over_softmax": SOFTMAX, "over_peers": (*SOFTMAX, *SIGMOID)}.get(measure, ())
    return tuple(compared(row, rows, peers))


def lacks(measure: str, row: Row, rows: dict[Key, Row]) -> bool:
    """True if a peer is missing without which the comparison decides nothing."""
    present = against(measure, row, rows)
    if measure not in ("over_softmax", "over_peers"):
        return False
    short = measure == "over_peers" and "triton-sigmoid" not in present
    return short or not {*present} & {*STRONG}


def share_of_copy(row: Row, rows: dict[Key, Row]) -> float | None:
    """Bytes of the cache a second, over those of a copy from memory to memory."""
    speeds = [
        copy_speed(other)
        for other in rows.values()
        if other.case.operation == "copy" and other.costs
    ]
    return read_speed(row) / max(speeds) if speeds and row.costs else None


def floor_units(row: Row, rows: dict[Key, Row]) -> float | None:
    """The largest error of output and gradients, in units of the unavoidable rounding error."""
    return largest(row.error.values()) if row.error else None


def largest(errors: Iterable[float]) -> float:
    """The largest error; infinite if one is NaN, which compares with nothing."""
    return max(error if math.isfinite(error) else math.inf for error in errors)


def read_speed(row: Row) -> float:
    """Bytes a second at which a decoding step reads keys and values."""
    case = row.case
    numbers = 2 * case.batch * (case.key_heads or case.heads) * case.length * case.dim
    return numbers * DTYPES[case.dtype].itemsize / row.cost


def copy_speed(row: Row) -> float:
    """Bytes a second of a copy, reads plus writes."""
    return 2 * row.case.length * DTYPES[row.case.dtype].itemsize / row.cost


GPU_MEASURES = {
    "tflops": tflops,
    "over_softmax": over_softmax,
    "over_peers": over_peers,
    "share_of_copy": share_of_copy,
    "floor_units": floor_units,
}
