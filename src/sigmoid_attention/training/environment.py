"""The environment of a measurement: device, machine, library versions, memory of the process."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sigmoid_attention.nn.sizes import instance

PACKAGES = (
    "sigmoid-attention",
    "torch",
    "triton",
    "numpy",
    "scipy",
    "scikit-learn",
    "pyarrow",
    "tokenizers",
)
DEVICES = ("auto", "cpu", "cuda")


def resolve_device(name: str) -> torch.device:
    """The device called `name`: "cpu", "cuda", "cuda:1"; "auto" is CUDA if available, else the CPU.

    Raises:
        TypeError: the name is no string.
        ValueError: the name is invalid, or this machine has no such device.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    instance("device", name, str, "the name of a device")
    kind = name.partition(":")[0]
    if kind not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {name!r}")
    has_cuda = torch.cuda.is_available()
    if kind == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    if kind == "cuda" and not has_cuda:
        raise ValueError(f"device {name!r} was asked for, but torch finds no GPU on this machine")
    return torch.device(name)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, memory and system, for the rows of results; without the host name."""
    machine: dict[str, Any] = {
        "device": str(device),
        "processor": processor_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "memory_bytes": memory_bytes(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine["accelerator"] = properties.name
        machine["accelerator_memory_bytes"] = properties.total_memory
    return machine


def describe_versions() -> dict[str, str]:
    """The versions of Python and of every package that may affect a result.

    Example:
        >>> sorted(describe_versions())[:2]
        ['numpy', 'pyarrow']
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def source_commit() -> str:
    """The commit of this library's source, with "-dirty" if files were changed since.

    "" if the source is in no repository (an installed wheel), or git is not installed.
    """
    folder = Path(__file__).parent
    # An untracked file may lie inside the repository of another project.
    for command in (
        ("ls-files", "--error-unmatch", Path(__file__).name),
        ("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"),
    ):
        try:
            answer = subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        if answer.returncode:
            return ""
    return answer.stdout.strip()


def usable_cores() -> int:
    """Cores that this process may run on; a container may allow fewer than the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name() -> str:
    """The name of the processor if the system gives one, else its architecture."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    """The machine's memory in bytes; 0 if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def peak_process_bytes() -> int:
    """The most memory that this process has held so far (resident set); 0 on Windows."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would report the parent's peak in a child that was forked from a larger one.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
