"""The intervals against published tables and brute force."""

import math
import random
from itertools import pairwise

import pytest

from sigmoid_attention.lab.statistics import (
    Interval,
    median_interval,
    paired_difference,
    paired_ratio,
    t_interval,
    t_quantile,
)

# Two-sided 95% and 99% points of Student's t, from the usual printed tables.
TABLE = {
    1: (12.706, 63.657),
    2: (4.303, 9.925),
    3: (3.182, 5.841),
    4: (2.776, 4.604),
    5: (2.571, 4.032),
    9: (2.262, 3.250),
    10: (2.228, 3.169),
    29: (2.045, 2.756),
    120: (1.980, 2.617),
}


@pytest.mark.parametrize("degrees", TABLE)
def test_quantiles_are_those_of_the_tables(degrees):
    at_95, at_99 = TABLE[degrees]
    assert t_quantile(degrees) == pytest.approx(at_95, abs=6e-4)
    assert t_quantile(degrees, 0.99) == pytest.approx(at_99, abs=6e-4)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("confidence", [0.2, 0.8, 0.95])
def test_a_quantile_encloses_its_share_of_the_density(degrees, confidence):
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    t, cells = t_quantile(degrees, confidence), 4000
    inside = sum(
        scale * (1 + ((i + 0.5) * t / cells) ** 2 / degrees) ** (-(degrees + 1) / 2)
        for i in range(cells)
    )
    assert 2 * inside * t / cells == pytest.approx(confidence, abs=1e-6)


@pytest.mark.parametrize(("degrees", "confidence"), [(0, 0.95), (-1, 0.95), (3, 0.0), (3, 1.0)])
def test_quantile_refuses_what_has_none(degrees, confidence):
    with pytest.raises(ValueError, match=r"degrees|confidence"):
        t_quantile(degrees, confidence)


def test_t_interval_of_a_worked_example():
    # Mean 5, s = 1, n = 5: half width 2.7764 / sqrt(5).
    values = [5 + d * math.sqrt(4 / 10) for d in (-2, -1, 0, 1, 2)]
    interval = t_interval(values)
    assert (interval.mean, interval.n) == (pytest.approx(5), 5)
    assert interval.high - interval.mean == pytest.approx(2.7764 / math.sqrt(5), abs=1e-4)
    assert interval.mean - interval.low == pytest.approx(interval.high - interval.mean)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_values_have_no_interval(n):
    interval = t_interval([1.5] * n)
    assert not interval.bounded and interval.n == n
    assert math.isnan(interval.mean) if n == 0 else interval.mean == 1.5


def test_t_interval_covers_as_often_as_it_says():
    draw = random.Random(0)
    trials = 2000
    hits = 0
    for _ in range(trials):
        interval = t_interval([draw.gauss(1.0, 3.0) for _ in range(4)])
        hits += interval.low <= 1.0 <= interval.high
    assert 0.935 < hits / trials < 0.965


def test_pairing_removes_what_the_seeds_share():
    shared = [10.0, 20.0, 30.0]
    interval = paired_difference(
        shared, [s + d for s, d in zip(shared, (1.0, 1.1, 0.9), strict=True)]
    )
    assert interval.mean == pytest.approx(1.0)
    assert interval.high - interval.low < 0.6


@pytest.mark.parametrize(("n", "rank"), [(5, None), (6, 1), (8, 1), (9, 2), (12, 3), (20, 6)])
def test_median_interval_takes_the_ranks_of_the_sign_test(n, rank):
    values = [float(v) for v in range(1, n + 1)]
    random.Random(n).shuffle(values)
    interval = median_interval(values)
    assert interval.mean == (n + 1) / 2
    if rank is None:
        assert not interval.bounded
    else:
        assert (interval.low, interval.high) == (rank, n + 1 - rank)


def test_one_interruption_does_not_move_the_median():
    assert median_interval([1.0] * 8 + [500.0]) == Interval(1.0, 1.0, 1.0, 9)


def test_ratio_is_taken_round_by_round():
    slow_rounds = [1.0, 1.0, 7.0, 1.0, 3.0, 1.0]
    assert paired_ratio(slow_rounds, [2 * s for s in slow_rounds]) == Interval(2.0, 2.0, 2.0, 6)


@pytest.mark.parametrize("paired", [paired_difference, paired_ratio])
def test_unpaired_values_are_refused(paired):
    with pytest.raises(ValueError, match="2 and 1"):
        paired([1.0, 2.0], [1.0])


def test_quantiles_fall_with_the_degrees():
    assert all(a > b for a, b in pairwise(t_quantile(d) for d in range(1, 30)))
