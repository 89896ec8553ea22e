"""What a row of a GPU was measured with: device, driver, versions, source, and when."""

import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.stamp import source_hash, switches
from sigmoid_attention.studies.environment import describe_machine, describe_versions

PEERS = ("flash-attn", "flash-attn-3", "triton-sigmoid", "flash-sigmoid")
DRIVER = Path("/proc/driver/nvidia/version")


def gpu_stamp(device: torch.device) -> dict[str, Any]:
    """What every row of a run carries beside its numbers."""
    machine = describe_machine(device)
    del machine["threads"]
    driver = DRIVER.read_text() if DRIVER.exists() else ""
    return {
        "machine": machine,
        "versions": describe_versions() | _of_peers() | _of_libraries(),
        "driver": driver_version(driver),
        "switches": switches(),
        "source": source_hash(),
        "kernel": "gpu",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def driver_version(said: str) -> str:
    """The driver's version as the system tells it, "unknown" where it does not.

    Example:
        >>> driver_version("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Fri Jan")
        '570.86.10'
    """
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", said)
    return found.group() if found else "unknown"


def _of_peers() -> dict[str, str]:
    found = {}
    for package in PEERS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _of_libraries() -> dict[str, str]:
    return {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
