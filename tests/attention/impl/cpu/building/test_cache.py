"""The library cache under damage, concurrent processes, killed builds and unwritable folders."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import platformdirs
import pytest

from sigmoid_attention.attention.impl.cpu import cache, compiler
from sigmoid_attention.folders import cache_folder
from tests.support.cpu.building import STRUCT_SIZE, output, start

BUILD = """
import os, pathlib
from sigmoid_attention.attention.impl.cpu.cache import build
pathlib.Path(os.environ["READY"]).touch()
built = build("generic", pathlib.Path(os.environ["KERNEL"]))
print(built.origin, built.file)
"""


def loads(built):
    return ctypes.CDLL(str(built.file)).sigmoid_attention_abi() == STRUCT_SIZE


def wait_for(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited a minute for {what}"
        time.sleep(0.05)


def test_compiled_once_then_cached(kernel, counting, own_cache):
    first, second = cache.build("generic", kernel), cache.build("generic", kernel)
    assert (first.origin, second.origin) == ("compiled", "cached")
    assert first.file == second.file and first.file.parent == own_cache and loads(second)
    assert len(counting.started()) == 1
    assert {file.suffix for file in own_cache.iterdir()} == {".so", ".sha256", ".lock"}


@pytest.mark.parametrize("what", ["library", "seal"])
@pytest.mark.parametrize("damage", ["gone", "empty", "half", "garbage", "one bit", "longer"])
def test_a_damaged_file_is_rebuilt_before_it_is_loaded(kernel, own_cache, what, damage):
    file = cache.build("generic", kernel).file
    if what == "seal":
        file = file.with_name(f"{file.name}.sha256")
    whole = file.read_bytes()
    file.unlink()
    if damage != "gone":
        flipped = bytes([whole[0] ^ 1]) + whole[1:]
        file.write_bytes(
            {
                "empty": b"",
                "half": whole[: len(whole) // 2],
                "garbage": os.urandom(len(whole)),
                "one bit": flipped,
                "longer": whole + b"\n",
            }[damage]
        )
    again = cache.build("generic", kernel)
    assert again.origin == "compiled" and loads(again)
    assert cache.build("generic", kernel).origin == "cached"


@pytest.mark.slow
def test_two_processes_at_once_compile_once(kernel, counting, tmp_path):
    counting.gate.touch()
    ready = [tmp_path / "first", tmp_path / "second"]
    both = [start(BUILD, KERNEL=kernel, READY=file) for file in ready]
    wait_for(lambda: all(file.exists() for file in ready), "both to start")
    wait_for(counting.started, "one to compile")
    time.sleep(1.0)  # enough for the second to compile too, were it not held back
    counting.gate.unlink()
    origins, files = zip(*(output(process).split() for process in both), strict=True)
    assert sorted(origins) == ["cached", "compiled"] and len(set(files)) == 1
    assert len(counting.started()) == 1


@pytest.mark.slow
def test_a_killed_compilation_blocks_no_other_process(kernel, counting, tmp_path):
    counting.gate.touch()
    holder = start(BUILD, KERNEL=kernel, READY=tmp_path / "holder")
    wait_for(counting.started, "the first to compile")
    waiting = start(BUILD, KERNEL=kernel, READY=tmp_path / "waiting")
    wait_for((tmp_path / "waiting").exists, "the second to start")
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=60)
    # The dead one's compiler lives on, at the gate; the other takes over without it.
    wait_for(lambda: len(counting.started()) == 2, "the second to compile")
    orphan = counting.started()[0]
    os.kill(orphan, signal.SIGKILL)
    counting.gate.unlink()
    assert output(waiting).split()[0] == "compiled"
    assert cache.build("generic", kernel).origin == "cached"


def test_a_failed_build_leaves_nothing_that_could_be_taken_for_a_library(kernel, own_cache):
    (kernel / "size.h").unlink()
    with pytest.raises(compiler.CannotBuild, match=r"size\.h"):
        cache.build("generic", kernel)
    assert {file.suffix for file in own_cache.iterdir()} == {".lock"}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["/proc/sigmoid-attention", "below a file", "no home"])
def test_nowhere_to_write_means_a_folder_of_this_process(kernel, tmp_path, where):
    (tmp_path / "file").touch()
    script = """
    import os, pathlib
    if os.environ["WHERE"] == "no home":
        del os.environ["SIGMOID_ATTENTION_CACHE"]
        def no_home(path):
            raise RuntimeError("Could not determine home directory.")
        pathlib.Path.expanduser = no_home
    from sigmoid_attention.attention.impl.cpu.cache import build
    built = build("generic", pathlib.Path(os.environ["KERNEL"]))
    again = build("generic", pathlib.Path(os.environ["KERNEL"]))
    print(built.origin, again.origin, built.file.exists(), built.file)
    """
    folder = tmp_path / "file" / "below" if where == "below a file" else where
    here = start(script, KERNEL=kernel, WHERE=where, SIGMOID_ATTENTION_CACHE=folder)
    first, second, existed, file = output(here).split()
    assert (first, second, existed) == ("compiled", "cached", "True")
    assert not Path(file).exists() and not Path(file).parent.exists()


def test_reading_the_cache_writes_nothing_so_it_may_be_read_only(kernel, own_cache):
    file = cache.build("generic", kernel).file
    file.with_name(f"{file.name}.lock").unlink()
    before = own_cache.stat().st_mtime_ns
    assert cache.build("generic", kernel).origin == "cached"
    assert own_cache.stat().st_mtime_ns == before and len(list(own_cache.iterdir())) == 2


@pytest.fixture
def prebuilt(kernel, tmp_path):
    folder = tmp_path / "prebuilt"
    folder.mkdir()
    file = folder / compiler.library_name("generic", None, kernel)
    compiler.compile_library("generic", compiler.find_compiler(), file, kernel)
    compiler.seal(file)
    return file


def test_a_prebuilt_library_needs_no_compiler(kernel, prebuilt, no_compiler, own_cache):
    built = cache.build("generic", kernel, prebuilt.parent)
    assert built == cache.Built(prebuilt, "prebuilt") and loads(built)
    assert not own_cache.exists()


@pytest.mark.parametrize("reason", ["damaged", "other source", "other flags", "other path"])
def test_a_prebuilt_library_that_does_not_fit_is_passed_over(kernel, prebuilt, monkeypatch, reason):
    path = "generic"
    if reason == "damaged":
        prebuilt.write_bytes(prebuilt.read_bytes()[:-1])
    elif reason == "other source":
        (kernel / "kernel.cpp").write_text((kernel / "kernel.cpp").read_text() + "\n")
    elif reason == "other flags":
        monkeypatch.setenv("SIGMOID_ATTENTION_CXXFLAGS", "-g")
    else:
        path = "avx2"
    assert cache.build(path, kernel, prebuilt.parent).origin == "compiled"


def test_the_cache_folder_is_that_of_platformdirs(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SIGMOID_ATTENTION_CACHE")
    assert cache_folder() == Path(platformdirs.user_cache_dir("sigmoid-attention"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path(platformdirs.user_cache_dir("sigmoid-attention"))


def test_nothing_is_compiled_at_import(counting):
    everything = "import sigmoid_attention, sigmoid_attention.nn, sigmoid_attention.doctor"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", everything], capture_output=True, timeout=120
    )
    assert done.returncode == 0 and not counting.started()
