"""The built and installed wheel contains libraries if a compiler was found, else Python only."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sigmoid_attention.attention.impl.cpu import compiler
from tests.support.cpu.building import STRUCT_SIZE, output, start

ROOT = Path(compiler.__file__).parents[5]


@pytest.fixture
def project(tmp_path, kernel):
    """This project with the small kernel."""
    copy = tmp_path / "project"
    copy.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    unwanted = shutil.ignore_patterns("__pycache__", "kernel", "prebuilt")
    shutil.copytree(ROOT / "src", copy / "src", ignore=unwanted)
    shutil.copytree(kernel, copy / "src/sigmoid_attention/attention/impl/cpu/kernel")
    return copy


def pip(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def build_wheel(project):
    out = project / "dist"
    options = ("--no-deps", "--no-build-isolation", "--no-index")
    message = pip("wheel", "-v", *options, "-w", out, project)
    (wheel,) = out.iterdir()
    return wheel, zipfile.ZipFile(wheel).namelist(), message


def shipped(files):
    return sorted(name.rpartition("/")[2] for name in files if "/prebuilt/" in name)


LOADED = """
import sigmoid_attention
from sigmoid_attention.attention.impl.cpu.library import choose
chosen = choose({size})
print(chosen.origin, chosen.path, chosen.library.sigmoid_attention_abi(), chosen.library._name)
"""


def test_a_wheel_with_libraries_needs_no_compiler(project, kernel, tmp_path):
    wheel, files, _ = build_wheel(project)
    assert wheel.name.count("-py3-none-") == 1 and not wheel.name.endswith("-any.whl")
    assert "manylinux" not in wheel.name
    names = [compiler.library_name(path, None, kernel) for path in compiler.PATHS]
    assert shipped(files) == sorted(names + [f"{name}.sha256" for name in names])
    assert "sigmoid_attention/attention/impl/cpu/kernel/size.h" in files

    target = tmp_path / "target"
    pip("install", "--no-deps", "--no-index", "--target", target, wheel)
    here = start(LOADED.format(size=STRUCT_SIZE), PYTHONPATH=target, CXX="/bin/false")
    origin, path, abi, file = output(here).split()
    best = next(path for path in compiler.PATHS if compiler.runs(path))
    assert (origin, path, abi) == ("prebuilt", best, str(STRUCT_SIZE))
    assert Path(file).is_relative_to(target)


def test_without_a_compiler_the_wheel_is_pure_and_no_message_appears(project, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    wheel, files, message = build_wheel(project)
    assert wheel.name.endswith("-py3-none-any.whl") and shipped(files) == []
    assert "kernel" not in message


def test_a_path_that_fails_is_left_out_and_named(project):
    source = project / "src/sigmoid_attention/attention/impl/cpu/kernel/kernel.cpp"
    source.write_text(f"#ifdef __AVX512BF16__\n#error too new\n#endif\n{source.read_text()}")
    _, files, message = build_wheel(project)
    assert len(shipped(files)) == 2 * (len(compiler.PATHS) - 1)
    assert "the wheel lacks the CPU kernel for avx512_bf16" in message and "too new" in message


def test_an_editable_install_compiles_nothing(project, counting, tmp_path):
    options = ("--no-deps", "--no-build-isolation", "--no-index")
    pip("install", *options, "--target", tmp_path / "target", "--editable", project)
    assert list((tmp_path / "target").glob("*.pth")) and not counting.started()
    assert not (project / "src/sigmoid_attention/attention/impl/cpu/prebuilt").exists()


def test_nothing_is_left_behind(project, monkeypatch, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    build_wheel(project)
    assert os.listdir(scratch) == []
