"""Starts near the truth or anywhere: the choice of the fit, and the verdict if they differ."""

import numpy as np
import pytest

from sigmoid_attention.lab.study import Measured, Row
from sigmoid_attention.mixtures.rates import verdict
from sigmoid_attention.studies.mixtures.global_minimum import CELLS, SIZES, STUDY


def rows(exponent, gain, level=1.0):
    rng = np.random.default_rng(0)
    for n in SIZES:
        for r in range(20):
            value = level * float(n) ** exponent * np.exp(0.02 * rng.standard_normal())
            yield Row("over_weighted", value, n=n, replicate=r)
            yield Row("gain", gain, n=n, replicate=r)


def results(near, far):
    return {
        (cell.name, part): [Measured(list(rows(*what)))] * 3
        for cell in CELLS
        for part, what in (("near", near), ("random", far))
    }


@pytest.mark.parametrize(
    ("near", "far", "expected"),
    (
        # Random starts that fit worse change nothing.
        ((-0.25, 12.0), (0.0, 11.0), verdict.REPRODUCED),
        # Those that fit better are the estimate, and another rate is then another answer.
        ((-0.25, 12.0), (0.0, 13.0), verdict.DEPENDS_ON_THE_START),
        ((-0.25, 12.0), (-0.25, 13.0), verdict.REPRODUCED),
        # Better by less than what makes another minimum.
        ((0.0, 12.0), (0.0, 12.3), verdict.NOT_REPRODUCED),
    ),
)
def test_the_better_fit_counts(near, far, expected):
    verdicts = {finding.cell: finding.verdict for finding in STUDY.judge(results(near, far))}
    judged = [verdicts[cell.name] for cell in CELLS if cell.claim == -0.25]
    assert set(judged) == {expected}


def test_a_fit_that_did_not_converge_is_no_minimum():
    by_part = results((-0.25, 12.0), (0.0, 13.0))
    for cell in CELLS:
        lost = [
            Row(row.quantity, row.value, n=row.n, replicate=row.replicate, converged=False)
            for row in by_part[cell.name, "random"][0].rows
        ]
        by_part[cell.name, "random"] = [Measured(lost)] * 3
    assert verdict.DEPENDS_ON_THE_START not in {finding.verdict for finding in STUDY.judge(by_part)}


def test_both_starts_fit_the_same_data():
    by_data = {}
    for task in STUDY.tasks():
        setting = task.setting
        by_data.setdefault((task.cell, setting.truth_seed), []).append((setting.seed, task.part))
    for pairs in by_data.values():
        assert len({seed for seed, _ in pairs}) == 1 and len(pairs) == 2


def test_the_figure_has_a_panel_a_cell():
    assert len(STUDY.draw(results((-0.25, 12.0), (0.0, 11.0))).axes) == len(CELLS)
