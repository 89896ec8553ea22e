"""Collapse: what is measured of experts, that both gates start alike, and the rule."""

import pytest
import torch

from sigmoid_attention.mixtures.model import Mixture
from sigmoid_attention.mixtures.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from sigmoid_attention.studies.mixtures.collapse import (
    GATES,
    JUDGED,
    STUDY,
    Training,
    judge,
    measure,
    state,
    verdict_of,
)
from sigmoid_attention.studies.mixtures.study import Measured, Row
from sigmoid_attention.studies.results import Interval

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
    one = [1.0, 0.0, 0.0, 0.0]
    every = of_experts(family, [one] * 4, [0.0] * 4)
    assert every["used by weight"] == pytest.approx(4)
    assert every["used by contribution"] == pytest.approx(4)
    shut = of_experts(family, [one] * 4, [0.0, 0.0, -40.0, -40.0])
    assert shut["used by weight"] == shut["used by contribution"] == pytest.approx(2)
    # An open gate before an expert that answers nothing is a use of weight only.
    silent = of_experts(family, [one, one, [0.0] * 4, [0.0] * 4], [0.0] * 4)
    assert silent["used by weight"] == pytest.approx(4)
    assert silent["used by contribution"] == pytest.approx(2)


@pytest.fixture(scope="module")
def trained() -> dict[str, Measured]:
    return {
        gate: Measured(
            list(
                measure(
                    Training(gate, "smooth", "linear", "adam", 0.01, epochs=4, n=300, replicates=3)
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
    for one in trained.values():
        steps = {row.step for row in one.rows}
        assert steps >= {0, 1, 12} and max(steps) == 12
        first, last = (
            [row.value for row in one.rows if (row.quantity, row.step) == ("similarity", step)]
            for step in (0, 12)
        )
        assert first != last
        assert not any(row.converged for row in one.rows)
    longer = Training("sigmoid", "smooth", "linear", "adam", 0.01, epochs=40, n=300, replicates=3)
    ends = Measured(list(measure(longer))).values("error")
    assert (ends < trained["sigmoid"].values("error")).all()


@pytest.mark.parametrize(
    ("low", "high", "less", "verdict"),
    [
        (-0.3, -0.1, True, REPRODUCED),
        (-0.3, 0.1, True, UNDECIDED),
        (0.1, 0.3, True, NOT_REPRODUCED),
        (0.1, 0.3, False, REPRODUCED),
        (-0.3, -0.1, False, NOT_REPRODUCED),
    ],
)
def test_the_rule(low, high, less, verdict):
    assert verdict_of(Interval((low + high) / 2, low, high, 20), less) == verdict


def test_differences_are_paired_and_taken_at_the_end():
    def arm(shift: float) -> Measured:
        rows = [Row("error", 0.5, replicate=r, step=9) for r in range(20)]
        for quantity in JUDGED:
            # Replicates differ far more than the arms, and the beginning says the opposite.
            rows += [Row(quantity, 100.0 * r + shift, replicate=r, step=9) for r in range(20)]
            rows += [Row(quantity, 100.0 * r - shift, replicate=r, step=0) for r in range(20)]
        return Measured(rows)

    results = {("cell", "softmax"): [arm(0.0)], ("cell", "sigmoid"): [arm(1.0)]}
    verdicts = {one.cell: one.verdict for one in judge(results)}
    assert verdicts == {
        "cell: similarity": NOT_REPRODUCED,
        "cell: used by weight": REPRODUCED,
        "cell: used by contribution": REPRODUCED,
    }


def test_the_figure_has_a_panel_for_every_case(trained):
    tasks = STUDY.tasks()
    assert len({task.key for task in tasks}) == len(tasks)
    results = {(task.cell, task.part): [trained[task.part]] for task in tasks}
    figure = STUDY.draw(results)
    assert len(figure.axes) == len(tasks)
