"""Targets are judged by their worst row, among the rows that exist."""

from dataclasses import replace

import pytest

from benchmarks.operations import Case
from benchmarks.rows import merged
from benchmarks.suites import CPU, Choice, chosen
from benchmarks.targets import (
    INCOMPLETE,
    MET,
    NOT_MEASURED,
    NOT_MET,
    Target,
    read_targets,
    standing,
)
from tests.support.benchmarks.rows import timed_rows

SHORT, LONG = (Case("forward", "bf16", length) for length in (1024, 8192))
TWICE = Target("twice", "ratio", ((SHORT, "ours", 2), (LONG, "ours", 2)), 2.0, at_least=True)


@pytest.mark.parametrize(
    ("short", "long", "verdict"),
    [(2.5, 2.0, MET), (2.5, 1.9, NOT_MET), (2.0, None, INCOMPLETE), (1.9, None, NOT_MET)],
    ids=["all-keep-it", "one-does-not", "one-is-missing", "one-is-missing-and-one-fails"],
)
def test_the_worst_row_decides(short, long, verdict):
    rows = timed_rows(SHORT, sdpa=short, ours=1.0) | (
        timed_rows(LONG, sdpa=long, ours=1.0) if long else {}
    )
    actual = standing(TWICE, rows)
    assert actual.verdict == verdict
    worst = min((value, case) for value, case in ((short, SHORT), (long, LONG)) if value)
    assert actual.worst == ((worst[1], "ours", 2), worst[0])


def test_rows_of_others_measure_nothing():
    rows = timed_rows(SHORT, sdpa=3.0, tiled=1.0) | timed_rows(SHORT, threads=1, sdpa=3.0, ours=1.0)
    verdict = standing(TWICE, rows)
    assert (verdict.verdict, verdict.worst, verdict.measured) == (NOT_MEASURED, None, 0)


def test_a_row_without_its_baseline_measures_nothing():
    assert standing(TWICE, timed_rows(SHORT, ours=1.0)).verdict == NOT_MEASURED


def test_a_refusal_is_a_failure():
    rows = timed_rows(SHORT, sdpa=3.0, ours=1.0) | timed_rows(LONG, sdpa=3.0, ours=1.0)
    row = replace(rows[LONG, "ours", 2], wall=(), cpu=(), ratio=None, refused="no")
    verdict = standing(TWICE, merged(rows, [row]))
    assert (verdict.verdict, verdict.measured, verdict.refused) == (NOT_MET, 1, 1)


@pytest.mark.parametrize(("share", "verdict"), [(0.9, MET), (0.8, NOT_MET)], ids=str)
def test_share_of_peak_is_of_the_fastest_product_alike(share, verdict):
    gemm, forward = Case("gemm", "bf16", 1024), Case("forward", "bf16", 512, dim=64)
    rate = 4 * 8 * 512 * 512 * 64  # forward's operations
    products = timed_rows(gemm, mm=2 * 2 * 1024**3 / rate, onednn=2 * 1024**3 / rate)
    # Faster, but of another dtype or with another number of threads.
    others = timed_rows(replace(gemm, dtype="fp32"), mm=1e-9) | timed_rows(gemm, threads=1, mm=1e-9)
    rows = products | others | timed_rows(forward, sdpa=1.0, ours=1 / share)
    target = Target("share", "share_of_peak", ((forward, "ours", 2),), 0.85, at_least=True)
    actual = standing(target, rows)
    assert actual.verdict == verdict
    assert actual.worst is not None
    assert actual.worst[1] == pytest.approx(share)


@pytest.mark.parametrize(("key_error", "verdict"), [(1.05, MET), (1.06, NOT_MET)], ids=str)
def test_error_is_compared_with_the_dense_run_part_by_part(key_error, verdict):
    case = Case("alibi-forward+backward", "fp32", 4096, mask="causal")
    rows = timed_rows(case, dense=2.0, ours=1.0)
    errors = {"dense": {"query": 1.0, "key": 1.0}, "ours": {"query": 0.5, "key": key_error}}
    rows = merged(rows, [replace(row, error=errors[row.peer]) for row in rows.values()])
    target = Target("error", "error_ratio", ((case, "ours", 2),), 1.05, at_least=False)
    assert standing(target, rows).verdict == verdict


@pytest.mark.parametrize(("extra", "verdict"), [(20, MET), (21, NOT_MET)], ids=str)
def test_memory_is_bounded_by_a_multiple_of_the_baseline(extra, verdict):
    case = Case("memory-forward", "fp32", 8192, heads=4)
    target = Target("memory", "memory", ((case, "ours", 2),), 2.0, at_least=False)
    assert standing(target, timed_rows(case, sdpa=10, ours=extra)).verdict == verdict


def test_every_target_is_measured_by_the_suite():
    tasks = {task.case: task for task in chosen(CPU, Choice(long=True))}
    targets = read_targets()
    assert len(targets) > 25
    for target in targets:
        for case, peer, _ in target.keys:
            assert peer in tasks[case].peers, (target.name, case)


def test_the_issue_s_figures():
    bounds = {target.name: (target.bound, len(target.keys)) for target in read_targets()}
    assert bounds["speed: forward causal bf16"] == (5.0, 16)
    assert bounds["decoding: bf16"] == (9.0, 16)
    assert bounds["skipping: alibi-forward+backward fp32 16384"] == (3.6, 2)
    assert bounds["headline: 65536"] == (40.0, 1)
