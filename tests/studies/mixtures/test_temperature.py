"""The study of a learned temperature: ranks, slopes and the rule."""

import numpy as np
import pytest

from sigmoid_attention.lab.study import Measured
from sigmoid_attention.mixtures.rates.slopes import Slope
from sigmoid_attention.mixtures.rates.verdict import (
    NOT_IDENTIFIABLE,
    NOT_REPRODUCED,
    PRE_ASYMPTOTIC,
    REPRODUCED,
    UNDECIDED,
)
from sigmoid_attention.studies.mixtures.temperature import (
    GATES,
    SCORES,
    STUDY,
    TemperatureSetting,
    judge,
    measure,
    verdict_of,
)

FEW = {"sizes": (10**4, 10**6, 10**8), "replicates": 10}


def measured(gate: str, score: str, **changes) -> Measured:
    return Measured(list(measure(TemperatureSetting(gate, score, **(FEW | changes)))))


def medians(run: Measured, quantity: str) -> np.ndarray:
    return np.nanmedian(run.grid(quantity)[1], axis=1)


@pytest.mark.parametrize("gate", GATES)
def test_an_inner_product_leaves_the_temperature_open(gate):
    run = measured(gate, "linear")
    assert run.values("missing") == [1]
    assert measured(gate, "linear", temperature=False, sizes=(10**4,)).values("missing") == [0]
    # Only the quotient is found: it falls with n, the temperature stays where it began.
    falls = {name: medians(run, name) for name in ("slopes over temperature", "temperature")}
    assert falls["slopes over temperature"][-1] < 0.03 * falls["slopes over temperature"][0]
    assert falls["temperature"][-1] > 0.1 * falls["temperature"][0]


@pytest.mark.parametrize(("gate", "missing"), (("sigmoid", 0), ("softmax", 1)))
def test_a_euclidean_score_closes_it_but_for_softmax(gate, missing):
    run = measured(gate, "euclidean")
    assert run.values("missing") == [missing]
    assert (medians(run, "parameters")[-1] < 0.05) == (missing == 0)


def test_the_gain_is_the_number_of_directions_that_data_see():
    run = measured("sigmoid", "euclidean", sizes=(10**8,), replicates=100)
    free = run.values("columns")[0]
    assert run.share("gain") == 1
    assert abs(run.values("gain").mean() - free) < 4 * np.sqrt(2 * free / 100)


@pytest.mark.parametrize(
    ("missing", "whole", "later", "verdict"),
    [
        (1, Slope(-0.5, -0.52, -0.48), Slope(-0.5, -0.52, -0.48), NOT_IDENTIFIABLE),
        (0, Slope(-0.5, -0.8, -0.2), Slope(-0.5, -0.52, -0.48), UNDECIDED),
        (0, Slope(-0.5, -0.52, -0.48), Slope(-0.3, -0.4, -0.2), REPRODUCED),
        (0, Slope(-0.3, -0.35, -0.25), Slope(-0.5, -0.55, -0.45), PRE_ASYMPTOTIC),
        (0, Slope(-0.3, -0.35, -0.25), Slope(-0.3, -0.35, -0.25), NOT_REPRODUCED),
    ],
    ids=["rank", "wide", "half", "later", "neither"],
)
def test_the_rule(missing, whole, later, verdict):
    assert verdict_of(missing, whole, later) == verdict


def test_a_table_and_a_figure_come_from_rows():
    results = {}
    for gate in GATES:
        for score in SCORES:
            truth = measured(gate, score, sizes=(10**4, 10**5, 10**6, 10**7), replicates=4)
            held = measured(gate, score, temperature=False, replicates=4)
            cell = f"{gate.replace('_', ' ')}, {score} score"
            results[cell, "estimated"] = results[cell, "far start"] = [truth]
            results[cell, "held"] = [held]
    by_cell = {finding.cell: finding for finding in judge(results)}
    assert {name for name, each in by_cell.items() if each.verdict == NOT_IDENTIFIABLE} == {
        "sigmoid, linear score", "normalised sigmoid, linear score", "softmax, linear score",
        "softmax, euclidean score",
    }  # fmt: skip
    assert "exponentially" in by_cell["sigmoid, linear score"].claim
    assert "polynomially" in by_cell["sigmoid, euclidean score"].claim
    assert len(STUDY.draw(results).axes) == len(GATES)
    named = {(task.cell, task.part) for task in STUDY.tasks()}
    assert named == set(results)
