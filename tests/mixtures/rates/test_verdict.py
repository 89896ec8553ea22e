"""The rule for verdicts: each clause, in order."""

from dataclasses import replace

import pytest

from sigmoid_attention.mixtures.rates import verdict
from sigmoid_attention.mixtures.rates.slopes import Slope
from sigmoid_attention.mixtures.rates.verdict import RateEvidence, against, judge

NAN = float("nan")
GOOD = RateEvidence(
    claim=-0.25,
    early=Slope(-0.27, -0.33, -0.20),
    late=Slope(-0.25, -0.28, -0.22),
    moved=Slope(0.02, -0.06, 0.10),
    missing=0,
    noiseless=Slope(0.01, 0.0, 0.02),
    far_start=Slope(1.1, 0.9, 1.3),
    counted=0.95,
    at_box=0.1,
    gain=Slope(11.3, 10.4, 12.3),
    free=12,
    continuous=Slope(1.05, 0.9, 1.2),
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    (
        ({}, verdict.REPRODUCED),
        ({"claim": -0.5}, verdict.NOT_REPRODUCED),
        # The whole interval counts, and not its middle or its nearer end.
        ({"claim": -0.30}, verdict.REPRODUCED),
        ({"claim": -0.34}, verdict.UNDECIDED),
        ({"late": Slope(-0.25, -0.36, -0.14)}, verdict.UNDECIDED),
        ({"late": Slope(-0.14, -0.22, -0.04)}, verdict.UNDECIDED),
        ({"late": Slope(-0.6, -0.8, -0.4)}, verdict.NOT_REPRODUCED),
        ({"missing": 1}, verdict.NOT_IDENTIFIABLE),
        ({"noiseless": Slope(0.6, 0.4, 0.8)}, verdict.DEPENDS_ON_THE_START),
        ({"far_start": Slope(5.0, 2.5, 9.0)}, verdict.DEPENDS_ON_THE_START),
        ({"counted": 0.7}, verdict.UNDECIDED),
        ({"at_box": 0.3}, verdict.UNDECIDED),
        ({"gain": Slope(9.0, 8.5, 9.5)}, verdict.UNDECIDED),
        ({"gain": Slope(-3.0, -4.0, -2.0)}, verdict.UNDECIDED),
        ({"continuous": Slope(1.6, 1.5, 1.7)}, verdict.UNDECIDED),
        ({"continuous": Slope(0.6, 0.55, 0.65)}, verdict.UNDECIDED),
        ({"moved": Slope(-0.3, -0.4, -0.2)}, verdict.PRE_ASYMPTOTIC),
        # The order: a claim on what cannot be seen is not judged by its slope.
        ({"missing": 2, "noiseless": Slope(0.9, 0.8, 1.0)}, verdict.NOT_IDENTIFIABLE),
        ({"noiseless": Slope(0.9, 0.8, 1.0), "counted": 0.1}, verdict.DEPENDS_ON_THE_START),
    ),
)
def test_verdicts_follow_from_evidence(changes, expected):
    actual, because = judge(replace(GOOD, **changes))
    assert actual == expected
    assert actual in verdict.VERDICTS and because


@pytest.mark.parametrize("control", ("noiseless", "far_start", "gain", "continuous"))
@pytest.mark.parametrize("width", (1e3, NAN), ids=("huge", "unknown"))
def test_no_control_passes_because_its_error_is_huge(control, width):
    value = getattr(GOOD, control).value
    wide = replace(GOOD, **{control: Slope(value, value - width, value + width)})
    assert judge(wide)[0] == verdict.UNDECIDED


def test_the_gain_of_the_page_that_once_passed_does_not():
    """A mean of -14921 with a standard error of 14934, of 12 parameters."""
    slipped = replace(GOOD, gain=Slope(-14921.5, -14921.5 - 29868, -14921.5 + 29868))
    assert judge(slipped)[0] == verdict.UNDECIDED


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    (
        (-0.35, -0.15, verdict.REPRODUCED),
        (-0.36, -0.2, verdict.UNDECIDED),
        (-0.5, -0.36, verdict.NOT_REPRODUCED),
        (-0.14, 0.5, verdict.NOT_REPRODUCED),
        (-1.0, 0.5, verdict.UNDECIDED),
        (NAN, NAN, verdict.UNDECIDED),
    ),
)
def test_a_slope_is_held_to_the_margin_on_either_side(low, high, expected):
    assert against(Slope((low + high) / 2, low, high), -0.25)[0] == expected


def test_the_rule_in_words_names_every_verdict():
    assert all(name in verdict.RULE for name in verdict.VERDICTS)
