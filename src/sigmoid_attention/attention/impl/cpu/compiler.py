"""From the kernel's source to a shared library: vector paths, the compiler, its command, a seal.

The build hook of the wheel loads this file by its path, where torch may be missing. So the module
imports only the standard library at its top.
"""

import contextlib
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

KERNEL = Path(__file__).parent / "kernel"
SOURCE = "kernel.cpp"

# Best first. A path needs the processor features that its flags enable.
PATHS = ("avx512_bf16", "avx512", "avx2", "generic")
_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "f16c")
_FEATURES = {
    "avx512_bf16": (*_AVX512, "avx512bf16"),
    "avx512": _AVX512,
    "avx2": _AVX2,
    "generic": (),
}

# Not -ffast-math, which assumes that there is no NaN and no infinity.
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
)


# Together two minutes, the longest time that a process waits for a compiler that does not end.
_VERSION_LIMIT_S = 20.0
_COMPILE_LIMIT_S = 100.0


class CannotBuild(Exception):
    """There is no library; the message gives the reason in one line."""

    remedy = "repair the compiler, or name another in CXX"


class NoCompiler(CannotBuild):
    """No C++ compiler is on the PATH, or the one that CXX names is not."""

    remedy = "install g++ or clang++"


class Unusable(CannotBuild):
    """There is no library for any vector path."""


class Stuck(Unusable):
    """The compiler does not end within its time limit."""


class NoRoom(Unusable):
    """A disk is full, or no folder is writable."""

    remedy = "make room in the folder for temporary files, or name another in TMPDIR"


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: its command, and its output for --version."""

    command: tuple[str, ...]
    version: str

    @property
    def identity(self) -> str:
        """A string that no other compiler on this machine has."""
        program, *options = self.command
        return "\n".join((os.path.realpath(program), *options, self.version))

    @property
    def openmp(self) -> tuple[str, ...]:
        """The flag for threads, if the compiler uses libgomp, whose threads torch uses too.

        Clang uses libomp, which would start a second set of threads beside torch's.
        """
        return () if "clang" in self.version else ("-fopenmp",)


def runs(path: str) -> bool:
    """Whether this processor, under this operating system, can execute the vector path.

    Example:
        >>> runs("generic")
        True
    """
    return _processor_features().issuperset(_FEATURES[path])


@functools.cache
def _processor_features() -> frozenset[str]:
    import torch

    # Older releases of torch lack it; Linux has the same list in other spellings.
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        names = [name.replace("fma3", "fma") for name, has in capabilities.items() if has is True]
    elif os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = next((line.split() for line in lines if line.startswith("flags")), [])
    else:
        names = []
    return frozenset(name.replace("_", "") for name in names)


def flags(path: str) -> tuple[str, ...]:
    """The compiler's flags for a vector path, `SIGMOID_ATTENTION_CXXFLAGS` last.

    Example:
        >>> "-mavx2" in flags("avx2"), "-mavx2" in flags("generic")
        (True, False)
    """
    vector = tuple(f"-m{feature}" for feature in _FEATURES[path])
    return (*_FLAGS, *vector, *_words("SIGMOID_ATTENTION_CXXFLAGS"))


def _words(variable: str) -> list[str]:
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        problem = Unusable(f"{variable} cannot be split into words: {str(error).lower()}")
        problem.remedy = f"correct {variable}, or unset it"
        raise problem from None


def find_compiler() -> Compiler:
    """The compiler that `CXX` names, else the first of c++, g++ and clang++ on the PATH.

    Raises:
        NoCompiler: there is none.
        CannotBuild: it does not start, or does not end.
    """
    named = _words("CXX")
    for program, *options in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if executable := shutil.which(program):
            # Not resolved: ccache's links select their compiler by the name of the link.
            command = (executable, *options)
            return Compiler(command, _run((*command, "--version"), _VERSION_LIMIT_S).stdout)
    raise NoCompiler(
        f"CXX names {named[0]}, which is not there" if named else "no C++ compiler was found"
    )


def library_name(path: str, compiler: Compiler | None, kernel: Path = KERNEL) -> str:
    """The file name of a library, with a hash of everything that it is built from.

    Without a compiler, it is the name of the library in a wheel, for machines without a compiler.
    """
    inputs = [platform.machine().encode(), sys.platform.encode()]
    for file in sorted(file for file in kernel.rglob("*") if file.is_file()):
        inputs += [file.relative_to(kernel).as_posix().encode(), file.read_bytes()]
    inputs += [flag.encode() for flag in flags(path)]
    if compiler:
        inputs.append(compiler.identity.encode())
    # A hash of hashes, so that no byte can move from one input to the next without a change.
    digest = hashlib.sha256(b"".join(hashlib.sha256(each).digest() for each in inputs))
    return f"kernel-{path}-{digest.hexdigest()[:16]}.so"


def compile_library(path: str, compiler: Compiler, out: Path, kernel: Path = KERNEL) -> None:
    """Compile the kernel for a vector path into `out`; without threads if threads fail.

    Raises:
        CannotBuild: with the compiler's first error.
    """
    command = (*compiler.command, *flags(path))
    for openmp in dict.fromkeys((compiler.openmp, ())):
        arguments = (*openmp, str(kernel / SOURCE), "-o", str(out))
        done = _run((*command, *arguments), _COMPILE_LIMIT_S)
        if done.returncode == 0 and out.is_file():
            return
    if done.returncode == 0:
        raise CannotBuild(f"the C++ compiler {command[0]} reported no error and wrote no library")
    if "No space left on device" in done.stderr:
        raise NoRoom(f"the C++ compiler {command[0]} found no space left on the disk")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    # The linker's message comes before collect2's report of its failure.
    errors = [line for line in lines if "error:" in line and not line.startswith("collect2")]
    first = next(iter(errors + lines), f"exit status {done.returncode} and no message")
    raise CannotBuild(f"the C++ compiler {compiler.command[0]} failed: {first}")


def _run(command: tuple[str, ...], limit_s: float) -> "subprocess.CompletedProcess[str]":
    # In English: the version is part of a file name, and errors are searched for words.
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise CannotBuild(
            f"the C++ compiler {command[0]} does not start: {error.strerror}"
        ) from error
    try:
        out, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        _end(process)
        raise Stuck(f"the C++ compiler {command[0]} did not end in {limit_s:g} seconds") from None
    except BaseException:
        # It runs in its own session and receives no Ctrl-C.
        _end(process)
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def _end(process: "subprocess.Popen[str]") -> None:
    """Kill a compiler and the programs that it has started."""
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream:
            stream.close()


def seal(file: Path) -> None:
    """Write the checksum of a finished library to a file beside it."""
    seal_of(file).write_text(_checksum(file))


def intact(file: Path) -> bool:
    """Whether a library exists and is complete: an incomplete one would crash the process."""
    try:
        # To read a pipe would block for ever.
        regular = file.is_file() and seal_of(file).is_file()
        return regular and seal_of(file).read_bytes() == _checksum(file).encode()
    except OSError:
        return False


def seal_of(file: Path) -> Path:
    """The file of a library's checksum."""
    return file.with_name(f"{file.name}.sha256")


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
