"""The study of outputs against length: its rules, and exact facts on a small run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sigmoid_attention.lab.study import Measured
from sigmoid_attention.mixtures.rates.slopes import Slope
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED
from sigmoid_attention.studies.theory import length_scaling as study
from sigmoid_attention.studies.theory.drawn import DrawnLayers, layer


def sharp(value):
    return Slope(value, value - 0.05, value + 0.05)


def test_the_rule_on_sizes():
    assert study.size_verdict(0.5, sharp(0.45), sharp(0.0)) == REPRODUCED
    assert study.size_verdict(0.5, sharp(0.2), sharp(0.0)) == NOT_REPRODUCED
    assert study.size_verdict(0.0, sharp(0.0), sharp(-0.5)) == REPRODUCED
    # Of one size, and not settling: no limit.
    assert study.size_verdict(0.0, sharp(0.0), sharp(0.0)) == NOT_REPRODUCED


def test_the_rule_on_doubled_sequences():
    exact = np.full((2, 3), 0.25)
    assert study.doubled_verdict(0.25, exact, None) == REPRODUCED
    assert study.doubled_verdict(0.0, exact, None) == NOT_REPRODUCED
    assert study.doubled_verdict(0.25, exact + np.array([0, 0, 1e-9]), None) == NOT_REPRODUCED
    assert study.doubled_verdict(study.FALLS, exact, sharp(-1.0)) == REPRODUCED
    assert study.doubled_verdict(study.FALLS, exact, sharp(-0.5)) == NOT_REPRODUCED


@pytest.mark.parametrize("cell", study.CELLS)
def test_outputs_are_those_of_the_formula(cell):
    setting = study.CELLS[cell]
    attention = layer(DrawnLayers(setting.activation, study.KEPT, 4.0, dim=study.DIM), 0)
    n = 37
    x = torch.randn(n, study.DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.zeros(study.KEPT, study.DIM, dtype=torch.float64)
    for head in torch.arange(study.DIM).chunk(2):
        query, key, value = (
            x @ part.weight[head].T for part in (attention.query, attention.key, attention.value)
        )
        logits = query[: study.KEPT] @ key.T / len(head) ** 0.5
        if setting.activation == "softmax":
            weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        else:
            beside = 1 if setting.bias == 0 else n
            weights = logits.exp() / (logits.exp() + beside)
        expected += weights @ value @ attention.output.weight[:, head].T
    torch.testing.assert_close(
        study.first_outputs(setting, attention, x), expected / n**setting.alpha
    )


def test_a_small_run_tells_which_divisors_leave_a_doubled_sequence_alone(monkeypatch):
    monkeypatch.setattr(study, "LENGTHS", (16, 64, 256))
    results = {
        (task.cell, task.part): [Measured(list(task.run(replace(task.setting, replicates=6))))]
        for task in study.STUDY.tasks()
    }
    findings = {finding.cell: finding for finding in study.STUDY.judge(results)}
    assert len(findings) == 2 * len(study.CELLS)
    unchanged = {
        cell.removesuffix(": doubled")
        for cell, finding in findings.items()
        if cell.endswith("doubled") and "below" in finding.controls
    }
    assert unchanged == {"sigmoid, b = 0, alpha = 1", "softmax"}
    assert study.STUDY.draw(results).axes
