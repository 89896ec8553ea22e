"""One process writes to a folder; a second one gets an error that names the first."""

import os
import signal
import subprocess
import sys

import pytest

from sigmoid_attention.training.files import LOCK
from sigmoid_attention.training.lock import only_writer

HOLDS = """
import sys, time
from pathlib import Path
from sigmoid_attention.training.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in\n"
        yield process
        process.kill()


def test_another_process_is_kept_out_until_the_first_is_dead(tmp_path, holder):
    folder = tmp_path / "run"
    with (
        pytest.raises(ValueError, match=rf"another process \(pid {holder.pid}\) writes to .*run"),
        only_writer(folder),
    ):
        raise AssertionError("this is not reached")
    assert (folder / LOCK).exists(), "it is still the other's"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with only_writer(folder):
        (folder / "kept").touch()
    assert os.listdir(folder) == ["kept"]


def test_empty_folders_that_the_lock_made_are_removed(tmp_path):
    with pytest.raises(ValueError, match="refused"), only_writer(tmp_path / "a" / "b"):
        raise ValueError("refused")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"could not write .*file/out \(Not a directory\)"),
        only_writer(tmp_path / "file" / "out"),
    ):
        raise AssertionError("this is not reached")


def test_a_file_in_its_place_is_for_the_command_to_refuse(tmp_path):
    (tmp_path / "out").write_text("mine")
    with only_writer(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_or_link_in_the_place_of_the_lock_is_named_and_not_followed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / LOCK).mkdir()
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / LOCK).symlink_to(tmp_path / "other")
    for name in ("folder", "link"):
        with (
            pytest.raises(OSError, match=rf"could not write .*{name}/\{LOCK} \("),
            only_writer(tmp_path / name),
        ):
            pass
    assert not (tmp_path / "other").exists()
