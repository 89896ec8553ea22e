"""The rule for verdicts: each clause, in order."""

from dataclasses import replace

import pytest

from sigmoid_attention.mixtures.rates import verdict
from sigmoid_attention.mixtures.rates.slopes import Slope
from sigmoid_attention.mixtures.rates.verdict import RateEvidence, judge

GOOD = RateEvidence(
    claim=-0.25,
    early=Slope(-0.27, -0.33, -0.20),
    late=Slope(-0.25, -0.28, -0.22),
    missing=0,
    noiseless=0.01,
    far_start=Slope(1.1, 0.9, 1.3),
    counted=0.95,
    gain=12.2,
    gain_error=0.4,
    free=12,
    continuous=1.05,
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    (
        ({}, verdict.REPRODUCED),
        ({"claim": -0.5}, verdict.NOT_REPRODUCED),
        # Intervals are close to the claim, not only around it.
        ({"claim": -0.29}, verdict.REPRODUCED),
        ({"claim": -0.34}, verdict.NOT_REPRODUCED),
        ({"missing": 1}, verdict.NOT_IDENTIFIABLE),
        ({"noiseless": 0.5}, verdict.DEPENDS_ON_THE_START),
        ({"noiseless": float("nan"), "counted": 0.0}, verdict.UNDECIDED),
        ({"far_start": Slope(5.0, 2.5, 9.0)}, verdict.DEPENDS_ON_THE_START),
        ({"far_start": Slope(5.0, 1.5, 9.0)}, verdict.REPRODUCED),
        ({"counted": 0.7}, verdict.UNDECIDED),
        ({"gain": 10.5}, verdict.UNDECIDED),
        ({"gain": -3.0}, verdict.UNDECIDED),
        ({"gain": 13.5, "gain_error": 0.6}, verdict.REPRODUCED),
        ({"continuous": 1.6}, verdict.UNDECIDED),
        ({"continuous": 0.6}, verdict.UNDECIDED),
        ({"late": Slope(-0.25, -0.5, -0.1)}, verdict.UNDECIDED),
        # Between two rates a slope tells nothing.
        ({"late": Slope(-0.14, -0.22, -0.04)}, verdict.UNDECIDED),
        ({"late": Slope(-0.14, -0.22, -0.06)}, verdict.REPRODUCED),
        ({"far_start": Slope(float("nan"), float("nan"), float("nan"))}, verdict.REPRODUCED),
        ({"early": Slope(-0.5, -0.55, -0.45)}, verdict.PRE_ASYMPTOTIC),
        # The order: a claim on what cannot be seen is not judged by its slope.
        ({"missing": 2, "noiseless": 0.9, "counted": 0.1}, verdict.NOT_IDENTIFIABLE),
        ({"noiseless": 0.9, "counted": 0.1}, verdict.DEPENDS_ON_THE_START),
    ),
)
def test_verdicts_follow_from_evidence(changes, expected):
    actual, because = judge(replace(GOOD, **changes))
    assert actual == expected
    assert actual in verdict.VERDICTS and because


def test_the_rule_in_words_names_every_verdict():
    assert all(name in verdict.RULE for name in verdict.VERDICTS)
