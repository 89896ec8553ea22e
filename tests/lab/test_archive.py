"""The files of finished tasks: their content, and detection of damage."""

import json
import math

import pyarrow as pa
import pytest

from sigmoid_attention.lab.archive import SCHEMA, Archive, Damaged, encode
from sigmoid_attention.lab.store import parquet_bytes
from sigmoid_attention.lab.study import Row
from tests.support.studies.squares_study import square, task

STAMP = {"machine": {"cores": 2}, "versions": {"torch": "9"}, "provenance": {"claim": "a paper"}}
TASK = task(1, 2)


def encoded(of=TASK, rows=None):
    return encode("squares", of, square(of.setting) if rows is None else rows, 1.5, STAMP)


@pytest.fixture
def archive(tmp_path):
    archive = Archive(tmp_path / "out")
    archive.put(TASK.key, encoded())
    return archive


def test_rows_come_back_as_they_were_measured(archive):
    (measured,) = archive.results([TASK])[TASK.cell, "late"]
    rows = list(square(TASK.setting))
    # Compared as text, as a NaN equals nothing, itself included.
    assert [repr(row) for row in measured.rows] == [repr(row) for row in rows]
    assert math.isnan(measured.rows[-1].n) and measured.rows[-1].replicate == -1


def test_every_row_says_what_it_was_made_with(archive):
    row = archive.table(TASK.key).to_pylist()[-1]
    assert (row["study"], row["cell"], row["part"]) == ("squares", "cell 1", "late")
    assert row["key"] == TASK.key and row["cpu_seconds"] == 1.5
    assert json.loads(row["setting"])["numbers"] == [1, 2]
    assert {name: json.loads(row[name]) for name in STAMP} == STAMP


def test_several_truths_of_a_part_stay_in_order(archive):
    tasks = [task(7, cell="a"), task(8, cell="b"), task(9, cell="a")]
    for each_task in reversed(tasks):
        archive.put(each_task.key, encoded(each_task))
    results = archive.results(tasks)
    assert list(results) == [("a", "late"), ("b", "late")]
    assert [each_task.rows[0].n for each_task in results["a", "late"]] == [7.0, 9.0]


def test_a_task_without_rows_is_finished_too(archive):
    empty = task(5)
    archive.put(empty.key, encoded(empty, rows=[]))
    assert archive.has(empty.key)
    assert list(archive.results([empty])[empty.cell, "late"][0].rows) == []


def test_a_study_with_missing_rows_is_not_finished(archive):
    other = task(3)
    assert archive.has(TASK.key) and not archive.has(other.key)
    assert list(archive.missing([TASK, other])) == [other]
    # As an interrupted write leaves it.
    archive.path(other.key).with_suffix(".parquet.tmp").write_bytes(encoded(other))
    assert not archive.has(other.key)


def flipped(data):
    return data[:30] + bytes([data[30] ^ 1]) + data[31:]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[: len(data) // 2], "magic bytes"),
        (lambda data: b"", "0 bytes"),
        (flipped, ""),
        (lambda data: parquet_bytes(pa.table({"key": ["a"]})), "other columns"),
        (lambda data: encoded(task(2, 1)), "rows of another task"),
    ],
    ids=["cut off", "empty", "a flipped bit", "other columns", "another task"],
)
def test_damage_is_detected_and_named(archive, damage, says):
    path = archive.path(TASK.key)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Damaged, match=f"{TASK.key}.parquet is damaged .*{says}") as caught:
        archive.has(TASK.key)
    assert "\n" not in str(caught.value)
    messages = []
    assert list(archive.missing([TASK], messages.append)) == [TASK]
    assert messages == [str(caught.value)]


def test_no_flipped_byte_makes_another_number(archive):
    """Without checksums a damaged number reads back as another number."""
    path, data = archive.path(TASK.key), encoded()
    seen = 0
    for place in range(4, len(data) // 2, 53):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            (measured,) = archive.results([TASK])[TASK.cell, "late"]
        except Damaged:
            seen += 1
        else:
            assert list(map(repr, measured.rows)) == list(map(repr, square(TASK.setting)))
    assert seen > 10


def test_a_file_that_may_not_be_read_is_no_damage(archive, monkeypatch):
    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(archive.out), "read_bytes", refuse)
    with pytest.raises(PermissionError):
        archive.has(TASK.key)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match=r"out must be a folder, but .*out is a file"):
        Archive(tmp_path / "out")


def test_the_columns_are_those_of_a_row():
    assert {"quantity", "value", "n", "replicate", "step", "converged", "at_box"} < set(
        SCHEMA.names
    )
    assert encoded(rows=[Row("a", 1)]) == encoded(rows=[Row("a", 1.0)])
