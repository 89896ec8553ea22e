"""A measurement as one line of JSON, together with its case, machine and versions.

A file holds one row for each operation, shape, dtype, peer and number of threads; a newer row
replaces the older.
"""

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from benchmarks.operations import Case, flops
from benchmarks.timing import Seconds
from sigmoid_attention.training.environment import processor_name
from sigmoid_attention.training.files import reading, sealed, unsealed, write_whole

Key = tuple[Case, str, int]


@dataclass(frozen=True)
class Ratio:
    """The baseline's cost over the peer's, so more is better: of medians, and over the rounds."""

    baseline: str
    of: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """The measurement of one peer in one case; `refused` is the reason if there is none.

    `wall` and `cpu` are seconds a call, one a round; `bytes` one a repetition. The ratio of one
    thread is that of CPU times, which other load on the machine hardly changes. Work of a GPU has
    0 threads: `wall` is the device's time, `cpu` the host's time for a call.
    """

    case: Case
    peer: str
    threads: int
    wall: tuple[float, ...] = ()
    cpu: tuple[float, ...] = ()
    bytes: tuple[int, ...] = ()
    ratio: Ratio | None = None
    error: dict[str, float] | None = None
    refused: str | None = None
    stamp: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.case, self.peer, self.threads

    @property
    def costs(self) -> tuple[float, ...]:
        """The costs in seconds or bytes, one a round, from which ratios are computed."""
        return self.bytes or (self.cpu if self.threads == 1 else self.wall)

    @property
    def cost(self) -> float:
        """The median of the costs, in seconds or bytes."""
        return statistics.median(self.costs)

    @property
    def flops_per_second(self) -> float:
        return flops(self.case) / self.cost

    def to_json(self) -> str:
        """One line."""
        values = asdict(self)
        return json.dumps(sealed(values.pop("case") | values.pop("stamp") | values))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The row of a line from `to_json`; lines of earlier versions have no checksum."""
        values = unsealed(json.loads(line))
        case = Case(**{f.name: values.pop(f.name) for f in fields(Case) if f.name in values})
        named = {f.name for f in fields(cls)}
        row = {name: values.pop(name) for name in list(values) if name in named}
        for name in ("wall", "cpu", "bytes"):
            row[name] = tuple(row[name])
        if row["ratio"] is not None:
            row["ratio"] = Ratio(**row["ratio"])
        return cls(case=case, stamp=values, **row)


def times(turns: Sequence[Seconds]) -> dict[str, tuple[float, ...]]:
    """The turns for a row, rounded to six digits, as more would be noise."""
    return {
        "wall": tuple(float(f"{turn.wall:.6g}") for turn in turns),
        "cpu": tuple(float(f"{turn.cpu:.6g}") for turn in turns),
    }


def ratio_to(baseline: Row, row: Row) -> Ratio:
    """The baseline's cost over the row's, from the same rounds."""
    by_round = [theirs / ours for theirs, ours in zip(baseline.costs, row.costs, strict=True)]
    of = "bytes" if row.bytes else "cpu" if row.threads == 1 else "wall"
    return Ratio(baseline.peer, of, baseline.cost / row.cost, min(by_round), max(by_round))


def read(path: Path) -> dict[Key, Row]:
    """The rows of a file by their keys; none without a file. ``Damaged`` if it is unreadable."""
    if not path.exists():
        return {}
    with reading(path):
        return merged({}, (Row.from_json(line) for line in path.read_text().splitlines()))


def merged(old: dict[Key, Row], new: Iterable[Row]) -> dict[Key, Row]:
    """The rows of both; a new row replaces the old one of its key."""
    return old | {row.key: row for row in new}


def write(path: Path, rows: dict[Key, Row]) -> None:
    """All rows to `path`, whole or not at all."""
    write_whole(path, "".join(row.to_json() + "\n" for row in rows.values()).encode())


def results_file(path: Path, suite: str, device: str = "") -> Path:
    """`path` itself if it is a .jsonl file, else the file of the suite's results in that folder.

    It is named after the `device`, by default the processor.
    """
    if path.suffix == ".jsonl":
        return path
    return path / f"{suite}-{file_name(device or processor_name())}.jsonl"


def file_name(device: str) -> str:
    """A device's name as part of a file's.

    Example:
        >>> file_name("NVIDIA H200 (SXM)")
        'nvidia-h200-sxm'
    """
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
