"""The time of attention split into matrix products and the rest, from measured rows.

Two splits, since a kernel cannot be timed in parts from outside. "at the product's rate" is the
time of the matrix products at the rate of the fastest matrix product, over the measured time.
"not with D" is the part of the time that a head dim of 128 in place of 64 does not double:
2 - t(128) / t(64), as the matrix products double and work on scores stays.
"""

from collections.abc import Iterable
from statistics import median

from benchmarks.operations import Case
from benchmarks.rows import Key, Row
from benchmarks.suites import HALVES, LENGTHS, TRAINED
from benchmarks.targets import OURS, share_of_peak
from sigmoid_attention.report.format import token_count

BASELINE = "sdpa"
NAMES = {OURS: "sigmoid, CPU kernel", BASELINE: "softmax, SDPA"}
SMALL, LARGE = 64, 128
ONE_THREAD = 1


def split_block(rows: dict[Key, Row]) -> str:
    """The splits as Markdown: medians over lengths, with the least and the largest."""
    lines = [
        f"| {operation.replace('+', ' + ')}, {dtype} | {NAMES[peer]} | {' | '.join(cells)} |"
        for operation in TRAINED
        for dtype in HALVES
        for peer in NAMES
        if (cells := _cells(rows, operation, dtype, peer))
    ]
    if not lines:
        return "Nothing has been measured yet; `make bench-cpu` does."
    heads = f"products at the product's rate, D = {SMALL}", f"D = {LARGE}", "time not with D"
    return "\n".join(
        [
            f"Shares of the time of one thread, without a mask, n = {token_count(LENGTHS[0])} to "
            f"{token_count(LENGTHS[-1])}: the median over lengths, with the least and the largest.",
            "",
            f"| pass | kernel | {' | '.join(heads)} |",
            "|---" * (2 + len(heads)) + "|",
            *lines,
        ]
    )


def _cells(rows: dict[Key, Row], operation: str, dtype: str, peer: str) -> list[str]:
    pairs = [
        (small, large)
        for n in LENGTHS
        if (small := rows.get((Case(operation, dtype, n, SMALL), peer, ONE_THREAD)))
        and (large := rows.get((Case(operation, dtype, n, LARGE), peer, ONE_THREAD)))
        and not (small.refused or large.refused)
    ]
    if not pairs:
        return []
    at_rate = ([share_of_peak(row, rows) for row in of_dim] for of_dim in zip(*pairs, strict=True))
    fixed = [2 - large.cost / small.cost for small, large in pairs]
    return [*map(_spread, at_rate), _spread(fixed)]


def _spread(shares: Iterable[float | None]) -> str:
    known = [share for share in shares if share is not None]
    if not known:
        return "–"
    return f"{median(known):.0%} ({min(known):.0%} to {max(known):.0%})"
