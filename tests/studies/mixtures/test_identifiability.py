"""The study of identifiability: pairs of different parameters with one function."""

import pytest
import torch

from sigmoid_attention.lab.study import Measured
from sigmoid_attention.mixtures import Mixture
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED
from sigmoid_attention.studies.mixtures import identifiability as study

PAIRS = [case for case in study.CELLS.values() if case.degenerate]


@pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.degenerate)
def test_a_pair_has_one_function_and_other_experts(case):
    family = Mixture("sigmoid", case.expert, k=study.K, d=study.DIM)
    rng = torch.Generator().manual_seed(0)
    theta_P = torch.randn(family.size, generator=rng).double()
    left_P, right_P = study.pair(case.degenerate, family, theta_P)
    inputs_Qd = torch.randn(50, study.DIM, generator=rng).double()
    torch.testing.assert_close(
        family.predict(left_P, inputs_Qd), family.predict(right_P, inputs_Qd)
    )
    # No expert of one side equals the first of the other, so no exchange makes them equal.
    distances_k = (family.atoms(left_P) - family.atoms(right_P)[0]).norm(dim=-1)
    assert distances_k.min() > 0.1


def test_a_family_that_misses_a_direction_does_not_pass():
    results = {
        (task.cell, task.part): [Measured(list(task.run(task.setting)))] for task in study.tasks()
    }
    results["gelu", "truths"] = results["expert that is zero", "truths"]
    verdicts = {finding.cell: finding.verdict for finding in study.judge(results)}
    assert verdicts["gelu"] == NOT_REPRODUCED
