"""Which blocks, warps and stages a kernel runs with, per GPU: looked up, never searched for.

A search would cost the first step of whoever trains. What is not listed for a GPU runs with the
fallback of its memory: correct everywhere, tuned nowhere. ``MEASURED`` names the GPUs whose entries
were chosen by their timings; there is none yet, so every entry is chosen by what the compiler says:
registers, spills and instructions for each score (tests/attention/triton/test_budgets.py).
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

# By name, as torch.cuda.get_device_name gives it.
MEASURED: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Config:
    """Queries and keys of a tile, warps that share it, tiles in flight.

    ``described``: keys and values come by descriptors, wherever the call's memory allows.
    """

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int
    described: bool = False


@dataclass(frozen=True)
class Configs:
    """What the three kernels run with; ``span`` is plan.py's SPAN, which their blocks divide.

    ``backward_with_sums`` is for gradients of bias or slopes, whose sums take registers too; its
    blocks of keys are those of ``backward``.
    """

    forward: Config
    backward: Config
    backward_with_sums: Config
    backward_queries: Config
    span: int = 128


@dataclass(frozen=True)
class Device:
    """What a choice depends on: the compute capability, and the shared memory of a block."""

    name: str
    capability: tuple[int, int]
    shared: int


@lru_cache
def device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return Device(
        properties.name,
        (properties.major, properties.minor),
        properties.shared_memory_per_block_optin,
    )


# Without a GPU, where Triton interprets the kernels.
NO_DEVICE = Device("interpreter", (8, 0), 160 * 1024)


def choose(device: Device, dtype: torch.dtype, head_dim: int, value_dim: int) -> Configs:
    """What the kernels run with; dims are padded ones, 16 to 256."""
    wide = max(head_dim, value_dim)
    if dtype == torch.float32:
        return _IN_FP32[64 if wide <= 64 else 128 if wide <= 128 else 256]
    table = _HOPPER if device.capability == (9, 0) else _LARGE
    if device.shared < 160 * 1024:
        table = _SMALL
    return table[64 if wide <= 64 else 128 if wide <= 128 else 256]


# sm_90: products by warp groups, which want whole tiles of 64 rows for each four warps.
_HOPPER = {
    64: Configs(
        Config(128, 128, 8, 2, described=True), Config(64, 128, 8, 2), Config(64, 128, 8, 2),
        Config(128, 64, 8, 2),
    ),
    128: Configs(
        Config(128, 128, 8, 2, described=True), Config(64, 128, 8, 2), Config(32, 128, 8, 2),
        Config(128, 64, 8, 2),
    ),
    256: Configs(
        Config(128, 64, 8, 2, described=True), Config(32, 64, 8, 1), Config(32, 64, 8, 1),
        Config(64, 64, 8, 1),
    ),
}  # fmt: skip
# 160 KiB and more: sm_80, and what is newer than this table.
_LARGE = {
    64: Configs(
        Config(128, 64, 4, 3), Config(64, 128, 8, 2), Config(64, 128, 8, 2), Config(128, 64, 8, 2)
    ),
    128: Configs(
        Config(128, 64, 8, 2), Config(64, 128, 8, 1), Config(32, 128, 8, 1), Config(64, 64, 8, 2)
    ),
    256: Configs(
        Config(64, 64, 8, 1), Config(32, 64, 8, 1), Config(32, 64, 8, 1), Config(64, 32, 8, 1)
    ),
}
# 99 KiB: sm_86, sm_89, sm_120.
_SMALL = {
    64: Configs(
        Config(128, 64, 4, 2), Config(64, 64, 4, 1), Config(64, 64, 4, 1), Config(64, 64, 4, 2)
    ),
    128: Configs(
        Config(64, 64, 4, 2), Config(32, 64, 4, 1), Config(32, 64, 4, 1), Config(64, 32, 4, 2)
    ),
    256: Configs(
        Config(64, 32, 8, 1), Config(32, 32, 4, 1), Config(32, 32, 4, 1), Config(32, 32, 4, 1)
    ),
}
# Three products of tf32 for each: more registers, and rows twice as long.
_IN_FP32 = {
    64: Configs(
        Config(64, 32, 4, 1), Config(32, 64, 4, 1), Config(32, 64, 4, 1), Config(64, 32, 4, 1)
    ),
    128: Configs(
        Config(64, 32, 8, 1), Config(32, 32, 8, 1), Config(32, 32, 8, 1), Config(32, 32, 8, 1)
    ),
    256: Configs(
        Config(32, 16, 8, 1), Config(16, 32, 8, 1), Config(16, 32, 8, 1), Config(32, 16, 8, 1)
    ),
}
