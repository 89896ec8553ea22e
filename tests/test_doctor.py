"""The report of `doctor`: complete on this machine, and useful if a part is missing."""

import ctypes
import importlib.util
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from sigmoid_attention import companions, doctor, extras
from sigmoid_attention.attention.dispatch import BACKENDS
from sigmoid_attention.attention.impl.cpu import library
from sigmoid_attention.cli import main


def diagnoses():
    return {diagnosis.topic: diagnosis for diagnosis in doctor.examine()}


def test_doctor_examines_every_topic():
    by_topic = diagnoses()
    topics = {"python", "torch", "numpy", "lab extra", "torchvision", "timm", "transformers"}
    topics |= {"accelerate", "cpu", "c++ compiler", "cpu kernel", "triton", "disk"}
    assert topics <= by_topic.keys()
    assert {f"impl={name!r}" for name in BACKENDS} <= by_topic.keys()
    assert {"data stdlib", "data shakespeare"} <= by_topic.keys()
    assert not by_topic["lab extra"].advice and "MB" in by_topic["data stdlib"].found


def test_the_command_prints_a_line_for_each_and_advice_below(capsys, monkeypatch):
    monkeypatch.setattr(
        doctor,
        "examine",
        lambda: [doctor.Diagnosis("a", "fine"), doctor.Diagnosis("bb", "no", "do")],
    )
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "  a   fine\n! bb  no\n      -> do\n"


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "pyarrow" else find(name))
    by_topic = diagnoses()
    assert by_topic["lab extra"].found == "lacks pyarrow"
    assert "pip install '.[lab]'" in by_topic["lab extra"].advice
    assert "not looked at" in by_topic["data stdlib" if "data stdlib" in by_topic else "data"].found


