"""The folder of a study: complete parts, no overwriting, and errors for other settings."""

import json
import os

import pytest

from sigmoid_attention.lab.rows import ROW_SCHEMA, ArmRow
from sigmoid_attention.lab.store import Store, first_difference, step_parts

SETTING = {"text": {"steps": 7, "lengths": (5, 10)}, "seeds": 3}


def row(seed, value=1.5):
    return ArmRow("sigmoid", "train_loss", value, "nats/token", seed=seed, step=3)


def test_parts_are_rows_with_where_they_came_from(tmp_path):
    store = Store(tmp_path / "out", SETTING, {"machine": {"cores": 2}}, resume=False)
    store.put("b", [row(1)])
    store.put("a", [row(0), row(0, 2.5)])
    table = store.merge()
    assert table.schema == ROW_SCHEMA
    assert table["seed"].to_pylist() == [0, 0, 1]
    assert json.loads(table["setting"][0].as_py())["text"]["steps"] == 7
    assert json.loads(table["machine"][0].as_py()) == {"cores": 2}
    assert json.loads(table["versions"][0].as_py()) == {}
    assert table["length"].to_pylist() == [-1, -1, -1]


def test_a_finished_part_is_never_changed(tmp_path):
    store = Store(tmp_path, SETTING, {}, resume=False)
    store.put("a", [row(0)])
    before = (tmp_path / "rows" / "a.parquet").read_bytes()
    store.put("a", [row(0, 99.0)])
    assert (tmp_path / "rows" / "a.parquet").read_bytes() == before


def test_resuming_the_same_setting_sees_what_is_there(tmp_path):
    Store(tmp_path, SETTING, {}, resume=False).put("a", [row(0)])
    store = Store(tmp_path, SETTING, {}, resume=True)
    assert store.has("a") and not store.has("b")


def test_resuming_into_nothing_starts(tmp_path):
    Store(tmp_path / "new", SETTING, {}, resume=True)
    assert json.loads((tmp_path / "new" / "setting.json").read_text())["seeds"] == 3


def test_an_unfinished_write_is_not_a_part(tmp_path):
    store = Store(tmp_path, SETTING, {}, resume=False)
    store.put("a", [row(0)])
    (tmp_path / "rows" / "b.parquet.tmp").write_bytes(b"half of it")
    assert not store.has("b") and store.rows().num_rows == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_named_and_leaves_what_was_written(tmp_path):
    store = Store(tmp_path, SETTING, {}, resume=False)
    store.put("a", [row(0)])
    store.merge()
    before = (tmp_path / "rows.parquet").read_bytes()
    # The temporary files' names lead to the device that is always full.
    for place in ("rows/b.parquet", "rows.parquet"):
        (tmp_path / f"{place}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"^could not write .*b\.parquet \(No space left"):
        store.put("b", [row(1)])
    assert not store.has("b") and os.listdir(tmp_path / "rows") == ["a.parquet"]
    with pytest.raises(OSError, match=r"^could not write .*rows\.parquet \(No space left"):
        store.merge()
    assert (tmp_path / "rows.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"text": {"steps": 8, "lengths": (5, 10)}, "seeds": 3}, r"text\.steps was 7 .* is 8 now"),
        ({"text": {"steps": 7, "lengths": (5,)}, "seeds": 3}, r"text\.lengths was \[5, 10\]"),
        ({"text": SETTING["text"]}, r"seeds was 3 .* is null now"),
        ({**SETTING, "device": "cpu"}, r"device was null .* is \"cpu\" now"),
    ],
)
def test_another_setting_is_refused_by_its_first_difference(tmp_path, changed, sentence):
    Store(tmp_path, SETTING, {}, resume=False)
    with pytest.raises(ValueError, match=sentence):
        Store(tmp_path, changed, {}, resume=True)


def test_a_preset_is_named_before_parts_of_the_setting():
    before, now = {"copying": {"steps": 1}, "preset": "a"}, {"copying": {"steps": 2}, "preset": "b"}
    assert first_difference(before, now) == (
        'preset was "a" when this folder was started and is "b" now'
    )


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="nothing was overwritten"):
        Store(tmp_path, SETTING, {}, resume=False)
    with pytest.raises(ValueError, match="holds no study"):
        Store(tmp_path, SETTING, {}, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        Store(tmp_path / "out", SETTING, {}, resume=True)


def test_a_damaged_part_is_named_and_its_unit_is_not_done(tmp_path, capsys):
    store = Store(tmp_path, SETTING, {}, resume=False)
    store.put("a", [row(0)])
    store.put("b", [row(1)])
    part = tmp_path / "rows" / "a.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 4
    part.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.parquet is damaged"):
        store.rows()
    resumed = Store(tmp_path, SETTING, {}, resume=True)
    message = capsys.readouterr().err
    assert (
        message == f"{part} is damaged (its checksum does not fit its content); it is made again\n"
    )
    assert not resumed.is_done("a") and resumed.is_done("b")
    resumed.put("a", [row(0)])
    assert resumed.rows()["seed"].to_pylist() == [0, 1]


def test_a_unit_whose_part_is_missing_is_not_done(tmp_path, capsys):
    store = Store(tmp_path, SETTING, {}, resume=False)
    names = step_parts("copy", steps=15, every=5)
    assert names == ["copy-step000005", "copy-step000010"]
    for name in (*names, "copy"):
        store.put(name, [row(0)])
    assert store.is_done("copy", names)
    (tmp_path / "rows" / "copy-step000005.parquet").unlink()
    assert not store.is_done("copy", names)
    assert "copy-step000005.parquet is missing; it is made again" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pipe", "endless", "nowhere"])
def test_a_pipe_or_folder_is_no_part(tmp_path, kind):
    store = Store(tmp_path, SETTING, {}, resume=False)
    store.put("a", [row(0)])
    part = tmp_path / "rows" / "a.parquet"
    part.unlink()
    if kind == "pipe":
        os.mkfifo(part)
    else:
        part.symlink_to("/dev/full" if kind == "endless" else tmp_path / "nowhere")
    resumed = Store(tmp_path, SETTING, {}, resume=True)
    assert not resumed.is_done("a") and resumed.rows().num_rows == 0
    resumed.put("a", [row(1)])
    assert resumed.rows()["seed"].to_pylist() == [1]


@pytest.mark.parametrize("content", ["[]", "{", "[" * 9999], ids=["list", "cut", "deep"])
def test_a_damaged_setting_is_named(tmp_path, content):
    Store(tmp_path, SETTING, {}, resume=False)
    (tmp_path / "setting.json").write_text(content)
    with pytest.raises(ValueError, match=r"setting\.json is damaged"):
        Store(tmp_path, SETTING, {}, resume=True)


def test_a_change_of_the_text_is_named():
    message = first_difference({"text_sha256": "5d"}, {"text_sha256": "78"})
    assert message == "the text was another one when this folder was started"


def test_equal_settings_do_not_differ():
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) is None
