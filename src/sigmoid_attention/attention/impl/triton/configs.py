"""Which blocks, warps and stages a kernel runs with, per GPU: looked up, never searched for.

A search would cost the first step of whoever trains. What is not listed for a GPU runs with the
fallback of its memory: correct everywhere, tuned nowhere. ``MEASURED`` names the GPUs whose entries
were chosen by their timings; there is none yet, so every entry is chosen by what the compiler says:
registers, spills and instructions for each score (tests/attention/impl/triton/test_budgets.py).
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

# By name, as torch.cuda.get_device_name gives it.
MEASURED: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Config:
    """Queries and keys of a tile, warps that share it, tiles in flight.

    With two in flight a tile is asked for when the one before it was used, and then waited for;
    from three on that is hidden behind another tile's products, as the machine code shows.
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

    def beside_pairs(self, read: int) -> "Configs":
        """The same for a call that reads so many bytes of bias and mask for each score.

        They are in flight like the rows that a block visits, and wait in registers for their use:
        two tiles are in flight then, and with more than a bias in fp32, half as many rows in each.
        """
        if read == 0:
            return self
        return replace(
            self,
            forward=_roomier(self.forward, "block_k", read),
            backward=_roomier(self.backward, "block_q", read),
            backward_with_sums=_roomier(self.backward_with_sums, "block_q", read),
            backward_queries=_roomier(self.backward_queries, "block_k", read),
        )


def _roomier(config: Config, visited: str, read: int) -> Config:
    block = getattr(config, visited)
    if read > 4:
        block = max(16, block // 2)
    return replace(config, num_stages=min(config.num_stages, 2), **{visited: block})


@dataclass(frozen=True)
class Device:
    """What a choice depends on: the compute capability, and the shared memory of a block."""

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
    """What is known of a device; the CPU stands for the interpreter."""
    return _gpu(device.index) if device.type == "cuda" else NO_DEVICE


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Of the GPU; the interpreter is one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


# From how much shared memory on the large tiles fit.
_ROOMY = 160 * 1024

# Without a GPU, where Triton interprets the kernels.
NO_DEVICE = Device("interpreter", (8, 0), _ROOMY)


def widest(device: Device, dtype: torch.dtype) -> int:
    """The largest head dim whose tiles find room."""
    if dtype != torch.float32:
        return 256
    return 128 if device.shared >= _ROOMY else 64


def choose(device: Device, dtype: torch.dtype, head_dim: int, value_dim: int) -> Configs:
    """What the kernels run with; dims are padded ones, 16 to :func:`widest`."""
    wide = max(64, head_dim, value_dim)
    if dtype == torch.float32:
        if device.shared < _ROOMY:
            return _SMALL_FP32[wide]
        return _HOPPER_FP32[wide] if device.capability == (9, 0) else _LARGE_FP32[wide]
    if device.shared < _ROOMY:
        return _SMALL[wide]
    if device.capability[0] == 10:
        return _BLACKWELL[wide]
    return _HOPPER[wide] if device.capability == (9, 0) else _LARGE[wide]


# sm_90: products by warp groups, which want whole tiles of 64 rows for each four warps.
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
# 160 KiB and more: sm_80, and what is newer than this table.
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
# sm_100: products are summed up in a memory of their own, of which a block has 512 columns.
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
# Three products of tf32 for each: more registers, and rows twice as long.
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
