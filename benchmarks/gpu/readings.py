"""Readings of the GPU itself: rates of single instructions, the error of its tanh, its clocks.

A reading is one line of JSON in a file beside the rows; a newer one replaces the older.
"""

import json
import math
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.stopwatch import gpu_stopwatch
from sigmoid_attention.training.files import reading, sealed, unsealed, write_whole

ROUNDS = 5
LENGTHS = (512, 2048, 8192, 32768, 131072)
# Of work queued before each query; nvidia-smi takes a fraction of it.
LOADED_SECONDS = 1.0
PRODUCT = 16384
# It takes longer only if the driver hangs.
SMI_SECONDS = 3.0


@dataclass(frozen=True)
class Reading:
    """One number with its spread over the rounds, or the reason why there is none."""

    name: str
    unit: str
    values: tuple[float, ...] = ()
    refused: str | None = None
    stamp: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    def to_json(self) -> str:
        return json.dumps(sealed(asdict(self)))

    @classmethod
    def from_json(cls, line: str) -> "Reading":
        values = unsealed(json.loads(line))
        return cls(**values | {"values": tuple(values["values"])})


def rates(device: torch.device) -> Iterator[Reading]:
    """Results a clock and multiprocessor of every instruction."""
    from benchmarks.gpu import mufu

    count = torch.cuda.get_device_properties(device).multi_processor_count
    out = torch.empty(mufu.PROGRAMS * count * mufu.SIZE, device=device)
    watch = gpu_stopwatch()
    seconds: dict[str, list[float]] = {name: [] for name in mufu.INSTRUCTIONS}
    for _ in range(ROUNDS + 1):
        for name, own in seconds.items():
            own.append(watch(lambda name=name: mufu.launch_chain(out, name, count)).wall)
    yield from rates_of({name: own[1:] for name, own in seconds.items()}, mufu.INSTRUCTIONS)


def rates_of(
    seconds: dict[str, list[float]], results: dict[str, int], base: str = "fma.rn.f32"
) -> Iterator[Reading]:
    """The rates from the times of equally many instructions, relative to 128 `base` a clock."""
    for name, own in seconds.items():
        shared = zip(seconds[base], own, strict=True)
        values = tuple(128.0 * results[name] * theirs / mine for theirs, mine in shared)
        yield Reading(f"rate of {name}", "results a clock and multiprocessor", values)


def tanh_errors(device: torch.device) -> Iterator[Reading]:
    """The error of the hardware's tanh, and of weights that are computed with it at -log n."""
    from benchmarks.gpu.mufu import hardware_tanh

    def tanh(x: Tensor) -> Tensor:
        out, kernel = torch.empty_like(x), hardware_tanh
        launch: Any = kernel
        launch[(-(-x.numel() // 1024),)](x, out, x.numel(), BLOCK=1024)
        return out

    yield from errors_of(tanh, device)


def errors_of(tanh: Callable[[Tensor], Tensor], device: torch.device) -> Iterator[Reading]:
    """The same for any tanh of fp32 numbers, against float64."""
    x = torch.linspace(-10, 10, 2**20, device=device)
    exact = x.double().tanh()
    worst = ((tanh(x).double() - exact) / exact).abs().nan_to_num().max()
    yield Reading("tanh.approx.f32, largest relative error", "relative", (float(worst),))
    for n in LENGTHS:
        logit = torch.linspace(-math.log(n) - 1, -math.log(n) + 1, 2**16, device=device)
        weight = 0.5 + 0.5 * tanh(0.5 * logit)
        exact = logit.double().sigmoid()
        error = ((weight.double() - exact) / exact).square().mean().sqrt()
        yield Reading(f"weights near 1/{n} by it, error", "relative, RMS", (float(error),))


def clocks(device: torch.device) -> Iterator[Reading]:
    """Clock and power while matrix products keep the device busy."""
    left = torch.randn(PRODUCT, PRODUCT, device=device, dtype=torch.bfloat16)
    watch, gpu = gpu_stopwatch(), gpu_id(device)
    one = watch(lambda: torch.mm(left, left)).wall
    states = []
    for _ in range(ROUNDS):
        for _ in range(math.ceil(LOADED_SECONDS / one)):
            torch.mm(left, left)
        end = torch.cuda.Event()
        end.record()
        state = query_state(gpu)
        # nvidia-smi samples at an unknown moment of its second, so the load must outlast it.
        states += [] if end.query() else [state]
        if not state:
            break
    torch.cuda.synchronize(device)
    for name, unit in (("clocks.sm", "MHz"), ("power.draw", "W"), ("temperature.gpu", "degrees C")):
        values = tuple(state[name] for state in states if name in state)
        refused = None if values else "nvidia-smi is absent, or does not report it"
        yield Reading(f"{name} under load", unit, values, refused)


STATE = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


def query_state(gpu: str = "") -> dict[str, float]:
    """Clocks (MHz), power (W) and temperature of a GPU, as far as nvidia-smi reports them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    query = [program, f"--query-gpu={','.join(STATE)}", "--format=csv,noheader,nounits"]
    query += [f"--id={gpu}"] if gpu else []
    try:
        child = subprocess.run(query, capture_output=True, text=True, timeout=SMI_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return {}
    return state_of(child.stdout)


def gpu_id(device: torch.device) -> str:
    """The device's identifier in nvidia-smi, which does not depend on CUDA_VISIBLE_DEVICES."""
    uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    return f"GPU-{uuid}" if uuid and not uuid.startswith("GPU-") else uuid


def state_of(output: str) -> dict[str, float]:
    """The values in the first line of nvidia-smi's output.

    Example:
        >>> state_of("1980, 3201, 688.2, [N/A]\\n")
        {'clocks.sm': 1980.0, 'clocks.mem': 3201.0, 'power.draw': 688.2}
    """
    found = {}
    for name, text in zip(STATE, output.partition("\n")[0].split(","), strict=False):
        try:
            found[name] = float(text)
        except ValueError:
            continue
    return found


READINGS: dict[str, Callable[[torch.device], Iterator[Reading]]] = {
    "rates": rates,
    "tanh": tanh_errors,
    "clocks": clocks,
}


def read(path: Path) -> dict[str, Reading]:
    """The readings of a file by their names; none if there is no such file."""
    if not path.exists():
        return {}
    with reading(path):
        lines = path.read_text().splitlines()
        return {found.name: found for found in map(Reading.from_json, lines)}


def write(path: Path, readings: Iterable[Reading]) -> None:
    """All readings to `path`, whole or not at all."""
    write_whole(path, "".join(reading.to_json() + "\n" for reading in readings).encode())
