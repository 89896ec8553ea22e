"""Tables of the blocks, warps and stages that the kernels run with, by GPU.

There is no autotuning: it would slow down the first step of a training run. GPUs that are not
listed use the fallback for their size of shared memory, which is correct but not tuned.
``MEASURED`` names the GPUs whose entries were chosen by timings; there is none yet. All entries are
chosen by the compiler's figures: registers, spills and instructions for each score
(tests/attention/impl/triton/test_budgets.py).
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

# By name, as torch.cuda.get_device_name gives it.
MEASURED: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Config:
    """Queries and keys of a tile, warps that share it, tiles in flight.

    With two stages a tile is requested after the previous one was used, and the kernel waits for
    it. With three or more that wait overlaps with another tile's products, as the machine code
    shows. ``described``: keys and values are loaded by descriptors, where their strides allow.
    """

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int
    described: bool = False


@dataclass(frozen=True)
class Configs:
    """The configurations of the kernels; ``span`` is SPAN of plan.py, which their blocks divide.

    ``backward_with_sums`` is for gradients of bias or slopes, whose sums need registers too. Its
    blocks of keys are those of ``backward``.
    """

    forward: Config
    backward: Config
    backward_with_sums: Config
    backward_queries: Config
    span: int = 128

    def beside_pairs(self, bytes_per_pair: int) -> "Configs":
        """The configurations of a call that reads so many bytes of bias and mask for each score.

        They are loaded ahead into registers. So there are at most two stages, and with more bytes
        than those of a bias in fp32, half as many rows in each.
        """
        if bytes_per_pair == 0:
            return self
        return replace(
            self,
            forward=_with_smaller_tiles(self.forward, "block_k", bytes_per_pair),
            backward=_with_smaller_tiles(self.backward, "block_q", bytes_per_pair),
            backward_with_sums=_with_smaller_tiles(
                self.backward_with_sums, "block_q", bytes_per_pair
            ),
            backward_queries=_with_smaller_tiles(self.backward_queries, "block_k", bytes_per_pair),
        )


def _with_smaller_tiles(config: Config, visited: str, bytes_per_pair: int) -> Config:
    block = getattr(config, visited)
    if bytes_per_pair > 4:
        block = max(16, block // 2)
    return replace(config, num_stages=min(config.num_stages, 2), **{visited: block})


@dataclass(frozen=True)
class Device:
    """What a configuration depends on: compute capability, and a block's bytes of shared memory."""

    name: str
    capability: tuple[int, int]
    shared: int


@lru_cache
def _gpu(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return Device(
        properties.name,
        (properties.major, properties.minor),
        properties.shared_memory_per_block_optin,
    )


def of(device: torch.device) -> Device:
    """The properties of a device; the CPU stands for the interpreter."""
    return _gpu(device.index) if device.type == "cuda" else NO_DEVICE


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """The number of multiprocessors of a GPU; 1 for the interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


# Bytes of shared memory from which on the large tiles fit.
LARGE_SHARED_MEMORY = 160 * 1024

# Without a GPU, where Triton interprets the kernels.
NO_DEVICE = Device("interpreter", (8, 0), LARGE_SHARED_MEMORY)


def widest(device: Device, dtype: torch.dtype) -> int:
    """The largest head dim whose tiles fit in shared memory."""
    if dtype != torch.float32:
        return 256
    return 128 if device.shared >= LARGE_SHARED_MEMORY else 64


def choose(device: Device, dtype: torch.dtype, head_dim: int, value_dim: int) -> Configs:
    """The configurations for padded dims, from 16 to :func:`widest`."""
    wide = max(64, head_dim, value_dim)
    if dtype == torch.float32:
        if device.shared < LARGE_SHARED_MEMORY:
            return _SMALL_FP32[wide]
        return _HOPPER_FP32[wide] if device.capability == (9, 0) else _LARGE_FP32[wide]
    if device.shared < LARGE_SHARED_MEMORY:
        return _SMALL[wide]
    if device.capability[0] == 10:
        return _BLACKWELL[wide]
    return _HOPPER[wide] if device.capability == (9, 0) else _LARGE[wide]


# sm_90: warp groups multiply, and need tiles of 64 rows for each four warps.
_HOPPER = {
    64: Configs(
        Config(128, 128, 8, 3, described=True), Config(64, 128, 8, 3), Config(64, 128, 8, 3),
        Config(128, 64, 8, 3),
    ),
    128: Configs(
        Config(128, 128, 8, 3, described=True), Config(64, 128, 8, 3), Config(32, 128, 8, 3),
        Config(128, 64, 8, 3),
    ),
    256: Configs(
        Config(128, 64, 8, 2, described=True), Config(64, 64, 8, 1), Config(64, 64, 8, 1),
        Config(128, 64, 8, 1),
    ),
}  # fmt: skip
# 160 KiB and more: sm_80, and GPUs newer than this table.
_LARGE = {
    64: Configs(
        Config(128, 64, 4, 3), Config(64, 128, 8, 3), Config(64, 128, 8, 1), Config(128, 64, 8, 3)
    ),
    128: Configs(
        Config(128, 64, 8, 3), Config(64, 128, 8, 1), Config(64, 128, 8, 1), Config(64, 64, 8, 3)
    ),
    256: Configs(
        Config(64, 64, 8, 1), Config(32, 64, 8, 1), Config(32, 64, 8, 1), Config(64, 32, 8, 1)
    ),
}
# sm_100: products are summed in tensor memory, of which a block has 512 columns.
_BLACKWELL = {
    64: _LARGE[64],
    128: replace(
        _LARGE[128], backward=Config(64, 64, 8, 1), backward_with_sums=Config(64, 64, 8, 1)
    ),
    256: replace(
        _LARGE[256], backward=Config(32, 32, 8, 1), backward_with_sums=Config(32, 32, 8, 1)
    ),
}
# 99 KiB: sm_86, sm_89, sm_120.
_SMALL = {
    64: Configs(
        Config(128, 64, 4, 3), Config(64, 64, 4, 1), Config(32, 64, 4, 1), Config(64, 64, 4, 3)
    ),
    128: Configs(
        Config(64, 64, 4, 3), Config(32, 64, 4, 1), Config(32, 64, 4, 1), Config(64, 32, 4, 3)
    ),
    256: Configs(
        Config(64, 32, 8, 1), Config(32, 32, 4, 1), Config(32, 32, 8, 1), Config(32, 32, 4, 1)
    ),
}
# Three products in tf32 for each: more registers, and rows twice as long.
_HOPPER_FP32 = {
    64: Configs(
        Config(128, 64, 8, 1), Config(32, 128, 8, 1), Config(32, 128, 8, 1), Config(64, 32, 4, 1)
    ),
    128: Configs(
        Config(128, 64, 8, 1), Config(64, 32, 8, 1), Config(64, 32, 8, 1), Config(64, 32, 4, 1)
    ),
}
_LARGE_FP32 = {
    64: Configs(
        Config(32, 64, 4, 1), Config(32, 32, 4, 1), Config(32, 32, 4, 1), Config(32, 32, 4, 1)
    ),
    128: Configs(
        Config(32, 32, 4, 1), Config(64, 32, 8, 1), Config(64, 32, 8, 1), Config(32, 32, 8, 1)
    ),
}
_SMALL_FP32 = {
    64: Configs(
        Config(64, 32, 4, 1), Config(32, 32, 4, 1), Config(32, 32, 4, 1), Config(32, 32, 4, 1)
    ),
}
