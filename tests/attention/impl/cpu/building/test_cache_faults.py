"""Faults of the library cache never reach the operator; they cost at most one compilation."""

import os
import stat
import sys
import tempfile
import textwrap
import time

import pytest

from sigmoid_attention.attention.impl.cpu import cache, compiler, library
from tests.support.cpu.building import STRUCT_SIZE, output, start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="permissions are those of POSIX")


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    """No folder of this process that an earlier test has made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(cache, "_process_folder", cache._process_folder.__wrapped__)
    monkeypatch.setattr(cache.atexit, "register", lambda remove: None)
    return folder


@pytest.fixture
def name(kernel):
    return compiler.library_name("generic", compiler.find_compiler(), kernel)


def in_process_folder(built, folder):
    return built.file.is_relative_to(folder) and compiler.intact(built.file)


@pytest.mark.parametrize("what", ["library", "seal", "lock"])
@pytest.mark.parametrize("instead", ["folder", "pipe", "dangling link"])
def test_something_else_in_the_place_of_a_file(
    kernel, own_cache, own_temporary_folder, name, what, instead
):
    cache.build("generic", kernel)
    place = own_cache / (name + {"library": "", "seal": ".sha256", "lock": ".lock"}[what])
    place.unlink()
    if what == "lock":
        (own_cache / name).unlink()
    if instead == "folder":
        (place / "full").mkdir(parents=True)
    elif instead == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(own_cache / "nothing" / "here")
    built = cache.build("generic", kernel)
    assert built.origin == "compiled" and compiler.intact(built.file)


@pytest.mark.parametrize("fails", ["copy", "replace"])
def test_no_room_in_the_cache(kernel, own_cache, own_temporary_folder, monkeypatch, fails):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.shutil if fails == "copy" else cache.os, fails, full)
    assert in_process_folder(cache.build("generic", kernel), own_temporary_folder)
    assert {file.suffix for file in own_cache.iterdir()} == {".lock"}


def test_no_room_for_the_seal_alone(kernel, own_cache, own_temporary_folder, monkeypatch):
    replace = os.replace

    def full_for_seals(source, target):
        if str(target).endswith(".sha256"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(cache.os, "replace", full_for_seals)
    assert in_process_folder(cache.build("generic", kernel), own_temporary_folder)
    monkeypatch.undo()


def test_a_full_disk_for_temporary_files_gives_one_warning_and_one_compilation(
    kernel, tmp_path, monkeypatch, caplog
):
    program = tmp_path / "c++"
    program.write_text(
        "#!/bin/sh\n"
        'case "$*" in *--version*) echo full 1.0; exit 0;; esac\n'
        f"echo started >> {tmp_path}/log\n"
        'echo "kernel.cpp: fatal error: error writing to x.o: No space left on device" >&2\n'
        "exit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    assert [library.library(STRUCT_SIZE) for _ in range(3)] == [None] * 3
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= 30]
    assert "no space left on the disk" in line and "TMPDIR" in line
    # Once with threads and once without: no other vector path is tried on a full disk.
    assert (tmp_path / "log").read_text() == "started\n" * 2


def test_no_folder_for_temporary_files(kernel, own_cache, monkeypatch, caplog):
    def nowhere(**_):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", nowhere)
    assert library.library(STRUCT_SIZE) is None
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= 30]
    assert "cannot be written" in line and "TMPDIR" in line


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 0", "reported no error and wrote no library"),
        ("printf 'kernel.cpp: error: \\377\\376\\n' >&2; exit 1", "error: \ufffd\ufffd"),
        ("exit 1", "exit status 1 and no message"),
        ("kill -9 $$", "exit status -9 and no message"),
    ],
    ids=["mute", "not utf-8", "no message", "killed"],
)
def test_an_unusual_compiler_gives_an_error_of_one_sentence(
    kernel, tmp_path, monkeypatch, script, expected
):
    program = tmp_path / "c++"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *--version*) printf "\\377 1"; exit 0;; esac\n{script}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    with pytest.raises(compiler.CannotBuild, match=expected):
        cache.build("generic", kernel)


@pytest.mark.parametrize("variable", ["CXX", "SIGMOID_ATTENTION_CXXFLAGS"])
def test_an_open_quote_names_its_variable(monkeypatch, caplog, variable):
    monkeypatch.setenv(variable, "g++ '")
    assert library.library(STRUCT_SIZE) is None
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= 30]
    assert line.startswith(f"{variable} cannot be split into words: no closing quotation")
    assert line.endswith(f"correct {variable}, or unset it")


STUCK = '#!/bin/sh\ncase "$*" in *--version*) {version};; esac\nsleep 60 & sleep 60\n'


@pytest.mark.parametrize("when", ["asked for its version", "compiling"])
def test_a_compiler_that_does_not_end_is_ended(kernel, tmp_path, monkeypatch, caplog, when):
    program = tmp_path / "c++"
    version = "sleep 60" if when == "asked for its version" else "echo stuck 1.0; exit 0"
    program.write_text(STUCK.format(version=version))
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    monkeypatch.setattr(compiler, "_VERSION_LIMIT_S", 0.5)
    monkeypatch.setattr(compiler, "_COMPILE_LIMIT_S", 0.5)
    began = time.monotonic()
    assert library.library(STRUCT_SIZE) is None
    assert time.monotonic() - began < 30
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= 30]
    assert "did not end in 0.5 seconds" in line


def test_a_process_waits_no_longer_than_two_minutes_for_another(
    kernel, own_cache, name, monkeypatch
):
    fcntl = pytest.importorskip("fcntl")
    assert cache._WAIT_S <= compiler._VERSION_LIMIT_S + compiler._COMPILE_LIMIT_S <= 120
    monkeypatch.setattr(cache, "_WAIT_S", 0.2)
    own_cache.mkdir()
    with (own_cache / f"{name}.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert cache.build("generic", kernel).origin == "compiled"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o757], ids=oct)
def test_a_folder_that_others_can_write_is_not_used(
    kernel, own_cache, own_temporary_folder, name, caplog, mode
):
    own_cache.mkdir()
    planted = own_cache / name
    planted.write_bytes(b"planted")
    compiler.seal(planted)
    own_cache.chmod(mode)
    built = cache.build("generic", kernel)
    assert built.origin == "compiled" and in_process_folder(built, own_temporary_folder)
    assert planted.read_bytes() == b"planted"
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= 30]
    assert f"other users can write to {own_cache}" in line


def test_a_folder_below_one_that_others_can_write_is_not_used(
    kernel, own_cache, own_temporary_folder
):
    own_cache.mkdir()
    own_cache.parent.chmod(0o777)
    assert in_process_folder(cache.build("generic", kernel), own_temporary_folder)
    # In a sticky folder, as /tmp is one, others cannot replace what is not theirs.
    own_cache.parent.chmod(0o1777)
    assert cache.build("generic", kernel).file.parent == own_cache


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives a file away")
def test_the_file_of_another_user_is_not_loaded(kernel, own_cache, own_temporary_folder):
    file = cache.build("generic", kernel).file
    os.chown(file, 65534, 65534)
    again = cache.build("generic", kernel)
    assert again.origin != "cached" or again.file != file or file.stat().st_uid == 0


def test_the_users_own_folder_is_closed_to_the_group(kernel, tmp_path, monkeypatch):
    monkeypatch.delenv("SIGMOID_ATTENTION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = cache.cache_folder()
    folder.mkdir(parents=True)
    folder.chmod(0o775)
    assert cache.build("generic", kernel).file.parent == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_a_library_without_the_function_is_compiled_anew(kernel, own_cache, monkeypatch):
    file = cache.build("generic", kernel).file
    empty = kernel.parent / "empty" / "kernel.cpp"
    empty.parent.mkdir()
    empty.write_text('extern "C" long other() { return 0; }\n')
    compiler.compile_library("generic", compiler.find_compiler(), file, empty.parent)
    compiler.seal(file)
    monkeypatch.setattr(library, "PATHS", ("generic",))
    monkeypatch.setattr(library, "build", lambda path: cache.build(path, kernel))
    monkeypatch.setattr(library, "rebuild", lambda path, old: cache.rebuild(path, old, kernel))
    assert library.library(STRUCT_SIZE).sigmoid_attention_abi() == STRUCT_SIZE


def test_files_of_killed_processes_are_removed(kernel, own_cache, own_temporary_folder):
    old, new = own_cache / "build-old", own_cache / "build-new"
    dead = own_temporary_folder / "sigmoid-attention-dead"
    for folder in (old, new, dead):
        folder.mkdir(parents=True)
        (folder / "kernel.so").touch()
    (dead / "alive").touch()
    os.utime(old, (0, 0))
    cache.build("generic", kernel)
    assert not old.exists() and new.exists() and not dead.exists()


PRELUDE = """
import functools, os, pathlib, signal, threading, time
from sigmoid_attention.attention.impl.cpu import cache, library
kernel = pathlib.Path(os.environ["KERNEL"])
library.build = functools.partial(cache.build, kernel=kernel)
gate, log = pathlib.Path(os.environ["GATE"]), pathlib.Path(os.environ["LOG"])
def compiling():
    while not log.exists():
        time.sleep(0.02)
