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
# A checkpoint holds parameters and moments. They are there twice more while it is written: as
# bytes by tensor and as those of the file.
CHECKPOINT = 2 * 3 * FLOAT
# Numbers for a token that forward and backward hold at their peak, fitted to decoders of several
# sizes: by channel and by hidden channel of a layer, and by entry of the vocabulary.
BY_CHANNEL, BY_HIDDEN, BY_ENTRY = 18, 4, 3
# Copies of the largest parameter while gradients are summed and the optimiser updates it.
OF_LARGEST = 3

# A matrix product of this size is timed; training runs at about this share of its rate.
TIMED, EFFICIENCY = 512, 0.4

MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class TrainingMemory:
    """An estimate, in bytes: of the parameters with gradients and moments, and of the peaks."""

    parameters: int
    state: int
    step: int
    checkpoint: int

    def peak(self, device: torch.device) -> int:
        """The most that is needed on a device; checkpoints are made in the CPU's memory."""
        return self.state + max(self.step, self.checkpoint if device.type == "cpu" else 0)


def training_memory(config: ModelConfig, batch_size: int) -> TrainingMemory:
    """Estimate what training a decoder in fp32 with AdamW needs, without making the decoder.

    state = 16 bytes a parameter; step = 4 bytes x batch x tokens x (layers (18 dim + 4 hidden) +
    3 vocabulary) and three times the largest parameter; checkpoint = 24 bytes a parameter. Within
    a factor of 1.5 of what was measured.

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
    # Without a single number behind any shape.
    with torch.device("meta"):
        return [parameter.numel() for parameter in DecoderLM(config).parameters()]


def refuse_too_large(name: str, config: ModelConfig, batch_size: int, device: torch.device) -> None:
    """Raise ``ValueError``, before anything is allocated, if a training cannot fit the memory.

    `name` is what the sentence calls the model. Where the system does not tell how much memory is
    free, nothing is refused.
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
    """About how long `steps` of training take on this CPU; times a matrix product to tell.

    operations = batch x tokens x (6 parameters + 7 layers x tokens x dim), the second term being
    causal attention, forward and backward. Right within a factor of two or three.
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
    """Memory that this process may still take; None where the system does not tell.

    On Linux the least of what the machine has and of what each control group around this process
    leaves it, which is how a container is kept small.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [*_of_machine(), *_of_control_groups()]
    return min(limits) if limits else None


def in_bytes(size: float) -> str:
    """A size for people.

    Example:
        >>> in_bytes(112e9), in_bytes(2.34e9), in_bytes(5e6), in_bytes(512)
        ('112 GB', '2.3 GB', '5.0 MB', '512 bytes')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.{0 if size >= 10 * unit else 1}f} {name}"
    return f"{size:.0f} bytes"


def in_time(seconds: float) -> str:
    """A duration for people.

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
    """What is left in this process's group and in all above it, of both kinds of Linux."""
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
    # In a container its own group is the root, but the path is that of the host.
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
                    # Copies of files, which the system drops as soon as memory is wanted.
                    taken -= int(line.split()[1])
        except OSError:
            continue
        yield max(int(most) - taken, 0)
