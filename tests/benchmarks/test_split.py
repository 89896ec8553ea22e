"""The split of attention's time into matrix products and the rest, from rows."""

from benchmarks.operations import Case, flops
from benchmarks.split import split_block
from benchmarks.suites import LENGTHS
from tests.support.benchmarks.rows import timed_rows

# Flops in a second of the fastest product.
RATE = 1e9


def test_shares_are_those_of_the_times():
    product = Case("gemm", "fp32", 1024, 1024, heads=1)
    seconds = flops(product) / RATE
    rows = timed_rows(product, threads=1, onednn=seconds, mm=2 * seconds)
    for n, idle in zip(LENGTHS, (1.0, 1.5, 2.0, 4.0), strict=True):
        # Work on scores takes `idle` times as long as the products of the smaller head dim.
        small, large = (Case("forward", "fp32", n, dim) for dim in (64, 128))
        products = flops(small) / RATE
        rows |= timed_rows(small, threads=1, ours=products * (1 + idle), sdpa=10 * products)
        rows |= timed_rows(large, threads=1, ours=products * (2 + idle), sdpa=20 * products)
    lines = split_block(rows).splitlines()
    assert lines[-2:] == [
        "| forward, fp32 | sigmoid, CPU kernel | 37% (20% to 50%) | 54% (33% to 67%) "
        "| 63% (50% to 80%) |",
        "| forward, fp32 | softmax, SDPA | 10% (10% to 10%) | 10% (10% to 10%) | 0% (0% to 0%) |",
    ]


def test_without_rows_it_states_that():
    assert "Nothing has been measured" in split_block({})
