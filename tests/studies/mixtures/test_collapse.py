"""Collapse: the measures of experts, equal starts of both gates, and the rule."""

import pytest
import torch

from sigmoid_attention.lab.statistics import Interval
from sigmoid_attention.lab.study import Measured, Row
from sigmoid_attention.mixtures.model import Mixture
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from sigmoid_attention.studies.mixtures.collapse import (
    GATES,
    JUDGED,
    STUDY,
    CollapseSetting,
    judge,
    measure,
    state,
    verdict_of,
)

INPUTS = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).double()


def of_experts(family: Mixture, experts: list[list[float]], scores: list[float]) -> dict:
    atoms = torch.zeros(family.k, family.atom_size, dtype=torch.float64)
    atoms[:, family.score_size :] = torch.tensor(experts)
    atoms[:, family.score_size - 1] = torch.tensor(scores)
    return {name: value.item() for name, value in state(family, atoms.flatten(), INPUTS).items()}


def test_experts_that_differ_by_a_factor_are_alike():
    family = Mixture("sigmoid", "linear", k=2, d=3)
    # A common constant is no likeness of what experts answer to inputs.
    alike = of_experts(family, [[1, 2, 3, 0.5], [-2, -4, -6, 7]], [0.0, 0.0])
    apart = of_experts(family, [[1, 0, 0, 5], [0, 1, 0, 5]], [0.0, 0.0])
    assert alike["similarity"] == pytest.approx(1)
    assert apart["similarity"] < 0.2
    assert apart["similarity of parameters"] == pytest.approx(25 / 26)


@pytest.mark.parametrize("gate", GATES)
def test_idle_experts_do_not_count(gate):
    family = Mixture(gate, "linear", k=4, d=3)
    counts = [1.0, 0.0, 0.0, 0.0]
    every = of_experts(family, [counts] * 4, [0.0] * 4)
    assert every["used by weight"] == pytest.approx(4)
    assert every["used by contribution"] == pytest.approx(4)
    shut = of_experts(family, [counts] * 4, [0.0, 0.0, -40.0, -40.0])
    assert shut["used by weight"] == shut["used by contribution"] == pytest.approx(2)
    # An open gate before an expert that answers nothing is a use of weight only.
    silent = of_experts(family, [counts, counts, [0.0] * 4, [0.0] * 4], [0.0] * 4)
    assert silent["used by weight"] == pytest.approx(4)
    assert silent["used by contribution"] == pytest.approx(2)


@pytest.fixture(scope="module")
def trained() -> dict[str, Measured]:
    return {
        gate: Measured(
            list(
                measure(
                    CollapseSetting(
                        gate, "smooth", "linear", "adam", 0.01, epochs=4, n=300, replicates=3
                    )
                )
            )
        )
        for gate in GATES
    }


def test_both_gates_start_with_the_same_experts(trained):
    starts = [
        [row.value for row in trained[gate].rows if row.quantity == "similarity" and row.step == 0]
        for gate in GATES
    ]
    assert starts[0] == starts[1]
    assert len(set(starts[0])) == 3


def test_training_moves_experts_and_lowers_the_error(trained):
    for run in trained.values():
        steps = {row.step for row in run.rows}
        assert steps >= {0, 1, 12} and max(steps) == 12
        first, last = (
            [row.value for row in run.rows if (row.quantity, row.step) == ("similarity", step)]
            for step in (0, 12)
        )
        assert first != last
        assert not any(row.converged for row in run.rows)
    longer = CollapseSetting(
        "sigmoid", "smooth", "linear", "adam", 0.01, epochs=40, n=300, replicates=3
    )
    ends = Measured(list(measure(longer))).values("error")
    assert (ends < trained["sigmoid"].values("error")).all()


UP, DOWN, ASTRIDE = (Interval(0, low, low + 2, 20) for low in (1, -3, -1))


@pytest.mark.parametrize(
    ("of_softmax", "spared", "verdict"),
    [
        (UP, UP, REPRODUCED),
        (UP, ASTRIDE, UNDECIDED),
        (UP, DOWN, NOT_REPRODUCED),
        (ASTRIDE, UP, UNDECIDED),
        (DOWN, UP, NOT_REPRODUCED),
    ],
)
def test_the_rule(of_softmax, spared, verdict):
    assert verdict_of(of_softmax, spared) == verdict


def synthetic_run(change: float, level: float = 0.0) -> Measured:
    """Every quantity changes by so much in training; replicates differ far more than that."""
    rows = [Row("error", 0.5, replicate=r, step=9) for r in range(20)]
    for quantity in JUDGED:
        for r in range(20):
            begins = level + 100.0 * r
            rows += [Row(quantity, begins + change + r % 3 / 9, replicate=r, step=9)]
            rows += [Row(quantity, begins, replicate=r, step=0)]
    return Measured(rows)


def verdicts(softmax: Measured, sigmoid: Measured) -> list[str]:
    return [
        finding.verdict
        for finding in judge({("cell", "softmax"): [softmax], ("cell", "sigmoid"): [sigmoid]})
    ]


def test_collapse_is_a_rise_of_similarity_and_a_fall_of_use():
    assert verdicts(synthetic_run(2.0), synthetic_run(1.0)) == [
        REPRODUCED,
        NOT_REPRODUCED,
        NOT_REPRODUCED,
    ]
    assert verdicts(synthetic_run(-2.0), synthetic_run(-1.0)) == [
        NOT_REPRODUCED,
        REPRODUCED,
        REPRODUCED,
    ]
    # Where each begins is not what training does.
    assert verdicts(synthetic_run(-2.0), synthetic_run(-1.0, level=-50)) == verdicts(
        synthetic_run(-2.0), synthetic_run(-1.0)
    )


def test_the_figure_has_a_panel_for_every_case(trained):
    tasks = STUDY.tasks()
    assert len({task.key for task in tasks}) == len(tasks)
    results = {(task.cell, task.part): [trained[task.part]] for task in tasks}
    figure = STUDY.draw(results)
    assert len(figure.axes) == len(tasks)
