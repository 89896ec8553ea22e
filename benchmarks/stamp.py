"""The conditions of a row: machine, versions, switches, source, kernel and date."""

import hashlib
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import sigmoid_attention.attention
from sigmoid_attention.attention.impl.cpu.abi import loaded
from sigmoid_attention.attention.impl.cpu.library import decision
from sigmoid_attention.training.environment import describe_machine, describe_versions

# Settings of the environment that change what is measured.
SWITCHES = (
    "SIGMOID_ATTENTION_CPU",
    "SIGMOID_ATTENTION_CXXFLAGS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "SIGMOID_ATTENTION_ACTIVATION",
    "SIGMOID_ATTENTION_GPU_LAUNCH_CACHE",
    "TRITON_SIGMOID_ACCURATE",
    "NVIDIA_TF32_OVERRIDE",
)
SOURCES = (".py", ".cpp", ".h")


def stamp(device: torch.device) -> dict[str, Any]:
    """The conditions of a row that is measured now."""
    machine = describe_machine(device)
    # The row holds its number of threads.
    del machine["threads"]
    return {
        "machine": machine,
        "versions": describe_versions(),
        "switches": switches(),
        "source": source_hash(),
        "kernel": kernel_path(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        # Over the last minute, this process included: more than its threads means other load.
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def switches() -> dict[str, str]:
    """The switches that are set in the environment."""
    return {name: os.environ[name] for name in SWITCHES if name in os.environ}


def same_conditions(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """True if two stamps differ only in date and load."""
    lasting = ("machine", "versions", "switches", "source", "kernel")
    return all(one[name] == other[name] for name in lasting)


def kernel_path() -> str:
    """The vector path of the fused kernel in this process; "none" without a kernel."""
    loaded()
    chosen = decision()
    return chosen.path if chosen and chosen.library else "none"


def source_hash() -> str:
    """A short hash of the operator's files as they are on disk."""
    folder = Path(sigmoid_attention.attention.__file__).parent
    return hash_of(folder, sorted(p for p in folder.rglob("*") if p.suffix in SOURCES))


def hash_of(folder: Path, paths: Iterable[Path]) -> str:
    """A short hash of the names and contents of files in a folder."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
