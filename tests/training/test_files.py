"""Files are written completely or not at all, also on a full disk."""

import errno
import os

import pytest

from sigmoid_attention.training.files import Damaged, read_json, write_json, write_whole


def test_the_new_content_replaces_the_old(tmp_path):
    path = tmp_path / "made" / "file"
    write_whole(path, b"old")
    write_whole(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    # The temporary file's name leads to the device that is always full.
    (tmp_path / "file.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"^could not write .*file \(No space left") as caught:
        write_whole(path, b"new" * 10_000)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(OSError, match="could not write"):
        write_whole(tmp_path / "file" / "inside", b"x")


def test_an_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(_descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []


CONTENT = {"steps": 3, "losses": [0.1, float("inf")], "name": "a"}


def test_json_comes_back_without_its_checksum(tmp_path):
    path = tmp_path / "setting.json"
    write_json(path, CONTENT | {"pair": (1, 2)})
    assert read_json(path) == CONTENT | {"pair": [1, 2]}


def test_json_of_an_earlier_version_has_none(tmp_path):
    (tmp_path / "setting.json").write_text('{"steps": 3}')
    assert read_json(tmp_path / "setting.json") == {"steps": 3}


def test_no_flipped_bit_changes_what_json_says(tmp_path):
    path = tmp_path / "setting.json"
    write_json(path, CONTENT)
    data, seen = path.read_bytes(), 0
    for place in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            content = read_json(path)
        except Damaged as error:
            assert str(path) in str(error)
            seen += 1
        else:
            # White space, or the checksum's own name.
            assert {name: content.get(name) for name in CONTENT} == CONTENT
    assert seen > 0.7 * len(data) * 8


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "null", "", "{", "[" * 100_000, '{"a": ' * 100_000, "\xff", '{"n": ' + "9" * 5000],
    ids=["list", "number", "null", "empty", "cut", "deep", "deep objects", "bytes", "huge number"],
)
def test_json_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "curve.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(Damaged, match=r"curve\.json is damaged") as caught:
        read_json(tmp_path / "curve.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_an_endless_file_is_named_and_not_read(tmp_path, kind):
    path = tmp_path / "setting.json"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/full")
    with pytest.raises(Damaged, match=r"setting\.json is damaged \(it is no file\)"):
        read_json(path)
    write_json(path, {"steps": 3})
    assert read_json(path) == {"steps": 3} and not path.is_symlink()


@pytest.mark.parametrize("name", ["shb256", "sha25", "SHA256"])
def test_a_checksum_with_a_damaged_name_is_named(tmp_path, name):
    path = tmp_path / "setting.json"
    write_json(path, {"steps": 3})
    path.write_text(path.read_text().replace("sha256", name))
    with pytest.raises(Damaged, match=r"setting\.json is damaged \(its checksum"):
        read_json(path)
