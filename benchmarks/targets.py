"""The targets, and the verdict on each from measured rows: the worst row decides."""

import tomllib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.gpu.measures import GPU_MEASURES, against, lacks, largest
from benchmarks.operations import Case
from benchmarks.rows import Key, Row

TARGETS = Path(__file__).with_name("targets.toml")
GPU_TARGETS = Path(__file__).with_name("gpu") / "targets.toml"
AXES = (
    "operation", "mask", "dtype", "length", "dim", "heads", "batch", "key_heads", "feature",
)  # fmt: skip
OURS, DENSE = "ours", "dense"

MET, NOT_MET, INCOMPLETE, NOT_MEASURED = "met", "not met", "incomplete", "not measured"


@dataclass(frozen=True)
class Target:
    """A bound that a measure must keep at each of `keys`."""

    name: str
    measure: str
    keys: tuple[Key, ...]
    bound: float
    at_least: bool

    def kept_by(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def worst(self, values: dict[Key, float]) -> Key:
        """The key of the worst value."""
        return (min if self.at_least else max)(values, key=values.__getitem__)


@dataclass(frozen=True)
class Standing:
    """The verdict on a target, its worst value and key, and how many of its rows are measured."""

    target: Target
    verdict: str
    worst: tuple[Key, float] | None
    measured: int
    refused: int
    # The peers of the judged rows, and the peers with which all of them were compared.
    by: tuple[str, ...] = ()
    against: tuple[str, ...] = ()


def read_targets(path: Path = TARGETS) -> list[Target]:
    """The targets of a file."""
    groups = tomllib.loads(path.read_text())["group"]
    return [_target(group, values) for group in groups for values in group["target"]]


def standing(target: Target, rows: dict[Key, Row]) -> Standing:
    """Judge a target by its rows.

    "met": all rows are measured and keep the bound; "not met": a row does not, or refused;
    "incomplete": the measured rows keep it, but some are missing, or a peer that is needed for
    the comparison; "not measured": there are no rows.
    """
    measured = [rows[key] for key in target.keys if key in rows]
    refused = [row for row in measured if row.refused]
    values = {
        row.key: value
        for row in measured
        if not row.refused and (value := MEASURES[target.measure](row, rows)) is not None
    }
    worst = target.worst(values) if values else None
    if refused or (worst and not target.kept_by(values[worst])):
        verdict = NOT_MET
    elif not values:
        verdict = NOT_MEASURED
    else:
        lacking = any(lacks(target.measure, rows[key], rows) for key in values)
        verdict = MET if len(values) == len(target.keys) and not lacking else INCOMPLETE
    at = (worst, values[worst]) if worst else None
    by = dict.fromkeys(row.stamp["by"] for row in measured if "by" in row.stamp)
    peers = [against(target.measure, rows[key], rows) for key in values]
    common = [p for p in peers[0] if all(p in others for others in peers)] if peers else []
    return Standing(target, verdict, at, len(values), len(refused), tuple(by), tuple(common))


def share_of_peak(row: Row, rows: dict[Key, Row]) -> float | None:
    """The row's rate over that of the fastest matrix product with its dtype and threads."""
    peaks = [
        other.flops_per_second
        for other in rows.values()
        if other.case.operation == "gemm"
        and (other.case.dtype, other.threads) == (row.case.dtype, row.threads)
        and not other.refused
    ]
    return row.flops_per_second / max(peaks) if peaks else None


def _ratio(row: Row, rows: dict[Key, Row]) -> float | None:
    return row.ratio.value if row.ratio else None


def _error_ratio(row: Row, rows: dict[Key, Row]) -> float | None:
    dense = rows.get((row.case, DENSE, row.threads))
    if not (row.error and dense and dense.error):
        return None
    return largest(row.error[part] / dense.error[part] for part in row.error)


def _memory(row: Row, rows: dict[Key, Row]) -> float | None:
    return 1 / row.ratio.value if row.ratio else None


MEASURES = {
    "ratio": _ratio,
    "share_of_peak": share_of_peak,
    "error_ratio": _error_ratio,
    "memory": _memory,
    **GPU_MEASURES,
}


def _target(group: dict[str, Any], values: dict[str, Any]) -> Target:
    axes = {name: group[name] for name in AXES if name in group}
    axes |= {name: [values[name]] for name in AXES if name in values}
    keys = tuple(
        (Case(**dict(zip(axes, point, strict=True))), OURS, count)
        for point in product(*axes.values())
        for count in group["threads"]
    )
    named = [str(values[name]) for name in AXES if name in values]
    at_least = "at_least" in values
    return Target(
        name=f"{group['name']}: {' '.join(named)}" if named else group["name"],
        measure=group["measure"],
        keys=keys,
        bound=values["at_least"] if at_least else values["at_most"],
        at_least=at_least,
    )
