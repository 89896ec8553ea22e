"""Synthetic benchmark rows, with costs that a test chooses."""

from dataclasses import replace

from benchmarks.operations import OPERATIONS, Case
from benchmarks.rows import Key, Row, merged, ratio_to

STAMP = {
    "machine": {"processor": "Some Processor", "cores": 4},
    "versions": {"torch": "2.13.0"},
    "switches": {},
    "source": "0123",
    "kernel": "avx2",
    "date": "2026-01-02T03:04:05+00:00",
}


def timed_rows(case: Case, threads: int = 2, **costs: float | tuple[float, ...]) -> dict[Key, Row]:
    """A row for each peer: what one call costs, or what it cost in each round."""
    rows: dict[str, Row] = {}
    for peer, cost in costs.items():
        rounds = cost if isinstance(cost, tuple) else (cost,)
        row = Row(case, peer, threads, stamp=STAMP)
        if OPERATIONS[case.operation].quantity == "bytes":
            rows[peer] = replace(row, bytes=rounds)
        else:
            rows[peer] = replace(row, wall=rounds, cpu=rounds)
    baseline = rows.get(OPERATIONS[case.operation].baseline or "")
    ratios = {peer: ratio_to(baseline, row) if baseline else None for peer, row in rows.items()}
    return merged({}, [replace(row, ratio=ratios[peer]) for peer, row in rows.items()])
