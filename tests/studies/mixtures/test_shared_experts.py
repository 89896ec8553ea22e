"""The study of shared experts: its truths and data, and the verdicts of its rule."""

import math

import numpy as np
import pytest
import torch

from sigmoid_attention.lab.study import Measured, Row
from sigmoid_attention.mixtures.gaussian import GaussianDeviance, expected
from sigmoid_attention.mixtures.gaussian.losses import matched
from sigmoid_attention.studies.mixtures import shared_experts
from sigmoid_attention.studies.mixtures.shared_experts_protocol import (
    SIZES,
    THEOREMS,
    SharedExpertsSetting,
    box,
    losses_of,
    pseudo_true,
    run,
    sampled,
)


@pytest.mark.parametrize(
    ("theorem", "x", "means", "weights"),
    (
        (0, -1.0, (48.0, 0.0, 0.0), (1 / (1 + math.e), math.e / (1 + math.e), 1.0)),
        (0, 2.0, (0.0, 96.0, -96.0), (1 / (1 + math.e), math.e / (1 + math.e), 1.0)),
        (1, 1.5, (14.0, -8.0, 3.0), (1 / (1 + math.e), math.e / (1 + math.e), 1.0)),
        (2, -1.0, (48.0, 0.0, 0.0), (0.377541, 0.622459, 1.0)),
        (3, 1.0, (10.0, -5.0, -48.0), (0.498258, 0.501742, 1.0)),
    ),
)
def test_truths_have_the_published_constants(theorem, x, means, weights):
    truth = THEOREMS[theorem].truth
    actual = truth.family.means_and_weights(truth.theta_P, torch.tensor([[x]], dtype=torch.float64))
    np.testing.assert_allclose(actual[0][0], means)
    np.testing.assert_allclose(actual[1][0] * 2, weights, atol=1e-6)
    variances = truth.theta_P[truth.family.indices.log_variances_c].exp().tolist()
    assert variances == pytest.approx([0.4, 0.4, 0.2 if theorem == 1 else 0.25])


def test_data_and_fits_do_not_depend_on_how_tasks_are_cut():
    whole, piece = SharedExpertsSetting(1, 60, 0, 3), SharedExpertsSetting(1, 60, 2, 1)
    together, alone = sampled(whole), sampled(piece)
    torch.testing.assert_close(together.inputs_BQd[2:], alone.inputs_BQd)
    torch.testing.assert_close(together.observations_BQ[2:], alone.observations_BQ)
    assert together.inputs_BQd.abs().max() <= 3
    rows = {(row.quantity, row.replicate): row.value for row in run(whole)}
    for row in run(piece):
        assert rows[row.quantity, row.replicate] == pytest.approx(row.value, rel=1e-6)


def test_rows_of_a_fit_to_the_end():
    early, late = (
        {
            (row.quantity, row.replicate): row
            for row in run(SharedExpertsSetting(1, 900, 4, 2, to_the_end=end))
        }
        for end in (False, True)
    )
    assert set(early) == {(name, r) for name in ("loss", "experts", "gain") for r in (4, 5)}
    for replicate in (4, 5):
        assert late["gain", replicate].value > early["gain", replicate].value > 0
        assert early["loss", replicate].n == 900
    exact = list(run(SharedExpertsSetting(0, 300, 0, 1, to_the_end=True, extra=0)))
    # Of each ReLU expert with a scale one direction of the parameters cannot be seen.
    free = THEOREMS[0].family().size - 1 - 2
    assert next(row.value for row in exact if row.quantity == "seen") == free - 3


def test_tasks_cover_every_replicate_once():
    tasks = shared_experts.tasks()
    assert len({task.key for task in tasks}) == len(tasks)
    for theorem in THEOREMS:
        for part, (sizes, replicates, _) in shared_experts.PARTS.items():
            pieces = [t.setting for t in tasks if (t.cell, t.part) == (theorem.name, part)]
            for n in sizes:
                actual = [r for piece in pieces if piece.n == n for r in piece.replicates]
                assert sorted(actual) == list(range(replicates))