def test_it_needs_nothing_of_the_lab_and_no_distribution():
    """Run from a source tree, as a GPU image does, there is no metadata of this distribution."""
    script = """
import importlib.metadata, sys
from sigmoid_attention import doctor, extras
for name in extras.LAB:
    sys.modules[name] = None
def absent(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.distribution = absent
doctor._companions = lambda: []
from sigmoid_attention.cli import main
sys.exit(main(["doctor"]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "pip install '.[lab]'" in done.stdout
    assert "numpy" in done.stdout and "do without it" in done.stdout


def companion(monkeypatch, *, versions, problems, mended=False):
    """The diagnoses about the packages that integrations are for, where they are such."""
    find = importlib.util.find_spec
    monkeypatch.setattr(companions, "_version", versions.get)
    monkeypatch.setattr(companions, "_problems", lambda modules: problems)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: (mended or None) if name == companions.MEND else find(name),
    )
    companions.examined.cache_clear()
    by_topic = {diagnosis.topic: diagnosis for diagnosis in doctor._companions()}
    companions.examined.cache_clear()
    return by_topic


HERE = {"torchvision": "0.28.0", "timm": "1.0.31", "transformers": "5.24.0", "accelerate": "1.15.0"}
NO_OPERATOR = "RuntimeError: operator torchvision::nms does not exist"


def test_companions_that_import_are_named_with_their_versions(monkeypatch):
    by_topic = companion(monkeypatch, versions=HERE, problems={})
    assert {name: diagnosis.found for name, diagnosis in by_topic.items()} == HERE
    assert not any(diagnosis.advice for diagnosis in by_topic.values())


def test_companions_that_are_not_installed_are_no_fault(monkeypatch):
    by_topic = companion(monkeypatch, versions={}, problems={})
    assert not any(diagnosis.advice for diagnosis in by_topic.values())
    assert "pip install '.[transformers]'" in by_topic["transformers"].found
    assert "pip install '.[timm]'" in by_topic["timm"].found


def test_a_torchvision_for_cuda_gets_advice_with_a_command(monkeypatch):
    broken = dict.fromkeys(("torchvision", "timm", "transformers"), NO_OPERATOR)
    by_topic = companion(monkeypatch, versions=HERE, problems=broken)
    assert NO_OPERATOR in by_topic["torchvision"].found
    for typed in ("make env", "pip install --force-reinstall --no-deps --index-url"):
        assert typed in by_topic["torchvision"].advice
    assert "see there" in by_topic["timm"].advice and "see there" in by_topic["transformers"].advice
    assert not by_topic["accelerate"].advice
    mended = companion(monkeypatch, versions=HERE, problems={}, mended=True)
    assert "imports by the mend" in mended["torchvision"].found
    assert not mended["torchvision"].advice


def test_other_reasons_and_old_versions_have_their_own_remedy(monkeypatch):
    by_topic = companion(
        monkeypatch,
        versions={**HERE, "transformers": "4.57.1", "timm": "1.0.22"},
        problems={"accelerate": "ImportError: half of it is missing"},
    )
    assert "pip install --force-reinstall --no-deps accelerate" in by_topic["accelerate"].advice
    assert by_topic["transformers"].found == "4.57.1, older than 5.17"
    assert "pip install '.[transformers]'" in by_topic["transformers"].advice
    assert by_topic["timm"].found == "1.0.22, older than 1.0.23"


def test_the_oldest_versions_are_those_that_the_project_declares():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    for name, (_, oldest, _) in companions._COMPANIONS.items():
        assert not oldest or f'"{name}>={oldest}"' in text


def test_a_real_import_is_tried_in_a_process_of_its_own():
    modules = {"fine": "json", "absent": "no_such_module", "part": "json.nothing"}
    problems = companions._problems(modules)
    assert problems["fine"] == ""
    assert problems["absent"] == "ModuleNotFoundError: No module named 'no_such_module'"


def test_the_diagnoses_as_json(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Diagnosis("a", "fine", "do")])
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"topic": "a", "found": "fine", "advice": "do"}]


def test_a_refusal_is_about_this_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    by_topic = {diagnosis.topic: diagnosis.found for diagnosis in doctor._implementations()}
    assert "is on cpu, the Hopper kernels need" in by_topic["impl='gluon'"]
    assert "float32" in by_topic["impl='cpu'"] and "runs on the cpu" in by_topic["impl='cpu'"]


@pytest.fixture
def undecided(monkeypatch, tmp_path):
    """A process that has not chosen a kernel yet, and an empty cache."""
    monkeypatch.setattr(library, "_choices", {})
    monkeypatch.setenv("SIGMOID_ATTENTION_CACHE", str(tmp_path))
    monkeypatch.delenv("SIGMOID_ATTENTION_CPU", raising=False)


@pytest.mark.slow
def test_the_kernel_is_named_by_its_path_and_origin(monkeypatch, undecided):
    monkeypatch.setenv("SIGMOID_ATTENTION_CPU", "generic")
    kernels = [doctor._kernel()]
    monkeypatch.setattr(library, "_choices", {})
    kernels.append(doctor._kernel())
    assert [kernel.found for kernel in kernels] == [
        "generic, compiled just now",
        "generic, compiled earlier",
    ]
    assert not kernels[0].advice and not kernels[1].advice


@pytest.mark.parametrize(
    ("name", "value", "description", "advice"),
    [
        ("SIGMOID_ATTENTION_CPU", "off", "none; switched off", "unset it"),
        ("SIGMOID_ATTENTION_CPU", "sse", "none", "must be one of avx512_bf16,"),
        ("CXX", "/nowhere/g++", "none; CXX names /nowhere/g++, which", "install g++ or clang++"),
        ("CXX", "/bin/false", "none; the C++ compiler /bin/false failed", "name another in CXX"),
    ],
)
def test_a_missing_kernel_is_explained(monkeypatch, undecided, name, value, description, advice):
    monkeypatch.setenv(name, value)
    kernel = doctor._kernel()
    assert kernel.found.startswith(description) and advice in kernel.advice


def test_a_kernel_below_the_best_is_explained(monkeypatch):
    fallback = library.Choice(ctypes.CDLL(None), "avx2", "cached", "g++ failed: x", "a newer g++")
    monkeypatch.setattr(doctor, "decision", lambda: fallback)
    assert doctor._kernel() == doctor.Diagnosis(
        "cpu kernel", "avx2, compiled earlier; g++ failed: x", "a newer g++"
    )


@pytest.mark.slow
def test_no_compiler_and_a_full_disk(monkeypatch, undecided):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9, 8, 1))
    by_topic = diagnoses()
    assert "g++" in by_topic["c++ compiler"].advice
    assert "install g++ or clang++" in by_topic["cpu kernel"].advice
    assert "make room" in by_topic["disk"].advice


@pytest.mark.slow
@pytest.mark.parametrize("built_for", [None, "12.8"])
def test_no_gpu(monkeypatch, built_for):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    assert bool(diagnoses()["gpu"].advice) == (built_for is not None)


def test_an_implementation_that_computes_something_else_is_reported(monkeypatch):
    real = doctor.sigmoid_attention

    def wrong(*arguments, impl, **named):
        return real(*arguments, impl=impl, **named) + (impl == "tiled")

    monkeypatch.setattr(doctor, "sigmoid_attention", wrong)
    by_topic = diagnoses()
    assert "report this machine" in by_topic["impl='tiled'"].advice
    assert not by_topic["impl='reference'"].advice


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError, ValueError])
def test_an_implementation_that_does_not_run_here_says_why(monkeypatch, error):
    real = doctor.sigmoid_attention

    def refuse(*arguments, impl, **named):
        if impl == "tiled":
            raise error("for a reason")
        return real(*arguments, impl=impl, **named)

    monkeypatch.setattr(doctor, "sigmoid_attention", refuse)
    assert diagnoses()["impl='tiled'"].found == "does not run here: for a reason"
