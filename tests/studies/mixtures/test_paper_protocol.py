"""The paper's own setting: its constants, its runs on small data, and the rule."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sigmoid_attention.lab.study import Measured, Row
from sigmoid_attention.mixtures.rates.slopes import Slope
from sigmoid_attention.studies.mixtures.paper_protocol import (
    BATCHES,
    CURVES,
    DOES_NOT,
    FIRST_TRUTH,
    STUDY,
    Evidence,
    rate,
    tasks,
    verdict_of,
)
from sigmoid_attention.studies.mixtures.paper_protocol_runs import (
    ProtocolSetting,
    draw_data,
    draw_start,
    draw_truth,
    inform,
    solve,
    train,
)

SETTING = ProtocolSetting("sigmoid", "relu+bias", "sigmoid", "dense", (64, 128), 0, 2, 32)


def test_truths_data_and_starts_have_the_constants_of_the_paper():
    atoms = torch.cat([draw_truth(SETTING, seed).atoms for seed in range(60)])
    assert atoms.shape == (60 * 8, 66)
    assert atoms[:, :33].std().item() == pytest.approx((0.01 / 32) ** 0.5, rel=0.02)
    assert atoms[:, 33:].std().item() == pytest.approx((1 / 32) ** 0.5, rel=0.02)
    inputs, answers, noise = draw_data(SETTING, 0, 4000)
    assert inputs.shape == (4000, 32) and inputs.abs().max() <= 1
    assert inputs.std().item() == pytest.approx(3**-0.5, rel=0.02)
    assert noise.std().item() == pytest.approx(1.0, rel=0.05)
    truth = draw_truth(SETTING, 0)
    scores, arguments = (
        (inputs @ part[:, :32].T + part[:, 32]) for part in truth.atoms.split(33, -1)
    )
    expected = (scores.sigmoid() * arguments.relu()).sum(-1)
    torch.testing.assert_close(answers, expected)
    start = draw_start(SETTING, 0).reshape(9, 66)
    away = start - truth.atoms[[0, 0, *range(1, 8)]]
    away[:2, 32] = 0.0  # the two share the mass of one
    assert away.std().item() == pytest.approx(0.1, rel=0.1)
    assert torch.sigmoid(start[:2, 32]).sum().item() == pytest.approx(0.5, abs=0.15)


def test_regime_1_and_the_letter_change_the_truth_only():
    sparse = draw_truth(replace(SETTING, regime="sparse"), 3)
    assert (sparse.atoms[0, :32] == 0).all() and (sparse.atoms[1:, :32] != 0).all()
    dense, letter = draw_truth(SETTING, 3), draw_truth(replace(SETTING, truth_gate="softmax"), 3)
    assert torch.equal(sparse.atoms[1:], dense.atoms[1:])
    assert torch.equal(letter.theta_P, dense.theta_P)
    inputs = draw_data(SETTING, 3, 5)[0]
    answers = draw_data(replace(SETTING, truth_gate="softmax"), 3, 5)[1]
    torch.testing.assert_close(answers, letter.family.predict(letter.theta_P, inputs))
    assert letter.family.gate == "softmax"


def test_runs_give_a_loss_for_every_size_truth_and_variant():
    rows = list(train(SETTING))
    assert len(rows) == 2 * 2 * 4 and all(np.isfinite(row.value) for row in rows)
    assert len({row.quantity for row in rows}) == 4
    assert rows == list(train(SETTING))
    # A truth's losses do not depend on which others are trained beside it, but for the rounding.
    single = {(r.quantity, r.n): r.value for r in train(replace(SETTING, truths=1))}
    for row in rows:
        if row.replicate == 0:
            assert row.value == pytest.approx(single[row.quantity, row.n], rel=1e-4)
    softmax = replace(SETTING, gate="softmax", truth_gate="softmax")
    assert len(list(train(softmax))) == 2 * 2 * 3
    solved = list(solve(replace(SETTING, sizes=(64,), truths=1)))
    assert [row.quantity for row in solved] == ["start", "loss"]


def test_linear_experts_leave_more_directions_to_the_start():
    relu = Measured(list(inform(replace(SETTING, sizes=(1000, 100_000), truths=1))))
    linear = replace(SETTING, expert="linear", sizes=(1000, 100_000), truths=1)
    wide = Measured(list(inform(linear))).values("wide")
    assert relu.values("directions").tolist() == [528.0]
    assert 0 < relu.values("wide")[1] < 30 < 100 < wide[1] < wide[0]


def test_reporting_seeds_are_not_those_of_trials_and_curves_share_runs():
    settings = [task.setting for task in tasks()]
    assert min(setting.first_truth for setting in settings) == FIRST_TRUTH == 100
    # Figure 2b is figure 1 with the sigmoid's own truth.
    assert len({task.key for task in tasks()}) == len(settings) - 2 * (len(BATCHES) + 2)


# The rule -------------------------------------------------------------------------------------


def around(value: float) -> Slope:
    return Slope(value, value - 0.03, value + 0.03)


def seen(published: float, noisy: float, **changes) -> Evidence:
    same = lambda value: {batch: around(value) for batch in BATCHES}  # noqa: E731
    usual = {"noiseless": 0.3, "matched": noisy, "softmax": noisy} | changes
    wide = usual.pop("wide", 0.0)
    recipes = {(batch, noise): around(noisy) for batch in BATCHES for noise in (0.1, 0.01)}
    return Evidence(published, recipes, **{k: same(v) for k, v in usual.items()}, wide=wide)


@pytest.mark.parametrize(
    ("evidence", "verdict"),
    (
        (seen(-0.4, -0.08), DOES_NOT),
        (seen(-0.4, -0.08, noiseless=-0.08, wide=0.5), DOES_NOT),
        (seen(-0.4, -0.42), "comes out"),
        (seen(-0.4, -0.42, noiseless=-0.45), "comes out: optimisation"),
        (seen(-0.4, -0.42, matched=-0.2, softmax=-0.21), "comes out: step size"),
        (seen(-0.4, -0.42, matched=-0.4, softmax=-0.21), "comes out"),
        (seen(-0.4, -0.42, wide=0.2), "comes out: start"),
        (
            seen(-0.4, -0.42, noiseless=-0.42, matched=-0.2, softmax=-0.21, wide=0.2),
            "comes out: optimisation, step size, start",
        ),
    ),
)
def test_the_rule(evidence, verdict):
    assert verdict_of(evidence)[0] == verdict


def test_a_slope_is_a_mean_over_truths_with_a_t_interval():
    powers = (-0.4, -0.5, -0.6)
    rows = [
        Row("loss", n**power, n, place)
        for place, power in enumerate(powers)
        for n in (10.0, 100.0, 1000.0)
    ]
    slope = rate([Measured(rows)], "loss")
    assert slope.value == pytest.approx(-0.5)
    # t with two degrees of freedom times 0.1 / sqrt 3.
    assert slope.high - slope.value == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)


def made_up():
    """Every curve falls as published, also without noise; linear experts leave the start wide."""
    rng, results = np.random.default_rng(0), {}
    published = {curve.name: curve.published for curve in CURVES}
    for task in tasks():
        rows = []
        if task.part == "information":
            wide = 100.0 if "linear" in task.cell else 1.0
            rows = [Row("directions", 500.0), Row("wide", wide, 1e5)]
        else:
            names = ["loss"]
            if task.part.startswith("batch"):
                names = [
                    f"loss, noise {sigma:g}, rate {rate:g}"
                    for sigma, rate in ((0.1, 0.1), (0.01, 0.1), (0.0, 0.1), (0.1, 0.005))
                ]
            rows = [
                Row(name, n ** published[task.cell] * np.exp(0.01 * rng.normal()), n, place)
                for name in names
                for n in task.setting.sizes
                for place in range(task.setting.truths)
            ]
            rows.append(Row("start", 9.0))
        results[task.cell, task.part] = [Measured(rows)]
    return results


def test_curves_that_fall_as_published_come_out_and_are_drawn():
    results = made_up()
    found = {finding.cell: finding for finding in STUDY.judge(results)}
    assert list(found) == [curve.name for curve in CURVES]
    assert found["1a, softmax relu"].verdict == "comes out: optimisation"
    assert found["2b, regime 2, sigmoid linear"].verdict == "comes out: optimisation, start"
    assert "single truths -0.2" in found["1a, softmax relu"].controls
    assert "least squares" in found["1b, softmax linear"].measured
    assert "least squares" not in found["1b by the letter, sigmoid linear"].measured
    figure = STUDY.draw(results)
    assert [axis.get_title() for axis in figure.axes] == list(found)
