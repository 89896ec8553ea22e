"""Rate studies over cells: the required tasks, evidence from rows, and every clause of the rule."""

from dataclasses import replace

import numpy as np
import pytest

from sigmoid_attention.lab.study import Measured, Row
from sigmoid_attention.mixtures.rates import verdict
from sigmoid_attention.mixtures.rates.setting import RateSetting
from sigmoid_attention.studies.mixtures.cells import Cell, evidence, findings, rate_study, run
from sigmoid_attention.studies.mixtures.truths import HELD_OUT

CELL = Cell("softmax", "gelu", claim=-0.25)
WINDOWS = ((100, 1000, 10_000), (10_000, 1_000_000, 100_000_000))
SIZES = tuple(sorted({*WINDOWS[0], *WINDOWS[1]}))
PARTS = (
    "fits", "noiseless", "near start", "far start", "exact", "finite", "continuous",
)  # fmt: skip


def rows(sizes, level, exponent=0.0, *, bent=0.0, converged=True, boxed=0, gain=11.34, seed=0):
    """A power law with a spread of a few per cent, and gains about their mean.

    ``bent`` is added to the exponent below n = 10,000; ``boxed`` fits of 20 lie at the wall.
    """
    rng = np.random.default_rng(seed)
    yield Row("missing", 0.0)
    yield Row("free", 12.0)
    for n in sizes:
        for r in range(20):
            value = level * float(n) ** exponent * np.exp(0.05 * rng.standard_normal())
            value *= min(float(n) / 10_000, 1.0) ** bent
            for quantity in ("L2", "contribution", "exact", "over", "D1", "D2"):
                at_box = r < boxed
                yield Row(quantity, value, n=n, replicate=r, converged=converged, at_box=at_box)
            yield Row("gain", gain + rng.standard_normal(), n=n, replicate=r, converged=converged)


def results(**changed):
    """What a cell without blemish measures; a part's changes go to its rows."""
    largest = SIZES[-1:]
    usual = {
        "fits": {"sizes": SIZES, "level": 1.0, "exponent": -0.25},
        "noiseless": {"sizes": largest, "level": 1e-4},
        "near start": {"sizes": largest, "level": 0.01},
        "far start": {"sizes": largest, "level": 0.01},
        "exact": {"sizes": SIZES, "level": 1.0},
        "finite": {"sizes": (3000,), "level": 1.0},
        "continuous": {"sizes": (3000,), "level": 1.1},
    }
    return {
        (CELL.name, part): [
            Measured(list(rows(**{**usual[part], **changed.get(part, {}), "seed": 10 * i + truth})))
            for truth in range(3)
        ]
        for i, part in enumerate(PARTS)
    }


@pytest.mark.parametrize(
    ("changed", "expected"),
    (
        ({}, verdict.REPRODUCED),
        ({"fits": {"exponent": -0.4}}, verdict.NOT_REPRODUCED),
        ({"fits": {"bent": -0.25}}, verdict.PRE_ASYMPTOTIC),
        ({"fits": {"boxed": 5}}, verdict.UNDECIDED),
        ({"exact": {"converged": False}}, verdict.UNDECIDED),
        ({"noiseless": {"level": 0.01}}, verdict.DEPENDS_ON_THE_START),
        ({"far start": {"level": 0.1}}, verdict.DEPENDS_ON_THE_START),
        ({"exact": {"gain": 9.0}}, verdict.UNDECIDED),
        ({"continuous": {"level": 2.0}}, verdict.UNDECIDED),
    ),
)
def test_a_verdict_follows_from_the_rows(changed, expected):
    (finding,) = findings([CELL], WINDOWS, results(**changed))
    assert (finding.cell, finding.verdict) == (CELL.name, expected)
    assert finding.claim == "over: n^-0.25"


