"""Curves by seed: equal bins, means over the steps of all seeds, and gaps paired by seed."""

import pytest

from sigmoid_attention.report.comparison_values import (
    ComparisonValues,
    Value,
    curve_differences,
    curves,
    mean_curve,
)
from tests.support.studies.synthetic_comparison import synthetic_comparison


def run(seed: int, steps: int, height: float) -> list[Value]:
    return [Value(seed, step, -1, -1, height + step) for step in range(steps)]


@pytest.mark.parametrize(("steps", "bins"), [(7, 3), (80, 80), (1, 5), (401, 80)], ids=str)
def test_bins_average_neighbouring_steps(steps, bins):
    curve = curves(run(0, steps, 2.0), bins=bins)[0]
    assert len(curve) <= bins
    # A line stays the same line when stretches of it are averaged.
    assert all(y == pytest.approx(x + 2.0) for x, y in curve)


def test_the_mean_ends_where_the_first_seed_ends():
    of = curves(run(0, 9, 0.0) + run(1, 5, 1.0), bins=99)
    assert mean_curve(of) == tuple((float(x), x + 0.5) for x in range(5))


def test_gaps_pair_by_seed():
    sigmoid = curves(run(0, 4, 1.0) + run(2, 4, 3.0), bins=99)
    softmax = curves(run(2, 3, 0.5) + run(5, 4, 0.0), bins=99)
    assert curve_differences(sigmoid, softmax) == {2: ((0.0, 2.5), (1.0, 2.5), (2.0, 2.5))}


def test_means_are_those_of_the_summary_where_it_has_them():
    measured = ComparisonValues(synthetic_comparison())
    means = measured.means("operator_training_seconds", "sigmoid")
    assert list(means) == [256, 512, 1024, 2048, 4096]
    assert means[1024] == measured.intervals("operator_training_seconds", 1024)["sigmoid"].mean
