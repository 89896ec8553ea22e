"""The comparison on the same truths: floors, needed samples, and the rule on synthetic rows."""

import math

import numpy as np
import pytest

from sigmoid_attention.lab.study import Measured, Row
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from sigmoid_attention.studies.mixtures.same_truth import (
    FITS,
    NEITHER,
    SIGMA,
    STUDY,
    TARGETS,
    SameTruthSetting,
    SampleRatio,
    judge,
    measure,
    needed_ratios,
    samples_needed,
    verdict_of,
)
from sigmoid_attention.studies.mixtures.truths import HELD_OUT

SIZES = tuple(round(10 ** (2 + i)) for i in range(5))


def small(gate: str, **changes) -> Measured:
    setting = dict(sizes=(1000, 100_000), replicates=6, candidates=8, starts=1) | changes
    return Measured(list(measure(SameTruthSetting(gate, **setting))))


def synthetic_run(gate_scales: dict[str, float], floors: dict[str, float]) -> Measured:
    """Errors of scale * n^-1/2 above a floor, as a truth's task would have found them."""
    rng = np.random.default_rng(0)
    rows = [Row(f"floor {gate}", floor) for gate, floor in floors.items()]
    for gate, scale in gate_scales.items():
        for n in SIZES:
            for replicate in range(20):
                noisy = scale * n**-0.5 * math.exp(0.1 * rng.standard_normal())
                rows.append(Row(f"L2 {gate}", math.hypot(noisy, floors[gate]), n, replicate))
    return Measured(rows)


@pytest.mark.parametrize("gate", FITS)
def test_a_family_expresses_truths_of_its_own_gate(gate):
    measured = small(gate)
    same_gate, other = (
        measured.values(f"floor {gate}")[0],
        measured.values(f"floor {FITS[gate == FITS[0]]}")[0],
    )
    assert same_gate < 1e-6 < 1e-4 < other
    sizes, errors = measured.grid(f"L2 {gate}")
    # Of the error the parameters and nothing else: sigma sqrt(P / n), P of 12 to 15.
    expected = SIGMA * np.sqrt(13.5 / sizes)
    assert (abs(np.log(np.nanmedian(errors, axis=1) / expected)) < 0.35).all()


def test_two_softmax_experts_are_two_sigmoid_ones():
    measured = small("softmax", k=2, sizes=(1000,), truth_seed=1)
    assert measured.values("floor sigmoid")[0] < 1e-5
    assert small("sigmoid", k=2, sizes=(1000,)).values("floor softmax")[0] > 1e-3


def test_a_third_gate_is_expressed_by_neither():
    measured = small(NEITHER, sizes=(1000,))
    assert min(measured.values(f"floor {gate}")[0] for gate in FITS) > 1e-4


def test_samples_are_counted_from_where_the_error_stays_below():
    sizes = np.array([1e2, 1e3, 1e4, 1e5])
    assert samples_needed(sizes, np.array([0.5, 0.01, 0.5, 0.05]), 0.1) > 1e4
    assert samples_needed(sizes, 10 * sizes**-0.5, 0.1) == pytest.approx(1e4)
    assert samples_needed(sizes, sizes**-0.5, 1.0) == 1e2


def test_the_ratio_of_samples_is_that_of_parameters():
    sizes = np.array(SIZES, dtype=float)
    rng = np.random.default_rng(1)
    noise = np.exp(0.2 * rng.standard_normal((2, 3, 5, 20)))
    first, second = (
        math.sqrt(count) * sizes[:, None] ** -0.5 * factor
        for count, factor in zip((15, 12), noise, strict=True)
    )
    tight, loose = needed_ratios(sizes, first, second, (0.05, 0.2))
    for ratio in (tight, loose):
        assert ratio.low < 15 / 12 < ratio.high < 3 * ratio.low
    assert (tight.target, loose.target) == (0.05, 0.2)
    (inverse,) = needed_ratios(sizes, second, first, (0.05,))
    assert inverse.value == pytest.approx(1 / tight.value)


