"""The record of the machine and its memory."""

import json
import re
import shutil
import subprocess

import pytest
import torch

from sigmoid_attention.training import environment as env


@pytest.mark.parametrize("name", ["gpu", "cpu2", "", "tpu:0"])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(ValueError, match="device must be one of auto, cpu, cuda"):
        env.resolve_device(name)


def test_a_missing_gpu_is_refused_and_auto_does_without(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert env.resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="finds no GPU"):
        env.resolve_device("cuda:1")


def test_a_row_can_carry_the_machine_and_it_names_no_host():
    machine = env.describe_machine(torch.device("cpu"))
    assert json.loads(json.dumps(machine)) == machine
    assert machine["cores"] >= 1 and machine["processor"]
    assert "node" not in machine


def test_peak_memory_is_of_this_process_and_never_falls():
    before = env.peak_process_bytes()
    held = torch.ones(20_000_000)
    assert env.peak_process_bytes() >= before > 10_000_000
    assert env.peak_process_bytes() >= held.numel() * 4


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_commit_is_that_of_a_file_which_git_follows(tmp_path, monkeypatch):
    source = tmp_path / "environment.py"
    source.write_text("one")
    monkeypatch.setattr(env, "__file__", str(source))

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True)

    assert env.source_commit() == ""
    git("init")
    (tmp_path / "other.py").write_text("another project, in which this is installed")
    git("add", "other.py")
    git("commit", "-m", "other")
    assert env.source_commit() == ""
    git("add", "environment.py")
    git("commit", "-m", "this")
    assert re.fullmatch("[0-9a-f]{12}", env.source_commit())
    source.write_text("two")
    assert re.fullmatch("[0-9a-f]{12}-dirty", env.source_commit())
    monkeypatch.setenv("PATH", "")
    assert env.source_commit() == ""
