"""The power of the rule: against the law of Student's test, and monotone where it must be."""

import numpy as np
import pytest
import scipy

from sigmoid_attention.mixtures.rates.power import OFFSETS, by_chance, chances, power_sentence
from sigmoid_attention.mixtures.rates.slopes import Slope
from sigmoid_attention.mixtures.rates.verdict import MARGIN, NOT_REPRODUCED, REPRODUCED, UNDECIDED


@pytest.mark.parametrize("offset", (0.0, 0.05, 0.25))
@pytest.mark.parametrize(("spread", "truths"), ((0.05, 8), (0.1, 16)))
def test_chances_are_those_of_the_noncentral_t(offset, spread, truths):
    said = chances(offset, spread, truths)
    # All of the interval above the margin: T (mean - margin) / s above the quantile of t.
    shift = (offset - MARGIN) * np.sqrt(truths) / spread
    quantile = scipy.stats.t.ppf(0.975, truths - 1)
    above = scipy.stats.nct.sf(quantile, truths - 1, shift)
    assert said[NOT_REPRODUCED] == pytest.approx(above, abs=0.04)
    assert sum(said.values()) == pytest.approx(1)


def test_the_rule_errs_at_the_margin_no_more_often_than_its_intervals_do():
    for spread in (0.02, 0.1):
        assert 0 < by_chance(Slope(0, 0, 0, spread, 0.0, 8)) < 0.035
    assert by_chance(Slope(0, 0, 0)) is None


def test_what_is_farther_away_is_reproduced_less_often():
    said = [chances(offset, 0.05, 8)[REPRODUCED] for offset in OFFSETS]
    assert said == sorted(said, reverse=True) and said[0] > 0.9 and said[-1] == 0
    assert chances(0.0, 0.3, 8)[UNDECIDED] > 0.95


def test_the_sentence_names_the_spread_and_the_numbers_of_truths():
    slopes = [Slope(0, 0, 0, 0.1, 0.06, 8), Slope(0, 0, 0, 0.12, 0.08, 16)]
    text = power_sentence(slopes)
    assert "spread by 0.11" in text and "make 0.07" in text
    assert "with 8 truths" in text and "with 16 truths" in text
    assert power_sentence([Slope(0, 0, 0)]) == ""
