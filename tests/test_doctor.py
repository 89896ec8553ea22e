"""The examination: complete here, and of use where something is missing."""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import torch

from sigmoid_attention import doctor
from sigmoid_attention.attention.api import IMPLEMENTATIONS
from sigmoid_attention.attention.cpu import library
from sigmoid_attention.cli import main


def findings():
    return {finding.topic: finding for finding in doctor.examine()}


def test_everything_is_looked_at():
    found = findings()
    topics = {"python", "torch", "lab extra", "cpu", "c++ compiler", "cpu kernel", "triton", "disk"}
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


@pytest.fixture
def undecided(monkeypatch, tmp_path):
    """A process that has not chosen a kernel yet, and an empty cache."""
    monkeypatch.setattr(library, "_choices", {})
    monkeypatch.setenv("SIGMOID_ATTENTION_CACHE", str(tmp_path))
    monkeypatch.delenv("SIGMOID_ATTENTION_CPU", raising=False)


def test_the_kernel_is_named_by_its_path_and_origin(monkeypatch, undecided):
    monkeypatch.setenv("SIGMOID_ATTENTION_CPU", "generic")
    found = [doctor._kernel()]
    monkeypatch.setattr(library, "_choices", {})
    found.append(doctor._kernel())
    assert [kernel.found for kernel in found] == [
        "generic, compiled just now",
        "generic, compiled earlier",
    ]
    assert not found[0].advice and not found[1].advice


@pytest.mark.parametrize(
    ("name", "value", "found", "advice"),
    [
        ("SIGMOID_ATTENTION_CPU", "off", "none; switched off", "unset it"),
        ("SIGMOID_ATTENTION_CPU", "sse", "none", "must be one of avx512_bf16,"),
        ("CXX", "/nowhere/g++", "none; CXX names /nowhere/g++, which", "install g++ or clang++"),
        ("CXX", "/bin/false", "none; the C++ compiler /bin/false failed", "name another in CXX"),
    ],
)
def test_a_missing_kernel_is_explained(monkeypatch, undecided, name, value, found, advice):
    monkeypatch.setenv(name, value)
    kernel = doctor._kernel()
    assert kernel.found.startswith(found) and advice in kernel.advice


def test_a_kernel_below_the_best_is_explained(monkeypatch):
    fallback = library.Choice(ctypes.CDLL(None), "avx2", "cached", "g++ failed: x", "a newer g++")
    monkeypatch.setattr(doctor, "decision", lambda: fallback)
    assert doctor._kernel() == doctor.Finding(
        "cpu kernel", "avx2, compiled earlier; g++ failed: x", "a newer g++"
    )


def test_no_compiler_and_no_room(monkeypatch, undecided):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9, 8, 1))
    found = findings()
    assert "g++" in found["c++ compiler"].advice
    assert "install g++ or clang++" in found["cpu kernel"].advice
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


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError, ValueError])
def test_an_implementation_that_does_not_run_here_says_why(monkeypatch, error):
    real = doctor.sigmoid_attention

    def refuse(*arguments, impl, **named):
        if impl == "tiled":
            raise error("for a reason")
        return real(*arguments, impl=impl, **named)

    monkeypatch.setattr(doctor, "sigmoid_attention", refuse)
    assert findings()["impl='tiled'"].found == "does not run here: for a reason"
