"""The study of a crowd of tokens: its closed form, its rule and a small run."""

from dataclasses import replace

import pytest
import torch

from sigmoid_attention.lab.study import Measured
from sigmoid_attention.mixtures.rates.slopes import Slope
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from sigmoid_attention.studies.theory import regularity_crowd as study

RISING, FLAT, FALLING = Slope(0.2, 0.1, 0.3), Slope(0.0, -0.1, 0.1), Slope(-0.2, -0.3, -0.1)


@pytest.mark.parametrize(
    "claim, near, far, verdict",
    (
        (study.EXPONENTIAL, FALLING, RISING, REPRODUCED),
        (study.QUADRATIC, FALLING, RISING, NOT_REPRODUCED),
        (study.QUADRATIC, FLAT, FALLING, REPRODUCED),
        (study.EXPONENTIAL, FLAT, FALLING, NOT_REPRODUCED),
        # A power above two rises as well, but less and less.
        (study.EXPONENTIAL, RISING, RISING, UNDECIDED),
        (study.QUADRATIC, FALLING, FLAT, UNDECIDED),
    ),
)
def test_the_rule(claim, near, far, verdict):
    assert study.verdict_of(claim, near, far) == verdict


@pytest.mark.parametrize("cell", study.CLAIMS)
@pytest.mark.parametrize("radius", (1.0, 2.7, 3.4))
def test_the_closed_form_is_the_norm_of_the_whole_jacobian(cell, radius):
    """Against torch's Jacobian of the formula, with equal tokens in two dimensions."""
    n = study.crowd_size(radius)
    x = torch.full((n, 1), radius / 2, dtype=torch.float64)
    x[0] = radius
    x = x * torch.tensor([0.6, 0.8], dtype=torch.float64)

    def attend(x):
        logits = x @ x.T
        if cell == study.SOFTMAX:
            return logits.softmax(-1) @ x
        if cell == study.SHARED:
            return torch.sigmoid(logits - torch.tensor(float(n)).log()) @ x
        return torch.sigmoid(logits) @ x / n

    jacobian = torch.autograd.functional.jacobian(attend, x).reshape(2 * n, 2 * n)
    expected = float(torch.linalg.matrix_norm(jacobian, 2))
    assert study.closed_norm(cell, radius) == pytest.approx(expected, rel=1e-6)


def test_without_random_parts_the_study_measures_the_closed_form(monkeypatch):
    monkeypatch.setattr(study, "JITTER", 0.0)
    for cell in study.CLAIMS:
        (row, *_) = study.measure(study.CrowdSetting(cell, 3.0, replicates=1))
        assert row.quantity == "measured"
        assert row.value == pytest.approx(study.closed_norm(cell, 3.0), rel=2e-3)


def test_a_small_run_gives_a_verdict_for_each_kind_below_its_bounds():
    results = {}
    for task in study.STUDY.tasks():
        if task.setting.radius > 4:
            continue
        measured = Measured(list(task.run(replace(task.setting, replicates=2))))
        assert (measured.values("measured") <= measured.values("bound") * (1 + 1e-9)).all()
        results[task.cell, task.part] = [measured]
    # The largest radii take most of the time, and the verdict is that of the study without them.
    short = study.RADII[:-2]
    assert short[-1] == 4.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "RADII", short)
        findings = study.STUDY.judge(results)
        assert study.STUDY.draw(results).axes
    verdicts = [finding.verdict for finding in findings]
    assert verdicts == [REPRODUCED, NOT_REPRODUCED, REPRODUCED]