def test_the_interval_of_a_ratio_holds_the_spread_of_truths():
    """Replicates agree to a hundredth, truths differ by a factor of ten."""
    sizes = np.array(SIZES, dtype=float)
    scale = np.geomspace(0.3, 3.0, 8)[:, None, None]
    rng = np.random.default_rng(0)
    first, second = (
        factor * sizes[:, None] ** -0.5 * np.exp(0.01 * rng.standard_normal((8, 5, 8)))
        for factor in (scale, 1.0)
    )
    (ratio,) = needed_ratios(sizes, first, second, (0.05,))
    assert ratio.low < 0.5 and ratio.high > 2


def test_a_floor_above_the_target_is_never():
    sizes = np.array(SIZES, dtype=float)
    falls, stays = np.tile(sizes[:, None] ** -0.5, (1, 1, 5)), np.full((1, 5, 5), 0.3)
    (never,) = needed_ratios(sizes, stays, falls, (0.05,))
    assert str(never) == "only softmax"
    assert needed_ratios(sizes, falls, stays, (0.05,))[0].high == 0
    (neither,) = needed_ratios(sizes, stays, stays, (0.05,))
    assert str(neither) == "neither gets there" and not neither.reached
    # The middle one of three truths: of which neither gets there stands between the others.
    three = (np.concatenate(parts) for parts in ((falls, stays, stays), (falls, stays, falls)))
    assert needed_ratios(sizes, *three, (0.05,))[0].value == 1


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        (((0.1, 0.3), (0.2, 0.9), (0.0, 0.5)), REPRODUCED),
        (((0.1, 0.3), (0.2, 1.1), (0.0, 0.5)), UNDECIDED),
        (((0.1, 0.3), (1.1, 1.4), (0.0, 0.5)), NOT_REPRODUCED),
    ],
    ids=["all below", "one astride", "one above"],
)
def test_the_rule(intervals, verdict):
    ratios = [SampleRatio(0.1, low, low, high) for low, high in intervals]
    assert verdict_of(ratios) == verdict
    # Where neither gets there nothing is said, and nothing else is all there is.
    neither = SampleRatio(0.1, math.nan, 1.0, 1.0)
    assert verdict_of([*ratios, neither]) == verdict
    assert verdict_of([neither]) == UNDECIDED


def test_a_gate_that_wins_only_on_its_own_truth_has_no_advantage():
    home = {"sigmoid": 0.3, "softmax": 0.3}
    results = {
        ("a", "sigmoid"): [synthetic_run(home, {"sigmoid": 0.0, "softmax": 0.05})] * 3,
        ("a", "softmax"): [synthetic_run(home, {"sigmoid": 0.05, "softmax": 0.0})] * 3,
    }
    at_home, away, both = judge(results)
    assert (at_home.verdict, away.verdict) == (REPRODUCED, NOT_REPRODUCED)
    assert both.verdict == NOT_REPRODUCED
    assert "the softmax family expresses the truth, the other does not" in away.because
    # Fewer by construction on either: then it is one.
    results["a", "softmax"] = results["a", "sigmoid"]
    assert judge(results)[-1].verdict == REPRODUCED


def test_every_case_has_all_truths_and_a_figure():
    cells = {}
    for task in STUDY.tasks():
        cells.setdefault((task.cell, task.part), []).append(task.key)
    assert all(len(set(keys)) == len(keys) == len(HELD_OUT) for keys in cells.values())
    results = {
        place: [synthetic_run({"sigmoid": 0.3, "softmax": 0.4}, dict.fromkeys(FITS, 0.0))] * 3
        for place in cells
    }
    assert len(STUDY.draw(results).axes) == len(cells)
    assert all(f"{target * SIGMA:g}" in STUDY.rule for target in TARGETS)
