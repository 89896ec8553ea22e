"""The plan: what is measured on a GPU, the most important first, as the time may not suffice.

A unit is what the worker measures at once: a case with its peers, or a group of readings. Lengths
and head dims are those of the papers' charts: 16384 tokens in all, 2048 columns.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from benchmarks.gpu.errors import FEATURES
from benchmarks.gpu.peers import OURS, SOFTMAX
from benchmarks.gpu.readings import READINGS
from benchmarks.operations import MASKS, Case

TOKENS, COLUMNS = 16384, 2048
DIMS = (128, 64)
# Lengths of the targets, then the others. triton-sigmoid tunes once for both 2048 and 1024.
LONG, SHORT, OTHERS = (16384,), (2048, 1024, 512), (8192, 4096)
ERROR_LENGTHS = (512, 32768, 131072, 8192, 2048, 128)
ALIBI_LENGTHS, ALIBI_HEADS = (4096, 16384, 65536), 16
CACHE, BATCHES = 32768, (1, 64, 8, 2, 4, 16, 32)
PAGE = 16
# Odd sizes, where a block is never full; gluon supports only 128 and 64.
FEATURE_LENGTH = 1003
FEATURES_OF = (
    ("bf16", 128, OURS),
    ("bf16", 64, ("gluon",)),
    ("bf16", 80, ("triton",)),
    ("bf16", 256, ("triton",)),
    ("fp16", 80, ("triton",)),
    ("fp16", 64, ("gluon",)),
    ("fp32", 80, ("triton",)),
)
KINDS = ("readings", "errors", "speed")
# Seconds; more than any kernel needs at 512 tokens. A kernel that hangs is found early.
PROBE_TIMEOUT = 30.0
# triton-sigmoid compiles and tries 48 configurations of a pass the first time that it sees a head
# dim, a mask and a range of lengths: it takes up to this many seconds without a message.
TUNING_SECONDS = {"forward": 20, "backward": 40}
TUNING_TIMEOUT = 150.0


@dataclass(frozen=True)
class Unit:
    """What to measure at once, and an estimate of its seconds, compilation included."""

    kind: str
    case: Case | None
    peers: tuple[str, ...]
    seconds: float
    reading: str = ""
    # Peers measured in the same rounds for comparison; their rows are not kept.
    beside: tuple[str, ...] = ()
    # Seconds without a message until the worker is killed; by default those of the driver.
    timeout: float | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.case or self.reading}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Unit":
        case = values["case"] and Case(**values["case"])
        peers, beside = (tuple(values[name]) for name in ("peers", "beside"))
        return cls(**values | {"case": case, "peers": peers, "beside": beside})


def units(kinds: tuple[str, ...] = KINDS) -> list[Unit]:
    """The units of these kinds, each once."""
    return list(dict.fromkeys(unit for unit in _all() if unit.kind in kinds))


def cases(operation: str) -> list[Case]:
    """The cases of one operation, in the order of the plan."""
    of_operation = (u.case for u in units() if u.case and u.case.operation == operation)
    return list(dict.fromkeys(of_operation))


def _all() -> Iterator[Unit]:
    yield Unit("speed", Case("gemm", "bf16", 8192, 8192, heads=1), ("mm",), 5)
    yield Unit("speed", Case("copy", "bf16", 2**31, heads=1), ("copy",), 3)
    for reading in READINGS:
        yield Unit("readings", None, (), 6, reading)
    yield from _probes()
    yield from _errors_by_length(OURS, 3)
    # The targets whose peers compile quickly.
    yield from _attention(LONG, (*OURS, *SOFTMAX), 6)
    yield from _alibi()
    yield from _decoding(BATCHES[:2])
    yield from _attention(SHORT, (*OURS, *SOFTMAX), 5)
    yield from _decoding(BATCHES[2:])
    # Peers that compile for long, with our operators in rounds of their own.
    yield from _tuned(SHORT)
    yield from _tuned(LONG)
    yield from _beside_ours(LONG, ("flex-sigmoid", "flash-sigmoid"), 12)
    yield from _errors_by_feature()
    yield from _errors_by_length(("triton-sigmoid", "flash-sigmoid"), 15)
    yield from _errors_by_length(("flex-sigmoid",), 8, dims=(64,), masks=("full",))
    yield from _attention(OTHERS, (*OURS, *SOFTMAX), 5)
    yield from _tuned(OTHERS)
    for batch in BATCHES[:3]:
        case = Case("decode", "bf16", CACHE, 128, "full", 32, batch, 8, f"paged {PAGE}")
        yield Unit("speed", case, OURS, 3)
    yield from _beside_ours(SHORT, ("flex-sigmoid", "flash-sigmoid"), 12)


def _attention_cases(lengths: tuple[int, ...]) -> Iterator[Case]:
    for length, dim, mask, operation in product(lengths, DIMS, MASKS, ("forward", "backward")):
        yield Case(
            operation, "bf16", length, dim, mask, heads=COLUMNS // dim, batch=TOKENS // length
        )


def _attention(lengths: tuple[int, ...], peers: tuple[str, ...], seconds: float) -> Iterator[Unit]:
    for case in _attention_cases(lengths):
        yield Unit("speed", case, peers, seconds)


def _beside_ours(
    lengths: tuple[int, ...], peers: tuple[str, ...], seconds: float
) -> Iterator[Unit]:
    for case in _attention_cases(lengths):
        yield Unit("speed", case, peers, seconds, beside=OURS)


def _tuned(lengths: tuple[int, ...]) -> Iterator[Unit]:
    """triton-sigmoid: what it tunes for the longest of a range of lengths holds for the others."""
    seen = set()
    for case in _attention_cases(lengths):
        choice = case.operation, case.dim, case.mask, _range(case.length)
        seconds = 4 if choice in seen else TUNING_SECONDS[case.operation]
        seen.add(choice)
        yield Unit("speed", case, ("triton-sigmoid",), seconds, beside=OURS, timeout=TUNING_TIMEOUT)


def _range(length: int) -> int:
    """The lengths for which triton-sigmoid chooses once are those up to this one."""
    return next(end for end in (512, 2048, 8192, 16384) if length <= end)


def _decoding(batches: tuple[int, ...]) -> Iterator[Unit]:
    for batch in batches:
        case = Case("decode", "bf16", CACHE, 128, "full", heads=32, batch=batch, key_heads=8)
        yield Unit("speed", case, (*OURS, *SOFTMAX), 4)


def _alibi() -> Iterator[Unit]:
    """ALiBi; the softmax peers run without slopes, dense and causal, which is faster."""
    for length in ALIBI_LENGTHS:
        yield Unit("errors", alibi_error(length), OURS, 5)
        for operation in ("alibi-forward", "alibi-backward"):
            case = Case(operation, "bf16", length, 128, "causal", heads=ALIBI_HEADS)
            yield Unit("speed", case, (*OURS, *SOFTMAX), 6)


def alibi_error(length: int) -> Case:
    """The case that measures the error of what is timed under ALiBi."""
    return Case("error", "bf16", length, 128, "causal", heads=ALIBI_HEADS, feature="bounded alibi")


def _probes() -> Iterator[Unit]:
    """One short call of each kernel, forward and backward: the first ones of the errors."""
    for case in _error_cases(DIMS, MASKS):
        for peer in OURS if case.length == ERROR_LENGTHS[0] else ():
            yield Unit("errors", case, (peer,), 8, timeout=PROBE_TIMEOUT)


def _errors_by_length(
    peers: tuple[str, ...],
    seconds: float,
    dims: tuple[int, ...] = DIMS,
    masks: tuple[str, ...] = MASKS,
) -> Iterator[Unit]:
    for case in _error_cases(dims, masks):
        if peers != OURS or case.length != ERROR_LENGTHS[0]:
            yield Unit("errors", case, peers, seconds, timeout=_timeout(peers))


def _timeout(peers: tuple[str, ...]) -> float | None:
    return TUNING_TIMEOUT if "triton-sigmoid" in peers else None


def _error_cases(dims: tuple[int, ...], masks: tuple[str, ...]) -> Iterator[Case]:
    for length, dim, mask in product(ERROR_LENGTHS, dims, masks):
        # More rows where they are short, as the largest error of few would be small by chance.
        batch = max(1, min(4096 // length, 8))
        yield Case("error", "bf16", length, dim, mask, heads=2, batch=batch)


def _errors_by_feature() -> Iterator[Unit]:
    for (dtype, dim, peers), feature in product(FEATURES_OF, FEATURES):
        if feature:
            case = Case(
                "error", dtype, FEATURE_LENGTH, dim, "causal", heads=4, batch=2, key_heads=2,
                feature=feature,
            )  # fmt: skip
            # Gluon refuses some features; a refusal is a row as well.
            yield Unit("errors", case, peers, 4)
