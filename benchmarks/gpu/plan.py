"""What is measured, in the order of its importance: what time is left for comes last.

A unit is what the measuring process is asked for at once: a case with its peers, or a group of
readings. Lengths and head dims are those of the papers' charts: 16384 tokens in all, 2048 columns.
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
# The goals' own, then what is left. Of triton-sigmoid's choices one holds for 2048 and 1024.
LONG, SHORT, OTHERS = (16384,), (2048, 1024, 512), (8192, 4096)
ERROR_LENGTHS = (512, 32768, 131072, 8192, 2048, 128)
ALIBI_LENGTHS, ALIBI_HEADS = (4096, 16384, 65536), 16
CACHE, BATCHES = 32768, (1, 64, 8, 2, 4, 16, 32)
PAGE = 16
# Odd sizes, where a block is never full; gluon takes 128 and 64 alone.
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
# What no kernel needs at 512 tokens. One that hangs is seen here, before it can cost much.
PROBE_PATIENCE = 30.0
# triton-sigmoid compiles and tries 48 configurations of a pass the first time that it sees a head
# dim, a mask and a range of lengths: up to so many seconds, and nothing is said meanwhile.
TUNING_SECONDS = {"forward": 20, "backward": 40}
TUNING_PATIENCE = 150.0


@dataclass(frozen=True)
class Unit:
    """What to measure at once, and a guess at its seconds, compilers included."""

    kind: str
    case: Case | None
    peers: tuple[str, ...]
    seconds: float
    reading: str = ""
    # Measured in the same rounds, so that peers can be compared with them; not kept.
    beside: tuple[str, ...] = ()
    # Seconds without an answer until it is taken to hang; the driver's own where None.
    patience: float | None = None

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
    found = dict.fromkeys(unit for unit in _all() if unit.kind in kinds)
    return list(found)


def cases(operation: str) -> list[Case]:
    """The cases of one operation, in the order of the plan."""
    found = (u.case for u in units() if u.case and u.case.operation == operation)
    return list(dict.fromkeys(found))


def _all() -> Iterator[Unit]:
    yield Unit("speed", Case("gemm", "bf16", 8192, 8192, heads=1), ("mm",), 5)
    yield Unit("speed", Case("copy", "bf16", 2**31, heads=1), ("copy",), 3)
    for reading in READINGS:
        yield Unit("readings", None, (), 6, reading)
    yield from _probes()
    yield from _errors_by_length(OURS, 3)
    # The goals, as far as they need nobody who compiles for long.
    yield from _attention(LONG, (*OURS, *SOFTMAX), 6)
    yield from _alibi()
    yield from _decoding(BATCHES[:2])
    yield from _attention(SHORT, (*OURS, *SOFTMAX), 5)
    yield from _decoding(BATCHES[2:])
    # What does, beside ours in rounds of its own.
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
    """triton-sigmoid: what it chooses for the longest of a range it keeps for the others."""
    seen = set()
    for case in _attention_cases(lengths):
        choice = case.operation, case.dim, case.mask, _range(case.length)
        seconds = 4 if choice in seen else TUNING_SECONDS[case.operation]
        seen.add(choice)
        yield Unit(
            "speed", case, ("triton-sigmoid",), seconds, beside=OURS, patience=TUNING_PATIENCE
        )


def _range(length: int) -> int:
    """The lengths for which triton-sigmoid chooses once are those up to this one."""
    return next(end for end in (512, 2048, 8192, 16384) if length <= end)


def _decoding(batches: tuple[int, ...]) -> Iterator[Unit]:
    for batch in batches:
        case = Case("decode", "bf16", CACHE, 128, "full", heads=32, batch=batch, key_heads=8)
        yield Unit("speed", case, (*OURS, *SOFTMAX), 4)


def _alibi() -> Iterator[Unit]:
    """Softmax has no slopes here: dense and causal, as fast as it gets."""
    for length in ALIBI_LENGTHS:
        yield Unit("errors", alibi_error(length), OURS, 5)
        for operation in ("alibi-forward", "alibi-backward"):
            case = Case(operation, "bf16", length, 128, "causal", heads=ALIBI_HEADS)
            yield Unit("speed", case, (*OURS, *SOFTMAX), 6)


def alibi_error(length: int) -> Case:
    """The error of what is timed under ALiBi."""
    return Case("error", "bf16", length, 128, "causal", heads=ALIBI_HEADS, feature="bounded alibi")


def _probes() -> Iterator[Unit]:
    """One short call of each kernel, forward and backward: the first ones of the errors."""
    for case in _error_cases(DIMS, MASKS):
        for peer in OURS if case.length == ERROR_LENGTHS[0] else ():
            yield Unit("errors", case, (peer,), 8, patience=PROBE_PATIENCE)


def _errors_by_length(
    peers: tuple[str, ...],
    seconds: float,
    dims: tuple[int, ...] = DIMS,
    masks: tuple[str, ...] = MASKS,
) -> Iterator[Unit]:
    for case in _error_cases(dims, masks):
        if peers != OURS or case.length != ERROR_LENGTHS[0]:
            yield Unit("errors", case, peers, seconds, patience=_patience(peers))


def _patience(peers: tuple[str, ...]) -> float | None:
    return TUNING_PATIENCE if "triton-sigmoid" in peers else None


def _error_cases(dims: tuple[int, ...], masks: tuple[str, ...]) -> Iterator[Case]:
    for length, dim, mask in product(ERROR_LENGTHS, dims, masks):
        # A short row holds little chance to err: as many of them as make up for it.
        batch = max(1, min(4096 // length, 8))
        yield Case("error", "bf16", length, dim, mask, heads=2, batch=batch)


def _errors_by_feature() -> Iterator[Unit]:
    for (dtype, dim, peers), feature in product(FEATURES_OF, FEATURES):
        if feature:
            case = Case(
                "error", dtype, FEATURE_LENGTH, dim, "causal", heads=4, batch=2, key_heads=2,
                feature=feature,
            )  # fmt: skip
            # What gluon does not take is refused, and refusals are rows, too.
            yield Unit("errors", case, peers, 4)
