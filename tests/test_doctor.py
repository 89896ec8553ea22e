"""The examination: complete here, and of use where something is missing."""

import importlib.util
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import torch

from sigmoid_attention import doctor
from sigmoid_attention.attention.api import IMPLEMENTATIONS
from sigmoid_attention.cli import main


def findings():
    return {finding.topic: finding for finding in doctor.examine()}


def test_everything_is_looked_at():
    found = findings()
    topics = {"python", "torch", "lab extra", "cpu", "c++ compiler", "triton", "disk"}
    assert topics <= found.keys()
    assert {f"impl={name!r}" for name in IMPLEMENTATIONS} <= found.keys()
    assert {"data stdlib", "data shakespeare"} <= found.keys()
    assert not found["lab extra"].advice and "MB" in found["data stdlib"].found


def test_the_command_prints_a_line_for_each_and_advice_below(capsys, monkeypatch):
    monkeypatch.setattr(
        doctor, "examine", lambda: [doctor.Finding("a", "fine"), doctor.Finding("bb", "no", "do")]
    )
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "  a   fine\n! bb  no\n      -> do\n"


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name)
    )
    found = findings()
    assert found["lab extra"].found == "lacks pyarrow"
    assert "pip install 'sigmoid-attention[lab]'" in found["lab extra"].advice
    assert "not looked at" in found["data stdlib" if "data stdlib" in found else "data"].found


def test_it_needs_nothing_of_the_lab():
    script = """
import sys
from sigmoid_attention.doctor import lab_packages
for name in lab_packages():
    sys.modules[name] = None
from sigmoid_attention import doctor
doctor.missing_lab = lab_packages
from sigmoid_attention.cli import main
sys.exit(main(["doctor"]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'sigmoid-attention[lab]'" in done.stdout


def test_no_compiler_and_no_room(monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9, 8, 1))
    found = findings()
    assert "g++" in found["c++ compiler"].advice
    assert "make room" in found["disk"].advice


@pytest.mark.parametrize("built_for", [None, "12.8"])
def test_no_gpu(monkeypatch, built_for):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    assert bool(findings()["gpu"].advice) == (built_for is not None)


def test_an_implementation_that_computes_something_else_is_reported(monkeypatch):
    real = doctor.sigmoid_attention

    def wrong(*arguments, impl, **named):
        return real(*arguments, impl=impl, **named) + (impl == "tiled")

    monkeypatch.setattr(doctor, "sigmoid_attention", wrong)
    found = findings()
    assert "report this machine" in found["impl='tiled'"].advice
    assert not found["impl='reference'"].advice
