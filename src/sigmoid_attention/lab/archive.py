"""The rows of finished tasks: one immutable Parquet file per task, written in one step.

    OUT/rows/KEY.parquet  the rows of the task with this key, and the setting that made them

The key is a hash of everything that the task's numbers depend on. So files never change, studies
share their common tasks, and one folder can hold any number of studies.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from sigmoid_attention.lab.study import Measured, Results, Row, Task
from sigmoid_attention.training.files import Damaged, refuse_other_kinds, write_whole
from sigmoid_attention.training.tables import parquet_bytes, read_table

_ARROW = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
_OF_ROW = [(field.name, _ARROW[field.type]) for field in fields(Row)]
# JSON texts. They are the same in every row, and Parquet stores them once.
_JSON = ("setting", "machine", "versions", "provenance")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("study", "cell", "part", "key")),
        *_OF_ROW,
        ("cpu_seconds", pa.float64()),
        *((name, pa.string()) for name in _JSON),
    ]
)


def encode(
    study: str, task: Task, rows: Iterable[Row], cpu_seconds: float, stamp: dict[str, Any]
) -> bytes:
    """The file of a task: its rows, each with ``stamp`` (machine, versions, provenance).

    Args:
        cpu_seconds: the time of the whole task, written in every row.
    """
    collected = list(rows)
    columns = {name: [getattr(row, name) for row in collected] for name, _ in _OF_ROW}
    described = {"setting": asdict(task.setting), **stamp}
    same: dict[str, str | float] = {
        "study": study,
        "cell": task.cell,
        "part": task.part,
        "key": task.key,
        "cpu_seconds": cpu_seconds,
        **{name: json.dumps(described[name], sort_keys=True) for name in _JSON},
    }
    columns |= {name: [value] * len(collected) for name, value in same.items()}
    return parquet_bytes(pa.table(columns, schema=SCHEMA))


class Archive:
    """The finished tasks under ``out``; nothing is written before the first one.

    Raises:
        ValueError: ``out``, or ``out/rows``, is a file.

    Example:
        >>> Archive(Path("nowhere")).has("0123456789abcdef")
        False
    """

    def __init__(self, out: Path) -> None:
        if out.exists() and not out.is_dir():
            raise ValueError(f"out must be a folder, but {out} is a file")
        refuse_other_kinds(out, folders=("rows",))
        self.out = out

    def path(self, key: str) -> Path:
        return self.out / "rows" / f"{key}.parquet"

    def has(self, key: str) -> bool:
        """Whether the task of this key is finished; ``Damaged`` if its file is damaged."""
        return self.path(key).exists() and self.table(key) is not None

    def put(self, key: str, data: bytes) -> None:
        """Write the file of a task, whole or not at all; ``OSError`` if it cannot be written."""
        write_whole(self.path(key), data)

    def table(self, key: str) -> pa.Table:
        """The file of this key, with the columns of ``SCHEMA``.

        Raises:
            OSError: the file does not exist or cannot be read.
            Damaged: the file is not what was written.
        """
        path = self.path(key)
        table = read_table(path, SCHEMA)
        if set(table["key"].unique().to_pylist()) - {key}:
            raise Damaged(f"{path} is damaged (it holds the rows of another task)")
        return table

    def missing(
        self, tasks: Iterable[Task], complain: Callable[[str], None] = lambda message: None
    ) -> Iterator[Task]:
        """The unfinished tasks; ``complain`` is called with a message for each damaged file."""
        for task in tasks:
            try:
                if self.has(task.key):
                    continue
            except Damaged as error:
                complain(str(error))
            yield task

    def tables(self, tasks: Iterable[Task]) -> dict[str, pa.Table]:
        """The tables of tasks by key; raises the errors of ``table`` if a task is not finished."""
        return {key: self.table(key) for key in dict.fromkeys(task.key for task in tasks)}

    def results(self, tasks: Sequence[Task]) -> Results:
        """The results of tasks, all of which must be finished."""
        return results_of(tasks, self.tables(tasks))


def results_of(tasks: Iterable[Task], tables: Mapping[str, pa.Table]) -> Results:
    """The results from the tasks' tables, in the order of the tasks."""
    collected: dict[tuple[str, str], list[Measured]] = {}
    for task in tasks:
        columns = [tables[task.key][name].to_pylist() for name, _ in _OF_ROW]
        measured = Measured([Row(*values) for values in zip(*columns, strict=True)])
        collected.setdefault((task.cell, task.part), []).append(measured)
    return collected
