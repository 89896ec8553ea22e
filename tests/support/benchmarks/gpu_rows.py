"""Synthetic benchmark rows of a GPU, with costs that a test chooses."""

from benchmarks.gpu.peers import OURS
from benchmarks.operations import Case, flops
from benchmarks.rows import Row, merged

STAMP = {
    "machine": {"accelerator": "NVIDIA H200", "device": "cuda:0"},
    "versions": {"torch": "2.11.0", "triton": "3.6.0"},
    "driver": "570.1", "switches": {}, "source": "0123", "kernel": "gpu",
    "date": "2026-01-02T03:04:05+00:00",
}  # fmt: skip
FORWARD = Case("forward", "bf16", 16384, 128, "full", heads=16)
DECODE = Case("decode", "bf16", 32768, 128, "full", heads=32, batch=1, key_heads=8)
COPY = Case("copy", "bf16", 2**31, heads=1)
ERROR = Case("error", "bf16", 2048, 128, "causal", heads=2, batch=2)


def row(case: Case, peer: str, seconds: float | None = None, beside=None, **others) -> Row:
    """A row; `beside` is what gluon and triton cost in the same rounds."""
    wall = () if seconds is None else (seconds, seconds * 1.1, seconds * 0.9)
    stamp = STAMP | ({"auto": ["triton"]} if peer in OURS else {})
    if beside is not None:
        stamp |= {"beside": dict(zip(OURS, beside, strict=True))}
    return Row(case, peer, 0, wall=wall, stamp=stamp, **others)


def rows(*measured: Row):
    return merged({}, measured)


def at(case: Case, tflops: float) -> float:
    return flops(case) / tflops / 1e12
