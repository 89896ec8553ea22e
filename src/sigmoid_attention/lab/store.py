"""The folder of a study: its setting, and one immutable file for each finished unit of work.

    OUT/setting.json      the setting of the study; it cannot be resumed with another one
    OUT/rows/NAME.parquet the rows of one finished unit, written in one step, never changed
    OUT/rows.parquet      the rows of all units, once the study is complete
    OUT/runs/             checkpoints of the training runs

The files show which units are done, so a killed study can continue. When the folder is opened,
damaged files are reported and removed, and their units run again.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from sigmoid_attention.lab.rows import ROW_SCHEMA, ArmRow
from sigmoid_attention.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    remove_checkpoints,
)
from sigmoid_attention.training.files import (
    Damaged,
    holds_anything,
    read_json,
    refuse_occupied,
    refuse_other_kinds,
    write_json,
    write_whole,
)
from sigmoid_attention.training.tables import parquet_bytes, read_table
from sigmoid_attention.training.terminal import warn

SETTING = "setting.json"
ROWS = "rows.parquet"


class Store:
    """The folder `out` of a study with this `setting`; existing parts must have the same setting.

    `stamp` (machine, versions, provenance: JSON-able dicts) is stored with the setting in every
    row that this process writes.

    Raises:
        ValueError: `out` is not empty and `resume` is False, is no study's folder, or holds a
            study with another setting; the message names the first field that differs.
        OSError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp())
        >>> store = Store(out, {"steps": 3}, {}, resume=False)
        >>> store.put("loss-seed0", [ArmRow("softmax", "train_loss", 2.5, "nats/token", seed=0)])
        >>> store.has("loss-seed0"), store.rows().num_rows
        (True, 1)
        >>> Store(out, {"steps": 4}, {}, resume=True)
        Traceback (most recent call last):
        ...
        ValueError: --resume: steps was 3 when this folder was started and is 4 now; ...
    """

    def __init__(
        self, out: Path, setting: dict[str, Any], stamp: dict[str, Any], *, resume: bool
    ) -> None:
        self.out = out
        refuse_occupied(out, resume)
        refuse_other_kinds(out, files=(SETTING, ROWS), folders=("rows", "runs"))
        if holds_anything(out):
            self._check(setting)
            self._remove_damaged()
        else:
            write_json(out / SETTING, setting)
        described = {"setting": setting, **stamp}
        self._stamp = {
            name: json.dumps(described.get(name, {}), sort_keys=True)
            for name in ("setting", "machine", "versions", "provenance")
        }

    def _check(self, setting: dict[str, Any]) -> None:
        if not (self.out / SETTING).exists():
            raise ValueError(f"--resume: {self.out} holds no study (there is no {SETTING} in it)")
        # Through JSON and back: tuples become lists, as in the stored setting.
        now = json.loads(json.dumps(setting))
        difference = first_difference(read_json(self.out / SETTING), now)
        if difference:
            raise ValueError(
                f"--resume: {difference}; nothing was overwritten (name another folder)"
            )

    def has(self, name: str) -> bool:
        """Whether the unit or part called `name` is finished."""
        return self._part(name).exists()

    def is_done(self, name: str, parts: Iterable[str] = ()) -> bool:
        """Whether a unit and its intermediate parts are finished."""
        if not self.has(name):
            return False
        for part in parts:
            if not self.has(part):
                warn(f"{self._part(part)} is missing; it is made again")
                return False
        return True

    def put(self, name: str, rows: Iterable[ArmRow]) -> None:
        """Write the rows of `name`, all or none; an existing part is not changed."""
        if self.has(name):
            return
        stamped = [asdict(row) | self._stamp for row in rows]
        write_table(self._part(name), pa.Table.from_pylist(stamped, schema=ROW_SCHEMA))

    def rows(self) -> pa.Table:
        """The rows of all parts so far, in the order of the parts' names.

        Raises:
            Damaged: a part is not what was written; names it.
        """
        tables = [read_table(part, ROW_SCHEMA) for part in self._parts()]
        return pa.concat_tables(tables) if tables else ROW_SCHEMA.empty_table()

    def merge(self) -> pa.Table:
        """Write `rows.parquet` from all parts and return it."""
        rows = self.rows()
        write_table(self.out / ROWS, rows)
        return rows

    def run_folder(self, name: str) -> Path:
        """The folder for the checkpoint of the training run called `name`."""
        return self.out / "runs" / name

    def refuse_gaps(self, folder: Path, parts: Sequence[str], every: int) -> None:
        """Remove the checkpoints of a run if an intermediate part before them is missing.

        The run writes one of `parts` every `every` steps. Without its checkpoint it starts from the
        beginning and writes the missing parts again.
        """
        latest = latest_checkpoint(folder)
        if latest is not None:
            reached = load_checkpoint(latest).step // every
            if not all(self.has(part) for part in parts[:reached]):
                remove_checkpoints(folder)

    def _remove_damaged(self) -> None:
        for part in self._parts():
            try:
                read_table(part, ROW_SCHEMA)
            except Damaged as error:
                warn(f"{error}; it is made again")
                part.unlink()

    def _parts(self) -> list[Path]:
        # A broken link is not a part, and is replaced when the part is written.
        return sorted(part for part in (self.out / "rows").glob("*.parquet") if part.exists())

    def _part(self, name: str) -> Path:
        return self.out / "rows" / f"{name}.parquet"


def step_parts(name: str, steps: int, every: int) -> list[str]:
    """The names of the parts that a unit writes every `every` steps, except at the last step.

    Example:
        >>> step_parts("copy-sigmoid-seed100", steps=10, every=5)
        ['copy-sigmoid-seed100-step000005']
    """
    return [f"{name}-step{done:06d}" for done in range(every, steps, every)]


def write_table(path: Path, table: pa.Table) -> None:
    """Write `table` as Parquet, whole or not at all."""
    write_whole(path, parquet_bytes(table, path.name))


def first_difference(before: Any, now: Any, where: str = "") -> str | None:
    """A message on the first field that differs between two nested settings; None if none does.

    Example:
        >>> first_difference({"text": {"steps": 3}}, {"text": {"steps": 4}})
        'text.steps was 3 when this folder was started and is 4 now'
    """
    if before == now:
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        # Plain values first, because they are the options that the user gave.
        for key in sorted(before.keys() | now.keys(), key=lambda k: (type(now.get(k)) is dict, k)):
            name = f"{where}.{key}" if where else key
            difference = first_difference(before.get(key), now.get(key), name)
            if difference:
                return difference
    if where.endswith("sha256"):
        return "the text was another one when this folder was started"
    was, is_now = json.dumps(before), json.dumps(now)
    return f"{where} was {was} when this folder was started and is {is_now} now"
