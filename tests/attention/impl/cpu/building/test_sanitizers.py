"""`make sanitize` reports kernel reads outside of the tensors."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sigmoid_attention.attention.impl.cpu import compiler

ROOT = Path(compiler.__file__).parents[5]

KERNEL = """
extern "C" float read(const float *values, long index) { return values[index]; }
extern "C" int add(int a, int b) { return a + b; }
"""
CALLS = """
import ctypes
from pathlib import Path
import torch
from sigmoid_attention.attention.impl.cpu import compiler

HERE = Path(__file__).parent

def test_call():
    compiler.compile_library("generic", compiler.find_compiler(), HERE / "kernel.so", HERE)
    kernel = ctypes.CDLL(str(HERE / "kernel.so"))
    values = torch.zeros(5)
    assert kernel.{call} in (0, 2**31 - 1)
"""


def sanitize(folder, call):
    (folder / "kernel.cpp").write_text(KERNEL)
    (folder / "test_call.py").write_text(CALLS.format(call=call))
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTEST"))
    }
    done = subprocess.run(
        [
            *("make", "--old-file", ".venv/.ready", "sanitize"),
            *(f"BIN={Path(sys.executable).parent}", f"SANITIZED=-n 0 {folder / 'test_call.py'}"),
        ],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
@pytest.mark.parametrize(
    ("call", "report"),
    [
        ("read(ctypes.c_void_p(values.data_ptr()), 5)", "AddressSanitizer: heap-buffer-overflow"),
        ("read(ctypes.c_void_p(values.data_ptr()), -1)", "AddressSanitizer: heap-buffer-overflow"),
        ("add(2**31 - 1, 1)", "runtime error: signed integer overflow"),
        ("read(ctypes.c_void_p(values.data_ptr() + 2), 1)", "runtime error: load of misaligned"),
    ],
    ids=["past the end", "before the start", "overflow", "misaligned"],
)
def test_a_broken_kernel_ends_with_a_report(tmp_path, call, report):
    status, message = sanitize(tmp_path, call)
    assert status != 0 and report in message and "kernel.cpp" in message


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
def test_a_sound_kernel_passes(tmp_path):
    status, message = sanitize(tmp_path, "add(2**31 - 2, 1)")
    assert status == 0, message
    assert "1 passed" in message
