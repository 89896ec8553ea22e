"""Estimates the memory and the time of a training run before it starts."""

import bisect
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sigmoid_attention.nn.models import DecoderLM, ModelConfig

FLOAT = 4
# A parameter, its gradient, and Adam's two moments.
STATE = 4 * FLOAT
# A checkpoint holds parameters and moments. Writing it takes two more copies in memory: the bytes
# of each tensor and the bytes of the file.
CHECKPOINT = 2 * 3 * FLOAT
# Peak number of stored activations per token in forward and backward, fitted to decoders of several
# sizes: per channel and per hidden channel of a layer, and per vocabulary entry.
BY_CHANNEL, BY_HIDDEN, BY_ENTRY = 18, 4, 3
# Extra copies of the largest parameter during gradient summation and the optimiser's update.
OF_LARGEST = 3

# A matrix product of size TIMED is timed; training reaches about the share EFFICIENCY of its rate.
TIMED, EFFICIENCY = 512, 0.4

MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class TrainingMemory:
    """Estimated bytes of the parameters with gradients and moments, and of the memory peaks."""

    parameters: int
    state: int
    step: int
    checkpoint: int

    def peak(self, device: torch.device) -> int:
        """The peak on a device; checkpoints are assembled in the CPU's memory."""
        return self.state + max(self.step, self.checkpoint if device.type == "cpu" else 0)


def training_memory(config: ModelConfig, batch_size: int) -> TrainingMemory:
    """Estimate the memory of training a decoder in fp32 with AdamW, without building the decoder.

    state = 16 bytes a parameter; step = 4 bytes x batch x tokens x (layers (18 dim + 4 hidden) +
    3 vocabulary) and three times the largest parameter; checkpoint = 24 bytes a parameter. The
    estimate is within a factor of 1.5 of measurements.

    Example:
        >>> from sigmoid_attention.nn.models import PRESETS
        >>> needed = training_memory(PRESETS["gala-7b"], batch_size=1)
        >>> f"{needed.parameters / 1e9:.1f} billion, {needed.state / 1e9:.0f} GB"
        '6.6 billion, 106 GB'
    """
    sizes = _parameter_sizes(config)
    layer = BY_CHANNEL * config.dim + BY_HIDDEN * config.hidden_dim
    by_token = config.layers * layer + BY_ENTRY * config.vocab_size
    step = by_token * batch_size * config.max_seq_len + OF_LARGEST * max(sizes)
    count = sum(sizes)
    return TrainingMemory(count, STATE * count, FLOAT * step, CHECKPOINT * count)


@functools.cache
def _parameter_sizes(config: ModelConfig) -> list[int]:
    # Tensors on the meta device have shapes but no storage.
    with torch.device("meta"):
        return [parameter.numel() for parameter in DecoderLM(config).parameters()]


def refuse_too_large(name: str, config: ModelConfig, batch_size: int, device: torch.device) -> None:
    """Raise ``ValueError``, before anything is allocated, if the training cannot fit in memory.

    `name` is the model's name in the message. If the free memory is unknown, nothing is refused.
    """
    free = free_bytes(device)
    needed = training_memory(config, batch_size)
    if free is None or needed.peak(device) <= free:
        return
    where = "this machine" if device.type == "cpu" else str(device)
    checkpoint = f", a checkpoint {in_bytes(needed.checkpoint)}" if device.type == "cpu" else ""
    raise ValueError(
        f"{name} needs about {in_bytes(needed.peak(device))} of memory to train and {where} has "
        f"{in_bytes(free)} free: {needed.parameters:,} parameters with gradients and Adam's "
        f"moments take {in_bytes(needed.state)}, a step of {batch_size} x {config.max_seq_len} "
        f"tokens {in_bytes(needed.step)} more{checkpoint}; "
        f"{_way_out(config, batch_size, device, free)}"
    )


def _way_out(config: ModelConfig, batch_size: int, device: torch.device, free: int) -> str:
    fits = bisect.bisect_right(
        range(1, batch_size),
        free,
        key=lambda fewer: training_memory(config, fewer).peak(device),
    )
    if fits:
        return f"--batch-size {fits} would fit"
    return "take a smaller --preset, --dim, --layers or --seq-len"


def training_seconds(config: ModelConfig, batch_size: int, steps: int) -> float:
    """Estimate the duration of `steps` training steps on this CPU, by timing a matrix product.

    operations = batch x tokens x (6 parameters + 7 layers x tokens x dim), the second term being
    causal attention, forward and backward. Accurate within a factor of two or three.
    """
    tokens = config.max_seq_len
    parameters = training_memory(config, batch_size).parameters
    each = 6 * parameters + 7 * config.layers * tokens * config.dim
    return steps * batch_size * tokens * each / (EFFICIENCY * _operations_a_second())


def _operations_a_second() -> float:
    factor = torch.ones(TIMED, TIMED)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(factor, factor)
        seconds.append(time.perf_counter() - started)
    return 2 * TIMED**3 / min(seconds)


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process may still allocate; None if the system does not report it.

    On Linux: the minimum of the machine's available memory and of the remaining memory of each
    control group of this process. Containers are limited by control groups.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [*_of_machine(), *_of_control_groups()]
    return min(limits) if limits else None


def in_bytes(size: float) -> str:
    """A size in bytes, formatted with a unit.

    Example:
        >>> in_bytes(112e9), in_bytes(2.34e9), in_bytes(5e6), in_bytes(512)
        ('112 GB', '2.3 GB', '5.0 MB', '512 bytes')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.{0 if size >= 10 * unit else 1}f} {name}"
    return f"{size:.0f} bytes"


def in_time(seconds: float) -> str:
    """A duration in seconds, formatted with a unit.

    Example:
        >>> in_time(20), in_time(600), in_time(9000), in_time(3e5)
        ('20 s', '10 min', '2.5 h', '3.5 days')
    """
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            value = seconds / unit
            return f"{value:.{0 if value >= 10 else 1}f} {name}".replace(".0 ", " ")
    return f"{seconds:.0f} s"


def _of_machine() -> Iterator[int]:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _of_control_groups() -> Iterator[int]:
    """Remaining memory of this process's control group and of its ancestors (cgroup v1 and v2)."""
    try:
        lines = CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _left(CGROUP_ROOT, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left(CGROUP_ROOT / "memory", path, *names)


def _left(root: Path, path: str, limit: str, used: str, reclaimable: str) -> Iterator[int]:
    inside = root / path.strip("/")
    # In a container the root is the container's own group, but the path is the host's.
    for group in (inside, *inside.parents):
        if not group.is_relative_to(root):
            return
        try:
            most = (group / limit).read_text().strip()
            if most == "max":
                continue
            taken = int((group / used).read_text())
            for line in (group / "memory.stat").read_text().splitlines():
                if line.startswith(f"{reclaimable} "):
                    # The inactive file cache, which the system frees when memory is needed.
                    taken -= int(line.split()[1])
        except OSError:
            continue
        yield max(int(most) - taken, 0)