def test_far_starts_that_end_in_a_worse_minimum_say_nothing():
    """No factor is then measured, and a control that is not measured does not pass."""
    worse = results(**{"far start": {"level": 0.1, "gain": 2.0}})
    (finding,) = findings([CELL], WINDOWS, worse)
    assert finding.verdict == verdict.UNDECIDED and "far start nan" in finding.controls


def test_a_verdict_on_a_slope_has_a_chance_to_be_wrong_and_no_other_has():
    assert findings([CELL], WINDOWS, results())[0].chance is not None
    decided = results(noiseless={"level": 0.01})
    assert findings([CELL], WINDOWS, decided)[0].chance is None


def test_one_escaped_fit_moves_no_control():
    """The mean gain would be below -1000; its median over the fits that count is not."""
    by_part = results()
    rows_of_truth = list(by_part[CELL.name, "exact"][0].rows)
    place = next(i for i, row in enumerate(rows_of_truth) if row.quantity == "gain")
    rows_of_truth[place] = replace(rows_of_truth[place], value=-1e6, converged=False)
    by_part[CELL.name, "exact"][0] = Measured(rows_of_truth)
    assert findings([CELL], WINDOWS, by_part)[0].verdict == verdict.REPRODUCED


def test_slopes_come_from_converged_fits_and_their_share_is_stated():
    by_part = results()
    broken = [
        replace(row, value=1e6, converged=False) for row in by_part[CELL.name, "fits"][0].rows
    ]
    third = [
        spoilt if row.replicate % 3 == 0 else row
        for row, spoilt in zip(by_part[CELL.name, "fits"][0].rows, broken, strict=True)
    ]
    by_part[CELL.name, "fits"][0] = Measured(third)
    seen = evidence(CELL, WINDOWS, by_part)
    assert seen.late.near(-0.25, 0.01)
    assert seen.counted == pytest.approx((13 + 20 + 20) / 60)


def test_a_study_has_every_control_for_every_truth_and_data_of_their_own():
    study = rate_study("x", "title", "claim", "source", [CELL])
    tasks = study.tasks()
    assert {(task.part, task.setting.truth_seed) for task in tasks} == {
        (part, truth) for part in PARTS for truth in HELD_OUT
    }
    assert len({task.key for task in tasks}) == len(tasks)
    seeds = [task.setting.seed for task in tasks if task.part != "far start"]
    assert len(set(seeds)) == len(seeds)
    noiseless = next(task for task in tasks if task.part == "noiseless")
    assert noiseless.setting.sigma == 0


def test_a_quick_study_measures_as_many_truths_as_an_interval_needs():
    tasks = rate_study("x", "title", "claim", "source", [CELL], quick=True).tasks()
    assert {task.setting.truth_seed for task in tasks} == {100, 101, 102}


def test_a_fit_gives_rows_of_every_loss_and_what_tells_whether_to_believe_it():
    measured = Measured(list(run(RateSetting("sigmoid", "tanh", sizes=(200, 400), replicates=3))))
    sizes, values = measured.grid("L2")
    assert sizes.tolist() == [200, 400] and values.shape == (2, 3)
    assert len(measured.values("gain")) == 6 and measured.values("free").tolist() == [15]
    assert measured.values("missing").tolist() == [0]


def test_the_figure_has_a_panel_an_expert():
    study = rate_study("x", "title", "claim", "source", [CELL], windows=WINDOWS)
    assert [axis.get_title() for axis in study.draw(results()).axes] == ["gelu"]


def test_a_line_says_where_the_theorem_is_about_the_projection():
    said = "n^-0.5 to the projection of the truth; measured to the truth"
    assert Cell("sigmoid", "gelu", regime="dense", claim=-0.5).claimed == said
    assert Cell("sigmoid", "gelu", regime="sparse", claim=-0.25).claimed == "n^-0.25"
    assert Cell("sigmoid", "constant", claim=0).claimed == "slower than any power of n"
    assert Cell("softmax", "gelu", claim=-0.25).claimed == "n^-0.25"
