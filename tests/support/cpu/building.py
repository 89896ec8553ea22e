"""A small kernel, a compiler that counts its runs, and other processes."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from sigmoid_attention.attention.impl.cpu.compiler import find_compiler

STRUCT_SIZE = 48
SMALL = """
#include "size.h"
#ifdef _OPENMP
#include <omp.h>
extern "C" long threads() { return omp_get_max_threads(); }
#else
extern "C" long threads() { return 1; }
#endif
extern "C" long sigmoid_attention_abi() { return SIZE; }
"""

# Waits at the gate while it is shut; no process outlives a test by more than the half minute.
COUNTING = """#!/bin/sh
case "$*" in *--version*) ;; *)
  echo $$ >> {log}
  tries=0
  while [ -e {gate} ] && [ $tries -lt 300 ]; do sleep 0.1; tries=$((tries + 1)); done
esac
exec {compiler} "$@"
"""


class CountingCompiler:
    """A compiler that writes its process id into a file each time that it compiles."""

    def __init__(self, folder: Path) -> None:
        self.program, self.log, self.gate = folder / "c++", folder / "log", folder / "gate"
        script = COUNTING.format(
            log=self.log, gate=self.gate, compiler=" ".join(find_compiler().command)
        )
        self.program.write_text(script)
        self.program.chmod(0o755)

    def started(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()] if self.log.exists() else []


def start(script: str, **environment: object) -> "subprocess.Popen[str]":
    """Another Python that runs the script, in this environment but for what is named."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: "subprocess.Popen[str]") -> str:
    """What the process prints, once it has ended well."""
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out.strip()
