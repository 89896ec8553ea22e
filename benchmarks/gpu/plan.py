"""What is measured, in the order of its importance: what time is left for comes last.

A unit is what the measuring process is asked for at once: a case with its peers, or a group of
readings. Lengths and head dims are those of the papers' charts: 16384 tokens in all, 2048 columns.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from benchmarks.gpu.errors import FEATURES
from benchmarks.gpu.peers import OURS, SIGMOID, SOFTMAX
from benchmarks.gpu.readings import READINGS
from benchmarks.operations import MASKS, Case

TOKENS, COLUMNS = 16384, 2048
DIMS = (128, 64)
LENGTHS = (16384, 4096, 2048, 1024, 512, 8192)
ERROR_LENGTHS = (32768, 131072, 8192, 2048, 512, 128)
ALIBI_LENGTHS, ALIBI_HEADS = (4096, 16384, 65536), 16
CACHE, BATCHES = 32768, (1, 64, 8, 2, 4, 16, 32)
PAGE = 16
# Odd sizes, where a block is never full.
FEATURE_LENGTH, FEATURE_DIMS = 1003, (80, 256)
KINDS = ("readings", "errors", "speed")


@dataclass(frozen=True)
class Unit:
    """What to measure at once, and a guess at its seconds, compilers included."""

    kind: str
    case: Case | None
    peers: tuple[str, ...]
    seconds: float
    reading: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.case or self.reading}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Unit":
        case = values["case"] and Case(**values["case"])
        return cls(**values | {"case": case, "peers": tuple(values["peers"])})


def units(kinds: tuple[str, ...] = KINDS) -> list[Unit]:
    """The units of these kinds, each once."""
    found = dict.fromkeys(unit for unit in _all() if unit.kind in kinds)
    return list(found)


def cases(operation: str) -> list[Case]:
    """The cases of one operation, in the order of the plan."""
    return [u.case for u in units() if u.case and u.case.operation == operation]


def _all() -> Iterator[Unit]:
    yield Unit("speed", Case("gemm", "bf16", 8192, 8192, heads=1), ("mm",), 2)
    yield Unit("speed", Case("copy", "bf16", 2**31, heads=1), ("copy",), 2)
    for reading in READINGS:
        yield Unit("readings", None, (), 5, reading)
    yield from _errors_by_length()
    # The targets' own shapes come before the rest.
    yield from _attention(LENGTHS[:1], (*SOFTMAX, *SIGMOID), 12)
    yield from _decoding(BATCHES[:2])
    yield from _alibi()
    yield from _attention(LENGTHS[1:5], (*SOFTMAX, "triton-sigmoid", "flash-sigmoid"), 4)
    yield from _decoding(BATCHES[2:])
    yield from _errors_by_feature()
    for batch in BATCHES[:3]:
        case = Case("decode", "bf16", CACHE, 128, "full", 32, batch, 8, f"paged {PAGE}")
        yield Unit("speed", case, ("triton",), 3)
    yield from _attention(LENGTHS[5:], (*SOFTMAX, "triton-sigmoid", "flash-sigmoid"), 4)


def _attention(lengths: tuple[int, ...], peers: tuple[str, ...], seconds: float) -> Iterator[Unit]:
    for length, dim, mask, operation in product(lengths, DIMS, MASKS, ("forward", "backward")):
        case = Case(
            operation, "bf16", length, dim, mask, heads=COLUMNS // dim, batch=TOKENS // length
        )
        yield Unit("speed", case, (*OURS, *peers), seconds)


def _decoding(batches: tuple[int, ...]) -> Iterator[Unit]:
    for batch in batches:
        case = Case("decode", "bf16", CACHE, 128, "full", heads=32, batch=batch, key_heads=8)
        yield Unit("speed", case, ("triton", *SOFTMAX), 4)


def _alibi() -> Iterator[Unit]:
    """Softmax has no slopes here: dense and causal, as fast as it gets."""
    for length, operation in product(ALIBI_LENGTHS, ("alibi-forward", "alibi-backward")):
        case = Case(operation, "bf16", length, 128, "causal", heads=ALIBI_HEADS)
        yield Unit("speed", case, (*OURS, *SOFTMAX), 5)


def _errors_by_length() -> Iterator[Unit]:
    for length, dim, mask in product(ERROR_LENGTHS, DIMS, MASKS):
        # A short row holds little chance to err: as many of them as make up for it.
        batch = max(1, min(4096 // length, 8))
        case = Case("error", "bf16", length, dim, mask, heads=2, batch=batch)
        peers = SIGMOID if dim == 64 and mask == "full" else ("triton-sigmoid", "flash-sigmoid")
        yield Unit("errors", case, (*OURS, *peers), 3)


def _errors_by_feature() -> Iterator[Unit]:
    for dtype, dim, feature in product(("bf16", "fp16", "fp32"), FEATURE_DIMS, FEATURES):
        if not feature or (dtype != "bf16" and dim != FEATURE_DIMS[0]):
            continue
        case = Case(
            "error", dtype, FEATURE_LENGTH, dim, "causal", heads=4, batch=2, key_heads=2,
            feature=feature,
        )  # fmt: skip
        # Gluon's kernels have no cache and take what they take; refusals are rows, too.
        yield Unit("errors", case, OURS if dtype == "bf16" else OURS[1:], 1)
