"""A process loads the CPU kernel once, and logs one line if no kernel is available."""

import functools
import logging
import os
import threading

import pytest
import torch

from sigmoid_attention.attention.impl.cpu import cache, compiler, library
from sigmoid_attention.attention.impl.cpu.compiler import PATHS, runs
from tests.support.cpu.building import STRUCT_SIZE, output, start

BEST = next(path for path in PATHS if runs(path))


@pytest.fixture(autouse=True)
def small_kernel(kernel, monkeypatch):
    for name in ("build", "rebuild"):
        monkeypatch.setattr(library, name, functools.partial(getattr(cache, name), kernel=kernel))


@pytest.fixture
def lines(caplog):
    """The lines in the log that a user sees by default."""
    return lambda: [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    ]


def test_the_best_path_is_loaded_once(counting, lines):
    first = library.choose(STRUCT_SIZE)
    assert (first.path, first.origin) == (BEST, "compiled")
    assert first.library.sigmoid_attention_abi() == STRUCT_SIZE
    assert library.library(STRUCT_SIZE) is first.library is library.library(STRUCT_SIZE)
    assert len(counting.started()) == 1 and lines() == []


def test_threads_that_come_together_load_once(counting):
    together = threading.Barrier(4)
    libraries = []

    def come():
        together.wait()
        libraries.append(library.library(STRUCT_SIZE))

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(libraries) == 4 and len(set(map(id, libraries))) == 1 and libraries[0] is not None
    assert len(counting.started()) == 1


@pytest.mark.parametrize("path", [path for path in PATHS if runs(path)])
def test_a_forced_path(monkeypatch, path):
    unforced = library.library(STRUCT_SIZE)
    monkeypatch.setenv("SIGMOID_ATTENTION_CPU", path)
    forced = library.choose(STRUCT_SIZE)
    assert forced.path == path and f"kernel-{path}-" in forced.library._name
    monkeypatch.delenv("SIGMOID_ATTENTION_CPU")
    assert library.library(STRUCT_SIZE) is unforced


@pytest.mark.parametrize("name", ["AVX2", "sse", "none"])
def test_an_unknown_path(monkeypatch, name):
    monkeypatch.setenv("SIGMOID_ATTENTION_CPU", name)
    with pytest.raises(
        ValueError,
        match=rf"^SIGMOID_ATTENTION_CPU must be one of {', '.join(PATHS)} or off, got '{name}'$",
    ):
        library.library(STRUCT_SIZE)


def test_a_path_that_this_processor_cannot_run(monkeypatch):
    monkeypatch.setattr(library, "runs", lambda path: path == "generic")
    monkeypatch.setenv("SIGMOID_ATTENTION_CPU", "avx512")
    with pytest.raises(ValueError, match="must be one of generic or off on this processor, got"):
        library.library(STRUCT_SIZE)


def test_off_is_silent(monkeypatch, counting, lines):
    monkeypatch.setenv("SIGMOID_ATTENTION_CPU", "off")
    assert library.library(STRUCT_SIZE) is None
    assert not counting.started() and lines() == []


def test_no_compiler_is_one_line(no_compiler, lines):
    assert [library.library(STRUCT_SIZE) for _ in range(3)] == [None] * 3
    (line,) = lines()
    assert line.startswith("no C++ compiler was found, so attention on the CPU runs by tiles")
    assert line.endswith("install g++ or clang++")


def test_a_compile_error_is_one_line(kernel, lines):
    (kernel / "kernel.cpp").write_text("int a = b;\nint c = d;\n")
    assert [library.library(STRUCT_SIZE) for _ in range(3)] == [None] * 3
    (line,) = lines()
    assert "kernel.cpp:1" in line and "runs by tiles in PyTorch" in line and "\n" not in line


def test_a_compiler_without_the_newest_instructions_builds_the_next_path(
    kernel, monkeypatch, lines
):
    monkeypatch.setattr(library, "PATHS", ("avx2", "generic"))
    source = (kernel / "kernel.cpp").read_text()
    (kernel / "kernel.cpp").write_text(f"#ifdef __AVX2__\n#error too new\n#endif\n{source}")
    chosen = library.choose(STRUCT_SIZE)
    assert chosen.path == "generic" and chosen.library is not None
    (line,) = lines()
    assert line.startswith("the CPU kernel falls back to generic: ") and "too new" in line


def test_a_library_that_does_not_load_is_compiled_anew_once(kernel, counting, lines):
    (kernel / "kernel.cpp").write_text('extern "C" long missing(); long all = missing();\n')
    assert library.library(STRUCT_SIZE) is None
    assert len(counting.started()) == 2 * sum(map(runs, PATHS))
    (line,) = lines()
    assert "does not load" in line and "missing" in line


def test_a_prebuilt_library_that_does_not_load_is_replaced(kernel, tmp_path, monkeypatch, lines):
    shipped = tmp_path / "prebuilt" / compiler.library_name(BEST, None, kernel)
    shipped.parent.mkdir()
    shipped.write_bytes(b"for another system")
    compiler.seal(shipped)
    monkeypatch.setattr(
        library, "build", functools.partial(cache.build, kernel=kernel, prebuilt=shipped.parent)
    )
    chosen = library.choose(STRUCT_SIZE)
    assert chosen.origin == "compiled" and chosen.library is not None and lines() == []
    assert shipped.exists()


def test_a_library_for_other_arguments_is_compiled_anew_once(kernel, counting, own_cache):
    with pytest.raises(RuntimeError, match=f"{STRUCT_SIZE} bytes of them, got {STRUCT_SIZE + 8}$"):
        library.library(STRUCT_SIZE + 8)
    assert len(counting.started()) == 2
    assert not list(own_cache.glob("*.so"))


def test_a_cached_library_for_other_arguments_heals(kernel, counting):
    stale = cache.build(BEST, kernel).file
    (kernel / "size.h").write_text(f"#define SIZE {STRUCT_SIZE + 8}\n")
    other = cache.build(BEST, kernel).file
    stale.write_bytes(other.read_bytes())
    stale.with_name(f"{stale.name}.sha256").write_bytes(
        other.with_name(f"{other.name}.sha256").read_bytes()
    )
    (kernel / "size.h").write_text(f"#define SIZE {STRUCT_SIZE}\n")
    assert library.library(STRUCT_SIZE).sigmoid_attention_abi() == STRUCT_SIZE
    assert len(counting.started()) == 3
    assert cache.build(BEST, kernel).origin == "compiled"


THREADS = """
import functools, os, pathlib
import torch
from sigmoid_attention.attention.impl.cpu import cache, library
library.build = functools.partial(cache.build, kernel=pathlib.Path(os.environ["KERNEL"]))
loaded = library.library(48)
torch.set_num_threads(3)
print(loaded.threads(), *{line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line})
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="only Linux has /proc/self/maps")
def test_the_kernel_shares_the_threads_of_torch(kernel):
    threads, *pools = output(start(THREADS, KERNEL=kernel)).split()
    assert len(pools) == 1 and os.path.dirname(torch.__file__) in pools[0]
    assert threads == "3"
