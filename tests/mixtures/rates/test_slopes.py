"""Slopes: known exponents are recovered, intervals cover them, and NaN are left out."""

import numpy as np
import pytest

from sigmoid_attention.mixtures.rates.slopes import Slope, ratio, slope

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
