"""Fixtures for building the CPU kernel: a small kernel, and replacement compilers."""

import pytest

from sigmoid_attention.attention.impl.cpu import library
from tests.support.cpu.building import SMALL, STRUCT_SIZE, CountingCompiler


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing of the environment's, and nothing that this process has decided before."""
    for name in ("CXX", "SIGMOID_ATTENTION_CXXFLAGS", "SIGMOID_ATTENTION_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SIGMOID_ATTENTION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "_choices", {})
    return tmp_path / "cache"


@pytest.fixture
def kernel(tmp_path):
    folder = tmp_path / "kernel"
    folder.mkdir()
    (folder / "kernel.cpp").write_text(SMALL)
    (folder / "size.h").write_text(f"#define SIZE {STRUCT_SIZE}\n")
    return folder


@pytest.fixture
def counting(tmp_path, monkeypatch):
    folder = tmp_path / "counting"
    folder.mkdir()
    counting_compiler = CountingCompiler(folder)
    monkeypatch.setenv("CXX", str(counting_compiler.program))
    return counting_compiler


@pytest.fixture
def no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing here"))
