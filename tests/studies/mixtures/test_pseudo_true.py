"""The rate towards the projection: the rows of a fit, and every clause of the rule."""

import numpy as np
import pytest

from sigmoid_attention.lab.study import Measured, Row
from sigmoid_attention.mixtures.rates import verdict
from sigmoid_attention.mixtures.rates.setting import RateSetting
from sigmoid_attention.studies.mixtures.pseudo_true import CELLS, RADII, STUDY, _name, run

SIZES = (10_000, 1_000_000, 100_000_000)


def rows_of_truth(exponent, share, converged, spread, floor=0.1, seed=0):
    rng = np.random.default_rng(seed)
    exponent = exponent + spread * rng.standard_normal()
    rows = [Row("floor", floor), Row("minimisers", 1.0), Row("found", share), Row("leaning", 1.0)]
    for n in SIZES:
        for r in range(20):
            value = float(n) ** exponent * np.exp(0.05 * rng.standard_normal())
            sound = r < 20 * converged
            rows.append(Row("D3", value, n=n, replicate=r, converged=sound))
            rows.append(Row("L2", 0.1, n=n, replicate=r, converged=sound))
    return rows


def results(exponent=-0.5, share=0.5, converged=1.0, spread=0.01, exact=0):
    """What every cell measures, alike; ``exact`` truths of 8 lie in the box, with another slope."""
    truths = [
        Measured(rows_of_truth(exponent, share, converged, spread, seed=seed))
        if seed >= exact
        else Measured(rows_of_truth(-0.3, share, converged, spread, 1e-15, seed))
        for seed in range(8)
    ]
    return {(_name(cell, radius), "late"): truths for cell in CELLS for radius in RADII}


@pytest.mark.parametrize(
    ("changes", "expected"),
    (
        ({}, verdict.REPRODUCED),
        ({"exponent": -0.35}, verdict.NOT_REPRODUCED),
        ({"exponent": -0.4}, verdict.UNDECIDED),
        ({"share": 0.05}, verdict.UNDECIDED),
        ({"converged": 0.5}, verdict.UNDECIDED),
        ({"spread": 0.5}, verdict.UNDECIDED),
    ),
)
def test_a_verdict_follows_from_the_rows(changes, expected):
    findings = STUDY.judge(results(**changes))
    assert len(findings) == len(CELLS) * len(RADII)
    assert {finding.verdict for finding in findings} == {expected}


def test_truths_that_the_box_holds_are_judged_apart():
    """Their slope is another one; pooled with them, neither claim could be told."""
    findings = STUDY.judge(results(exact=3))
    assert len(findings) == 2 * len(CELLS) * len(RADII)
    by_kind = {finding.cell.split(": ")[1]: finding for finding in findings}
    other, itself = (
        by_kind["projection is another function"],
        by_kind["projection is the truth itself"],
    )
    assert other.verdict == verdict.REPRODUCED and "5 of 5 truths" in other.controls
    assert itself.verdict == verdict.UNDECIDED and "3 of the 5 truths" in itself.because
    more = {finding.cell: finding for finding in STUDY.judge(results(exact=6))}
    kinds = {name.split(": ")[1]: finding.verdict for name, finding in more.items()}
    assert kinds["projection is the truth itself"] == verdict.NOT_REPRODUCED


def test_a_fit_that_is_held_near_the_truth_nears_the_projection_and_not_the_truth():
    cell = next(cell for cell in CELLS if cell.expert == "gelu")
    setting = cell.setting(0, radius=0.5, sizes=(10**4, 10**8), replicates=4, starts=4)
    measured = Measured(list(run(setting)))
    floor = measured.values("floor")[0]
    _, d3 = measured.grid("D3")
    _, l2 = measured.grid("L2")
    assert floor > 0.01 and np.allclose(np.median(l2, -1), floor, rtol=0.1)
    assert np.median(d3[1]) < np.median(d3[0]) / 30


def test_tasks_are_held_within_their_radius_and_draw_data_of_their_own():
    settings = [task.setting for task in STUDY.tasks()]
    assert {setting.radius for setting in settings} == set(RADII)
    assert all(isinstance(setting, RateSetting) for setting in settings)
    assert len({task.key for task in STUDY.tasks()}) == len(settings)


def test_the_figure_has_a_panel_a_cell():
    assert len(STUDY.draw(results()).axes) == len(CELLS)
