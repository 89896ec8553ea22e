"""Files appear whole or not at all, on a disk that is really full too."""

import errno
import os

import pytest

from sigmoid_attention.training.files import write_whole


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