"""


def test_a_signal_handler_during_the_compilation_takes_tiles(kernel, counting):
    script = textwrap.dedent(PRELUDE) + textwrap.dedent("""
    def handler(*_):
        print("handler", library.library(48), flush=True)
        gate.unlink()
    signal.signal(signal.SIGUSR1, handler)
    threading.Thread(
        target=lambda: (compiling(), os.kill(os.getpid(), signal.SIGUSR1)), daemon=True
    ).start()
    print("main", library.library(48) is not None, library.library(48) is not None)
    """)
    counting.gate.touch()
    process = start(script, KERNEL=kernel, GATE=counting.gate, LOG=counting.log)
    assert output(process).split("\n") == ["handler None", "main True True"]


def test_a_child_forked_during_the_compilation_chooses_for_itself(kernel, counting):
    script = textwrap.dedent(PRELUDE) + textwrap.dedent("""
    other = threading.Thread(target=library.library, args=(48,))
    other.start()
    compiling()
    time.sleep(1.0)  # a fork while the other thread starts its compiler would keep a pipe open
    child = os.fork()
    if child == 0:
        gate.unlink()
        os._exit(0 if library.library(48) is not None else 1)
    print(os.waitpid(child, 0)[1])
    other.join()
    """)
    counting.gate.touch()
    process = start(script, KERNEL=kernel, GATE=counting.gate, LOG=counting.log)
    assert output(process) == "0"