@pytest.mark.slow
def test_pseudo_true_gates_leave_the_experts_true():
    """The dense regime converges to other gates with the same experts, at a cost in likelihood."""
    theorem, members = THEOREMS[3], pseudo_true(3)
    truth, family = theorem.truth, theorem.family(1)
    assert losses_of(SharedExpertsSetting(3, 100, 0, 1), members)["experts"].max() < 0.02
    assert float(losses_of(SharedExpertsSetting(3, 100, 0, 1), members[:1])["loss"]) < 0.01
    x = torch.linspace(-3, 3, 60, dtype=torch.float64)[:, None]
    data = expected(truth.family, truth.theta_P, x, n=1e5, order=12)
    which = torch.zeros(1, dtype=torch.int64)
    floor = GaussianDeviance(truth.family, data).cost(truth.theta_P[None], which)
    excess = torch.cat(
        [GaussianDeviance(family, data).cost(theta[None], which) - floor for theta in members]
    )
    assert excess.min() > -0.5
    assert excess.max() > 20
    assert (members.abs() <= box(family).high_P.abs().maximum(box(family).low_P.abs())).all()
    assert matched(family, members, members).abs().max() == 0


# Verdicts on rows that are made up -----------------------------------------------------------


def made_up(theorem, *, factor=(1.0, 1.0), exponent=None, converged=1.0):
    """Results in which the loss is (log n / n)^exponent times a little noise."""
    rng = np.random.default_rng(0)
    exponent = exponent or theorem.published
    far, end = factor
    results = {}
    for part, (sizes, replicates, _) in shared_experts.PARTS.items():
        times = {"start x100": far, "maximum": end}.get(part, 1.0)
        rows = [Row("seen", 9.0, n=float(sizes[-1]))]
        for n in sizes:
            for r in range(replicates):
                value = (
                    times * (math.log(n) / n) ** exponent * math.exp(0.05 * rng.standard_normal())
                )
                converges = bool(r < converged * replicates)
                for quantity in ("loss", "experts", "gain"):
                    rows.append(Row(quantity, value, float(n), r, converged=converges))
        half = len(rows) // 2
        results[theorem.name, part] = [Measured(rows[:half]), Measured(rows[half:])]
    return results


@pytest.mark.parametrize("theorem", THEOREMS, ids=lambda theorem: theorem.name[0])
@pytest.mark.parametrize(
    ("changes", "verdict"),
    (
        ({}, "reproduced"),
        ({"exponent": 0.3}, "not reproduced"),
        ({"exponent": 0.7}, "not reproduced"),
        ({"converged": 0.7}, "undecided"),
        ({"converged": 0.85}, "reproduced"),
        ({"factor": (1.5, 1.5)}, "reproduced"),
        ({"factor": (3.0, 1.0)}, "depends on the start"),
        ({"factor": (1.0, 3.0)}, "depends on the start"),
        # Whether a factor of 2 is more than 2 cannot be told.
        ({"factor": (2.0, 1.0)}, "undecided"),
    ),
    ids=str,
)
def test_verdicts(theorem, changes, verdict):
    (finding,) = shared_experts.judge(made_up(theorem, **changes))
    assert (finding.cell, finding.verdict) == (theorem.name, verdict)
    assert finding.because


def test_a_theorem_with_a_part_missing_has_no_verdict():
    results = made_up(THEOREMS[0])
    del results[THEOREMS[0].name, "maximum"]
    assert shared_experts.judge(results) == []


def test_the_slope_is_on_log_n_over_n():
    measured = made_up(THEOREMS[1])[THEOREMS[1].name, "published"]
    merged = Measured([row for piece in measured for row in piece.rows])
    assert shared_experts.rate(merged).value == pytest.approx(0.517, abs=0.01)
    x = np.log(np.log(SIZES) / np.array(SIZES))
    by_n = np.polyfit(np.log(SIZES), 0.517 * x, 1)[0]
    assert shared_experts.rate(merged, on_log_n=True).value == pytest.approx(by_n, abs=0.01)


def test_the_figure_has_a_panel_for_each_theorem():
    results = {}
    for theorem in THEOREMS:
        results |= made_up(theorem)
    figure = shared_experts.draw(results)
    assert [axis.get_title() for axis in figure.axes] == [theorem.name for theorem in THEOREMS]
