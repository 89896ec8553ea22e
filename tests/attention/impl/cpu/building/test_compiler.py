"""Compilation of the CPU kernel: vector paths, compiler, flags, and the hash in the file name."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest
import torch

from sigmoid_attention.attention.impl.cpu import compiler
from tests.support.cpu.building import output, start

EVERYTHING = {
    "avx2", "fma3", "f16c", "avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_bf16",
}  # fmt: skip


@pytest.fixture
def processor(monkeypatch):
    """A function that makes up what torch says of the processor."""

    def pretend(features):
        capabilities = {name: name in features for name in EVERYTHING}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {**capabilities, "sockets": 1})
        compiler._processor_features.cache_clear()

    yield pretend
    monkeypatch.undo()
    compiler._processor_features.cache_clear()


def runnable():
    return [path for path in compiler.PATHS if compiler.runs(path)]


@pytest.mark.parametrize(
    ("lacks", "expected"),
    [
        (set(), ["avx512_bf16", "avx512", "avx2", "generic"]),
        ({"avx512_bf16"}, ["avx512", "avx2", "generic"]),
        *[({f"avx512_{part}"}, ["avx2", "generic"]) for part in ("f", "bw", "dq", "vl")],
        ({"avx2"}, ["avx512_bf16", "avx512", "generic"]),
        ({"fma3"}, ["generic"]),
        ({"f16c"}, ["generic"]),
        (EVERYTHING, ["generic"]),
    ],
    ids=lambda value: "-".join(sorted(value)) or "nothing",
)
def test_a_path_runs_where_the_processor_has_all_that_its_flags_use(processor, lacks, expected):
    processor(EVERYTHING - lacks)
    assert runnable() == expected


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux has /proc/cpuinfo")
def test_a_torch_that_cannot_tell_is_replaced_by_the_kernel_with_the_same_answer(monkeypatch):
    expected = runnable()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    compiler._processor_features.cache_clear()
    assert runnable() == expected
    monkeypatch.undo()
    compiler._processor_features.cache_clear()


def test_the_paths_of_this_processor_are_printed():
    here = start(
        "import runpy; runpy.run_module('sigmoid_attention.attention.impl.cpu', {}, '__main__')"
    )
    assert output(here).split() == runnable()


@pytest.mark.parametrize("path", compiler.PATHS)
def test_the_flags_of_a_path_define_the_macros_that_the_source_looks_at(path):
    command = compiler.find_compiler().command
    macros = subprocess.run(
        [*command, *compiler.flags(path), "-dM", "-E", "-x", "c++", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    defined = {line.split()[1] for line in macros.splitlines()}
    assert ("__AVX512BF16__" in defined) == (path == "avx512_bf16")
    assert ("__AVX512VL__" in defined) == path.startswith("avx512")
    assert {"__FMA__", "__F16C__", "__AVX2__"} <= defined or path == "generic"
    assert "__FAST_MATH__" not in defined and "__FINITE_MATH_ONLY__" in defined


def test_the_named_compiler_comes_first_with_its_options(counting, monkeypatch):
    monkeypatch.setenv("CXX", f"'{counting.program}' -g0")
    chosen = compiler.find_compiler()
    assert chosen.command == (str(counting.program), "-g0")
    assert str(counting.program) in chosen.identity


@pytest.mark.parametrize("present", [("c++", "g++", "clang++"), ("g++", "clang++"), ("clang++",)])
def test_the_first_of_three_compilers_on_the_path_is_the_default(tmp_path, monkeypatch, present):
    folder = tmp_path / "not-clang"
    folder.mkdir()
    for name in present:
        (folder / name).write_text(f"#!/bin/sh\necho {name} 1.0\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    chosen = compiler.find_compiler()
    assert chosen.command == (str(folder / present[0]),)
    assert bool(chosen.openmp) == (present[0] != "clang++")


def test_no_compiler(no_compiler, monkeypatch):
    with pytest.raises(compiler.NoCompiler, match=r"^no C\+\+ compiler was found$"):
        compiler.find_compiler()
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(compiler.NoCompiler, match=r"^CXX names /nowhere/g\+\+, which is not"):
        compiler.find_compiler()


def test_a_compiler_that_does_not_start(tmp_path, monkeypatch):
    program = tmp_path / "g++"
    program.write_text("no program at all")
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    with pytest.raises(compiler.CannotBuild, match=r"does not start: Exec format error$"):
        compiler.find_compiler()


def names(kernel, chosen, path="generic"):
    return {compiler.library_name(path, candidate, kernel) for candidate in (chosen, None)}


def test_the_name_changes_with_all_that_goes_into_the_library(kernel, monkeypatch):
    chosen = compiler.find_compiler()
    seen = names(kernel, chosen)
    assert names(kernel, chosen) == seen and len(seen) == 2

    def new(more):
        assert not more & seen
        seen.update(more)

    new(names(kernel, chosen, "avx2"))
    new({compiler.library_name("generic", compiler.Compiler(("g++",), "newer"), kernel)})
    monkeypatch.setenv("SIGMOID_ATTENTION_CXXFLAGS", "-g")
    new(names(kernel, chosen))
    monkeypatch.delenv("SIGMOID_ATTENTION_CXXFLAGS")
    (kernel / "size.h").write_text("#define SIZE 56\n")
    new(names(kernel, chosen))
    (kernel / "size.h").rename(kernel / "sizes.h")
    new(names(kernel, chosen))
    (kernel / "rooms").mkdir()
    (kernel / "rooms" / "one.h").write_text("")
    new(names(kernel, chosen))


def test_flags_of_the_user_come_last(kernel, tmp_path, monkeypatch):
    (kernel / "kernel.cpp").write_text(
        '#ifndef __OPTIMIZE__\nextern "C" long level() { return LEVEL; }\n#endif\n'
    )
    monkeypatch.setenv("SIGMOID_ATTENTION_CXXFLAGS", "-O0 '-DLEVEL=3 + 4'")
    compiler.compile_library("generic", compiler.find_compiler(), tmp_path / "k.so", kernel)
    assert ctypes.CDLL(str(tmp_path / "k.so")).level() == 7


def test_without_openmp_it_is_built_for_one_thread(kernel, tmp_path, monkeypatch):
    program = tmp_path / "no-openmp"
    real = " ".join(compiler.find_compiler().command)
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *-fopenmp*) echo no libgomp >&2; exit 1; esac\nexec {real} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    compiler.compile_library("generic", compiler.find_compiler(), tmp_path / "k.so", kernel)
    torch.set_num_threads(2)
    try:
        assert ctypes.CDLL(str(tmp_path / "k.so")).threads() == 1
    finally:
        torch.set_num_threads(1)


def test_the_message_has_the_first_line_of_the_compilers_error(kernel, tmp_path):
    (kernel / "kernel.cpp").write_text("#warning of no account\nint a = b;\nint c = d;\n")
    with pytest.raises(compiler.CannotBuild) as told:
        compiler.compile_library("generic", compiler.find_compiler(), tmp_path / "k.so", kernel)
    message = str(told.value)
    assert "kernel.cpp:2" in message and "b" in message
    assert "\n" not in message and "warning" not in message and "kernel.cpp:3" not in message
    assert not (tmp_path / "k.so").exists()


def test_the_message_has_an_error_of_the_linker(kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("SIGMOID_ATTENTION_CXXFLAGS", "-lnowhere")
    with pytest.raises(compiler.CannotBuild, match=r"cannot find -lnowhere"):
        compiler.compile_library("generic", compiler.find_compiler(), tmp_path / "k.so", kernel)


def test_a_compiler_that_fails_without_a_message(kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(compiler.CannotBuild, match=r"^the C\+\+ compiler /bin/false failed: exit"):
        compiler.compile_library("generic", compiler.find_compiler(), tmp_path / "k.so", kernel)


def test_it_can_be_read_where_torch_is_missing():
    script = f"""
    import importlib.util, sys
    sys.modules["torch"] = None
    spec = importlib.util.spec_from_file_location("compiler", {os.fspath(compiler.__file__)!r})
    spec.loader.exec_module(found := importlib.util.module_from_spec(spec))
    print(found.flags("avx2"))
    """
    assert "-mavx2" in output(start(script))
