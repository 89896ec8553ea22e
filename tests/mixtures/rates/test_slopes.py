"""Slopes: known exponents are recovered, intervals cover them, and NaN are left out."""

import numpy as np
import pytest

from sigmoid_attention.mixtures.rates.slopes import (
    Slope,
    factor_over_truths,
    over_truths,
    ratio,
    slope,
    slopes_of_truths,
)

SIZES = [10**i for i in range(2, 8)]


def losses(exponent: float, spread: float, replicates: int, seed: int, truths: int = 1):
    rng = np.random.default_rng(seed)
    level = np.array(SIZES, float) ** exponent
    noise = np.exp(spread * rng.standard_normal((truths, len(SIZES), replicates)))
    return level[:, None] * noise * rng.uniform(0.1, 10, (truths, 1, 1))


@pytest.mark.parametrize("statistic", ("median", "mean"))
@pytest.mark.parametrize("exponent", (-0.5, -0.25, 0.0))
def test_a_power_law_is_recovered_at_every_level(exponent, statistic):
    fitted = slope(SIZES, losses(exponent, 0.0, 5, 0, truths=3), statistic=statistic)
    assert np.allclose([fitted.value, fitted.low, fitted.high], exponent)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    inside = [
        slope(SIZES, losses(-0.5, 0.5, 20, seed), draws=200).near(-0.5) for seed in range(100)
    ]
    assert 85 <= sum(inside) <= 100


def truths_that_differ(seed: int, between: float, truths: int = 8, replicates: int = 10):
    """Losses (T, N, R) whose exponents are normal about -1/4, as those of random truths."""
    rng = np.random.default_rng(seed)
    exponents = rng.normal(-0.25, between, (truths, 1, 1))
    level = np.array(SIZES, float)[:, None] ** exponents
    return level * np.exp(0.8 * rng.standard_normal((truths, len(SIZES), replicates)))


@pytest.mark.parametrize("between", (0.0, 0.09))
def test_intervals_cover_the_mean_over_all_truths_and_not_only_over_those_drawn(between):
    fitted = [slope(SIZES, truths_that_differ(s, between), draws=2) for s in range(400)]
    inside = np.mean([each.near(-0.25) for each in fitted])
    # The standard error of this share is 0.011.
    assert 0.92 <= inside <= 0.98
    spread = np.median([each.spread for each in fitted])
    assert (spread > 0.08) == (between > 0)


def test_the_spread_of_truths_is_told_from_that_of_replicates():
    alike, apart = (
        slope(SIZES, truths_that_differ(3, between, truths=40)) for between in (0.0, 0.2)
    )
    assert alike.truths == apart.truths == 40
    assert alike.spread == pytest.approx(alike.noise, rel=0.3)
    assert apart.spread > 3 * apart.noise and apart.noise == pytest.approx(alike.noise, rel=0.3)


def test_slopes_of_truths_average_to_the_slope():
    values = truths_that_differ(0, 0.1)
    assert slopes_of_truths(SIZES, values).mean() == pytest.approx(slope(SIZES, values).value)


def test_an_interval_over_truths_is_student_s():
    # Of n values with t the quantile of n - 1 degrees: 2.776 for five.
    values = [1.0, 2.0, 3.0, 4.0, 5.0, np.nan]
    measured = over_truths(values)
    half = 2.7764 * np.sqrt(2.5) / np.sqrt(5)
    assert (measured.value, measured.truths) == (3.0, 5)
    assert (measured.low, measured.high) == pytest.approx((3 - half, 3 + half), abs=1e-3)
    assert str(over_truths([1.0, 2.0])) == "+1.50 (no interval)"
    assert np.isnan(over_truths([]).value)


def test_a_factor_over_truths_is_a_geometric_mean():
    measured = factor_over_truths([0.5, 1.0, 2.0, 4.0, 0.25])
    assert measured.value == pytest.approx(1.0)
    assert measured.low == pytest.approx(1 / measured.high)


def test_a_median_is_not_moved_by_one_escaped_fit_as_a_mean_is():
    values = losses(-0.5, 0.1, 21, 3)
    values[0, -1, 0] = 1e9
    assert abs(slope(SIZES, values).value + 0.5) < 0.05
    assert slope(SIZES, values, statistic="mean").value > 0.5


def test_fits_that_did_not_converge_are_left_out():
    values = losses(-0.5, 0.0, 6, 0)
    values[0, :, ::2] = np.nan
    assert np.isclose(slope(SIZES, values).value, -0.5)
    values[0, 2] = np.nan
    assert np.isclose(slope(SIZES, values).value, -0.5)


def test_a_size_at_which_nothing_converged_is_no_point_and_none_at_all_is_no_slope():
    values = losses(-0.5, 0.0, 6, 0)
    values[0, 1:] = np.nan
    assert str(slope(SIZES, values)) == "no slope"


def test_a_ratio_is_of_medians_and_has_an_interval():
    rng = np.random.default_rng(0)
    first, second = rng.lognormal(0, 0.2, 60), 3 * rng.lognormal(0, 0.2, 60)
    measured = ratio(first, second)
    assert measured.low < 3 < measured.high and measured.low > 2.5 and measured.high < 3.6


def test_distances_of_intervals():
    assert Slope(-0.5, -0.6, -0.4).apart(Slope(-0.2, -0.3, -0.1)) == pytest.approx(0.1)
    assert Slope(-0.5, -0.6, -0.4).apart(Slope(-0.4, -0.5, -0.3)) == 0
    assert Slope(-0.5, -0.6, -0.4).near(-0.37, margin=0.05)
    assert not Slope(-0.5, -0.6, -0.4).near(-0.37)


def test_an_interval_is_within_a_margin_or_outside_it_or_neither():
    measured = Slope(-0.3, -0.34, -0.26)
    assert measured.within(-0.25, 0.1) and not measured.outside(-0.25, 0.1)
    assert measured.outside(-0.5, 0.1) and measured.outside(0.0, 0.1)
    assert not measured.within(-0.2, 0.1) and not measured.outside(-0.2, 0.1)
    # An interval that is not known is neither.
    unknown = Slope(-0.3, np.nan, np.nan)
    assert not unknown.within(-0.3, 1.0) and not unknown.outside(0.5, 0.1)


@pytest.mark.parametrize(
    ("sizes", "shape", "statistic", "message"),
    (
        ([10], (1, 5), "median", "2 sizes or more"),
        ([10, 100], (3, 5), "median", r"got \(1, 3, 5\)"),
        ([10, 100], (2, 5), "mode", "statistic must be one of median, mean"),
    ),
)
def test_bad_input_gives_one_sentence(sizes, shape, statistic, message):
    with pytest.raises(ValueError, match=message):
        slope(sizes, np.ones(shape), statistic=statistic)
