"""The study of rows of attention as mixtures: outputs written out, and the rule."""

import math
from functools import partial

import pytest
import torch

from sigmoid_attention.lab.study import Measured
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED
from sigmoid_attention.studies.mixtures import attention_row as study


def written_out(setting, weights_H, tokens_NM):
    """The sums of the definition, one pair of tokens after another."""
    outputs = []
    for i in range(study.TOKENS):
        seen = [
            j
            for j in range(study.TOKENS)
            if not (setting.causal and j > i) and not (0 <= setting.window < i - j)
        ]
        mean = sum(tokens_NM[j] for j in seen) / len(seen)
        output = torch.zeros(study.CHANNELS, dtype=torch.float64)
        for head, (query, key, value) in enumerate(weights_H):
            for j in seen:
                centred = tokens_NM[j] - setting.centring * mean
                score = (tokens_NM[i] @ query) @ (centred @ key) / math.sqrt(study.HEAD_DIM)
                distance = study.SLOPE / 2**head * abs(i - j) if setting.alibi else 0.0
                weight = torch.sigmoid(score - distance - math.log(study.TOKENS))
                output = output + weight * (tokens_NM[j] @ value)
        outputs.append(output)
    return torch.stack(outputs)


@pytest.mark.parametrize("cell", study.CELLS)
def test_operator_and_mixtures_are_the_sums_of_the_definition(cell):
    setting, rng = study.CELLS[cell], torch.Generator().manual_seed(0)
    sizes = (study.HEAD_DIM, study.HEAD_DIM, study.CHANNELS)
    weights_H = [
        [torch.randn(study.WIDTH, size, generator=rng).double() for size in sizes]
        for _ in range(setting.heads)
    ]
    tokens_NM = torch.randn(study.TOKENS, study.WIDTH, generator=rng).double()
    expected_NE = written_out(setting, weights_H, tokens_NM)
    close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    close(study.attended(setting, weights_H, tokens_NM), expected_NE)
    mixtures_NE = study.as_mixtures(setting, weights_H, tokens_NM, True)
    close(mixtures_NE, expected_NE)


@pytest.mark.parametrize(
    "error, control, expected",
    [
        (1e-15, 0.5, REPRODUCED),
        (1e-9, 0.5, NOT_REPRODUCED),
        (1e-15, 1e-5, NOT_REPRODUCED),
        (float("nan"), 0.5, NOT_REPRODUCED),
    ],
)
def test_the_rule_needs_a_small_error_and_a_control_that_differs(error, control, expected):
    assert study.verdict(error, control) == expected


def test_each_cell_has_a_finding_and_a_place_in_the_figure():
    results = {
        (task.cell, task.part): [Measured(list(task.run(task.setting)))] for task in study.tasks()
    }
    assert [finding.cell for finding in study.judge(results)] == list(study.CELLS)
    labels = [label.get_text() for label in study.draw(results).axes[0].get_yticklabels()]
    assert labels == list(study.CELLS)
