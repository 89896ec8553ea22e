"""The conditions of a row of a GPU: device, driver, versions, source and date."""

import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.stamp import hash_of, source_hash, switches
from sigmoid_attention.training.environment import describe_machine, describe_versions

PEERS = ("flash-attn", "flash-attn-3", "triton-sigmoid", "flash-sigmoid")
DRIVER = Path("/proc/driver/nvidia/version")
HERE = Path(__file__).parent
# The files of this folder that affect numbers; pages, targets and the plan do not.
MEASURING = (
    "errors", "exact", "mufu", "peers", "readings", "speed", "stopwatch", "worker",
)  # fmt: skip


def gpu_stamp(device: torch.device) -> dict[str, Any]:
    """The conditions of all rows of a run."""
    machine = describe_machine(device)
    del machine["threads"]
    driver = DRIVER.read_text() if DRIVER.exists() else ""
    return {
        "machine": machine,
        "versions": describe_versions() | _of_peers() | _of_libraries(),
        "driver": driver_version(driver),
        "switches": switches(),
        "source": source_hash(),
        "bench": hash_of(HERE, (HERE / f"{name}.py" for name in MEASURING)),
        "kernel": "gpu",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def same_gpu_conditions(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """True if two stamps agree in all that affects a GPU's numbers, so not in the host's memory."""
    lasting = ("versions", "switches", "source", "bench", "driver")
    return one["machine"]["accelerator"] == other["machine"]["accelerator"] and all(
        one.get(name) == other.get(name) for name in lasting
    )


def driver_version(text: str) -> str:
    """The driver's version in the text of its version file; "unknown" if there is none.

    Example:
        >>> driver_version("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Fri Jan")
        '570.86.10'
    """
    match = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return match.group() if match else "unknown"


def _of_peers() -> dict[str, str]:
    versions = {}
    for package in PEERS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _of_libraries() -> dict[str, str]:
    return {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
