"""Rates in classification: the truths, the losses and the rule."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from sigmoid_attention.lab.study import Measured, Row
from sigmoid_attention.mixtures.rates.slopes import Slope
from sigmoid_attention.mixtures.rates.verdict import (
    DEPENDS_ON_THE_START,
    NOT_IDENTIFIABLE,
    NOT_REPRODUCED,
    PRE_ASYMPTOTIC,
    REPRODUCED,
    UNDECIDED,
)
from sigmoid_attention.studies.mixtures.classification import (
    EARLY,
    GATES,
    LATE,
    PARTS,
    STUDY,
    ClassificationEvidence,
    ClassificationSetting,
    _repeated,
    cell_of,
    cells,
    draw_truth,
    judge,
    losses,
    measure,
    verdict_of,
)


@pytest.mark.parametrize("gate", GATES)
def test_the_gain_of_an_exact_family_is_its_number_of_parameters(gate):
    measured = Measured(list(measure(ClassificationSetting(gate, sizes=(10**7,), replicates=40))))
    free = measured.values("free")[0]
    assert measured.share("gain") == 1
    assert abs(measured.values("gain").mean() - free) < 4 * np.sqrt(2 * free / 40)


def test_an_expert_too_many_starts_as_the_truth():
    for gate in ("softmax", "sigmoid"):
        setting = ClassificationSetting(gate, extra=1)
        truth_P, _ = draw_truth(setting.truth_family, setting.nodes, 0)
        whole = _repeated(setting, truth_P)
        inputs = torch.randn(9, 2, dtype=torch.float64)
        if gate == "softmax":
            torch.testing.assert_close(
                setting.family.logits(whole, inputs), setting.truth_family.logits(truth_P, inputs)
            )
        else:
            # Of a sigmoid the sum is right where the score is the intercept, and nowhere else.
            place = setting.family.score_size - 1
            shares, truth = (
                family.atoms(theta)[:, place].sigmoid()
                for family, theta in ((setting.family, whole), (setting.truth_family, truth_P))
            )
            torch.testing.assert_close(shares[:2].sum(), truth[0])
        values = losses(setting.family, whole[None], setting.truth_family.atoms(truth_P))
        assert values["exact"] == values["over"] == 0


def test_losses_see_what_moves_and_where():
    setting = ClassificationSetting("sigmoid", extra=1)
    truth_P, _ = draw_truth(setting.truth_family, setting.nodes, 0)
    atoms = setting.truth_family.atoms(truth_P)
    whole = torch.cat((atoms[:1], atoms[:1], atoms[1:]))
    moved = whole.clone()
    moved[2, 0] += 0.01  # of the expert that is alone
    moved[1, -1] += 0.02  # of one of the two
    # An intercept, towards the other expert's, by which no cell goes.
    place = setting.family.score_size - 1
    moved[0, place] += 1e6 * (atoms[1, place] - atoms[0, place]).sign()
    actual = losses(setting.family, moved.flatten()[None], atoms)
    assert actual["exact"].item() == pytest.approx(0.01)
    assert actual["over"].item() == pytest.approx(0.02)
    alone = losses(setting.truth_family, truth_P[None], atoms)
    assert set(alone) == {"exact"}


def test_a_fit_below_the_truth_does_not_count():
    rows = list(measure(ClassificationSetting("sigmoid", extra=1, sizes=(10**9,), replicates=20)))
    gains = {row.replicate: row for row in rows if row.quantity == "gain"}
    assert {row.converged for row in gains.values()} == {True, False}
    assert all(row.value >= 0 for row in gains.values() if row.converged)
    assert all(
        row.converged == gains[row.replicate].converged for row in rows if row.replicate >= 0
    )


def test_truths_differ_and_are_well_conditioned():
    family = ClassificationSetting("softmax").truth_family
    truths = [draw_truth(family, 64, seed) for seed in range(3)]
    assert all(smallest > 1e-4 for _, smallest in truths)
    assert not torch.equal(truths[0][0], truths[1][0])


HALF = Slope(-0.5, -0.55, -0.45)
STILL = Slope(0.0, -0.02, 0.02)
GOOD = ClassificationEvidence(-0.5, 1e-3, 0.9, 0.1, HALF, HALF, STILL, Slope(1.0, 0.8, 1.2))


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, REPRODUCED),
        ({"smallest": 1e-14}, NOT_IDENTIFIABLE),
        ({"converged": 0.6}, UNDECIDED),
        ({"late": Slope(-0.5, -0.8, -0.2)}, UNDECIDED),
        ({"far_start": Slope(4.0, 3.0, 5.0)}, DEPENDS_ON_THE_START),
        # A start whose influence is not known does not pass.
        ({"far_start": Slope(3.0, 0.3, 9.0)}, UNDECIDED),
        ({"at_box": 0.4}, UNDECIDED),
        ({"moved": Slope(-0.5, -0.6, -0.4)}, PRE_ASYMPTOTIC),
        ({"claim": -0.25}, NOT_REPRODUCED),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_the_rule(changes, verdict):
    assert verdict_of(replace(GOOD, **changes))[0] == verdict


def power_law(power: float, sizes: tuple[int, ...], converged: float = 1.0) -> Measured:
    rng = np.random.default_rng(0)
    rows = [Row("free", 12.0), Row("smallest", 1e-3)]
    for n in sizes:
        for replicate in range(20):
            value = float(n**power * np.exp(0.02 * rng.standard_normal()))
            converges = replicate < 20 * converged
            # What did not converge would spoil every slope.
            loss = value if converges else 1e6
            rows += [Row(q, loss, n, replicate, converged=converges)
                     for q in ("hellinger", "exact", "over")]  # fmt: skip
            rows.append(Row("gain", 12.0, n, replicate, converged=converges))
    return Measured(rows)


def results_of(power: float, converged: float = 1.0):
    sizes = {"early": EARLY, "late": LATE, "near start": LATE[-1:], "far start": LATE[-1:]}
    return {
        (cell_of(cell), part): [power_law(power, sizes[part], converged)] * 3
        for cell in cells()
        for part in PARTS
    }


def test_unconverged_fits_enter_no_slope_and_too_many_no_verdict():
    for converged, word in ((0.85, REPRODUCED), (0.5, UNDECIDED)):
        by_cell = {finding.cell: finding for finding in judge(results_of(-0.5, converged))}
        line = by_cell["sigmoid, 2 experts fitted by 2: hellinger"]
        assert line.verdict == word
        assert re.search(r"then -0\.(49|50) ", line.measured)
        assert f"fits that count {converged:.0%}" in line.controls


def test_softmax_is_held_to_its_own_claim():
    by_cell = {finding.cell: finding for finding in judge(results_of(-0.25))}
    assert by_cell["softmax, 2 experts fitted by 3: over"].verdict == REPRODUCED
    assert by_cell["sigmoid, 2 experts fitted by 3: over"].verdict == NOT_REPRODUCED
    assert by_cell["softmax, 2 experts fitted by 3: exact"].verdict == NOT_REPRODUCED
    assert "softmax, 2 experts fitted by 2: over" not in by_cell


def test_tasks_and_figure():
    tasks = STUDY.tasks()
    assert len({task.key for task in tasks}) == len(tasks)
    assert {(task.cell, task.part) for task in tasks} == set(results_of(-0.5))
    assert len(STUDY.draw(results_of(-0.5)).axes) == len(cells())
