"""Real data: the content of the data sets, and comparison of gates on equal resamples."""

from dataclasses import replace

import numpy as np
import pytest

from sigmoid_attention.lab.statistics import Interval
from sigmoid_attention.lab.study import Measured, Row
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from sigmoid_attention.studies.mixtures import real_data
from sigmoid_attention.studies.mixtures.real_data import (
    GATES,
    SETS,
    STUDY,
    LearningSetting,
    judge,
    measure,
    stability,
    table,
    verdict_of,
)

IRIS = "iris: species (d = 4)"
DIABETES = "diabetes: progression (d = 10)"
QUICK = {"resamples": 3, "starts": 1, "max_iter": 30, "alphas": (1.0,), "pilots": 1}


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_what_its_name_says(name):
    features, target = table(name)
    assert features.ndim == 2 and target.shape == features.shape[:1]
    assert np.isfinite(features).all()
    dim = name.partition("d = ")[2].rstrip(")")
    assert features.shape[1] == int(dim)
    assert (len(np.unique(target)) <= 3) == SETS[name][1]
    # No feature gives the target away.
    if not SETS[name][1]:
        assert all(abs(np.corrcoef(column, target)[0, 1]) < 0.999 for column in features.T)


def test_there_are_four_sets_of_each_kind_from_4_to_64_dimensions():
    kinds = [is_classes for _, is_classes in SETS.values()]
    assert min(kinds.count(True), kinds.count(False)) >= 4
    dims = {table(name)[0].shape[1] for name in SETS}
    assert (min(dims), max(dims)) == (4, 64)


@pytest.mark.parametrize("name", (IRIS, DIABETES))
def test_more_data_help(name):
    measured = Measured(
        list(measure(LearningSetting(name, "sigmoid", **QUICK, shares=(0.15, 0.6))))
    )
    small, large = (
        np.median([row.value for row in measured.rows if row.quantity == "error" and row.n == n])
        for n in sorted({row.n for row in measured.rows})
    )
    assert large < small
    assert large < {IRIS: 0.4, DIABETES: 0.7}[name]
    assert len(measured.values("stability")) == 2


def test_gates_see_the_same_resamples_and_answer_differently():
    rows = {
        gate: list(measure(replace(LearningSetting(IRIS, gate, **QUICK), shares=(0.3,))))
        for gate in GATES
    }
    places = [[(row.quantity, row.n, row.replicate) for row in rows[gate]] for gate in GATES]
    assert places[0] == places[1]
    assert [row.value for row in rows["softmax"]] != [row.value for row in rows["sigmoid"]]
    again = list(measure(replace(LearningSetting(IRIS, "sigmoid", **QUICK), shares=(0.3,))))
    assert again == rows["sigmoid"]


def test_each_gate_has_the_penalty_that_suits_it(monkeypatch):
    setting = replace(LearningSetting(DIABETES, "sigmoid", **QUICK), shares=(0.15,), resamples=1)
    # So much that nothing is learnt, and so little that noise is.
    for alphas, best in (((1e-3, 10.0), 10.0), ((10.0, 1e8), 10.0)):
        measured = Measured(list(measure(replace(setting, alphas=alphas, pilots=2))))
        assert measured.values("alpha") == [best]
    # Pilots are resamples that are not judged: however many, the rest stays as it is.
    alphas_tried = []
    learned = real_data._learned
    monkeypatch.setattr(
        real_data, "_learned", lambda *which: alphas_tried.append(which[-1]) or learned(*which)
    )
    errors = [
        Measured(list(measure(replace(setting, pilots=pilots)))).values("error")
        for pilots in (1, 2)
    ]
    assert errors[0] == errors[1]
    assert alphas_tried == [1, 0, 1, 2, 0]


def test_stability_does_not_mind_the_order_or_the_size():
    fit = np.random.default_rng(0).standard_normal((3, 50))
    assert stability(fit, 7 * fit[[2, 0, 1]]) == pytest.approx(1)
    # An expert that answers nothing is found again by nothing.
    assert stability(fit, np.vstack([fit[:2], np.zeros(50)])) == pytest.approx(2 / 3)
    assert stability(fit, -fit) < 0.3


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-2, -1, REPRODUCED), (-1, 1, UNDECIDED), (1, 2, NOT_REPRODUCED)],
    ids=["lower", "astride", "higher"],
)
def test_the_rule(low, high, verdict):
    difference = Interval((low + high) / 2, low, high, 20)
    assert verdict_of(difference, 0.9, less_is_claimed=True) == verdict
    opposite = {REPRODUCED: NOT_REPRODUCED, NOT_REPRODUCED: REPRODUCED}
    assert verdict_of(difference, 0.9, less_is_claimed=False) == opposite.get(verdict, verdict)
    assert verdict_of(difference, 0.5, less_is_claimed=True) == UNDECIDED


def synthetic_run(error: float, alike: float) -> Measured:
    rng = np.random.default_rng(0)
    rows = [Row("alpha", 0.1, n=50.0), Row("alpha", 10.0, n=100.0)]
    for replicate in range(20):
        hard = rng.standard_normal()
        for n in (50.0, 100.0):
            value = error * np.exp(hard + 1e-3 * rng.standard_normal())
            rows.append(Row("error", value, n, replicate, converged=replicate > 0))
        rows.append(Row("stability", alike + hard, 100.0, replicate))
    return Measured(rows)


def test_resamples_are_paired():
    results = {
        (IRIS, "softmax"): [synthetic_run(1.0, 0.5)],
        (IRIS, "sigmoid"): [synthetic_run(1.1, 0.6)],
    }
    curve, steady = judge(results)
    # A tenth between the gates is seen although resamples scatter by one.
    assert (curve.verdict, steady.verdict) == (NOT_REPRODUCED, REPRODUCED)
    assert curve.because.startswith("sigmoid's error is 1.1")
    assert curve.controls == "converged 95% and 95%; penalties 0.1, 10 and 0.1, 10"


def test_every_set_is_a_task_for_either_gate_and_a_panel():
    tasks = STUDY.tasks()
    assert {(task.cell, task.part) for task in tasks} == {(s, g) for s in SETS for g in GATES}
    results = {(task.cell, task.part): [synthetic_run(2.0, 0.5)] for task in tasks}
    assert len(STUDY.draw(results).axes) == len(SETS)
    assert real_data.RESAMPLES >= 20
