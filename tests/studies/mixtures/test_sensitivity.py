"""Training against least squares: mini-batches visibly miss the minimum, and the rule."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sigmoid_attention.lab.study import Measured, Row
from sigmoid_attention.mixtures.data import Samples
from sigmoid_attention.mixtures.rates.setting import RateSetting, draw_truth
from sigmoid_attention.mixtures.rates.slopes import Slope
from sigmoid_attention.mixtures.rates.verdict import (
    DEPENDS_ON_THE_START,
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
)
from sigmoid_attention.mixtures.stochastic import StochasticRecipe
from sigmoid_attention.studies.mixtures import sensitivity
from sigmoid_attention.studies.mixtures.sensitivity import (
    LEAST_SQUARES,
    STUDY,
    SensitivitySetting,
    judge,
    measure,
    verdict_of,
)

SETTING = RateSetting("softmax", "gelu", sizes=(100, 1000), replicates=4)


def test_training_ends_above_least_squares_on_the_same_data():
    exact = Measured(list(measure(SensitivitySetting(SETTING))))
    assert exact.share("D2") > 0.7
    trained = Measured(list(measure(SensitivitySetting(SETTING, StochasticRecipe(epochs=2)))))
    assert (trained.values("chi2") > exact.values("chi2")).all()
    assert trained.share("D2") == 0
    # Where nothing is learnt both end at the same start.
    still = StochasticRecipe(learning_rate=1e-12, epochs=1)
    near = [
        Measured(list(measure(SensitivitySetting(SETTING, recipe))))
        for recipe in (still, replace(still, epochs=2))
    ]
    np.testing.assert_allclose(near[0].values("chi2"), near[1].values("chi2"), rtol=1e-6)
    assert (near[0].values("chi2") > trained.values("chi2")).mean() > 0.5


def test_without_noise_only_training_leaves_an_error():
    silent = replace(SETTING, sigma=0.0, extra=0)
    exact = Measured(list(measure(SensitivitySetting(silent))))
    assert np.median(exact.values("L2")) < 1e-4
    trained = Measured(list(measure(SensitivitySetting(silent, StochasticRecipe(epochs=2)))))
    assert np.median(trained.values("L2")) > 1e-3


def test_a_moved_reference_changes_no_function():
    truth = draw_truth(SETTING)
    theta = torch.randn(3, SETTING.family.size, dtype=torch.float64)
    moved = sensitivity._with_reference(SETTING, theta, truth)
    size = SETTING.family.score_size
    assert (SETTING.family.atoms(moved)[:, -1, :size] - truth.atoms[-1, :size]).abs().max() < 1e-12
    inputs = Samples.draw(lambda x: x[..., 0], count=1, n=50, d=2, sigma=0, seed=0).inputs_BQd[0]
    torch.testing.assert_close(
        SETTING.family.predict(moved, inputs), SETTING.family.predict(theta, inputs)
    )


@pytest.mark.parametrize(
    ("missed", "minimum", "verdict"),
    [
        (0.5, Slope(-0.1, -0.2, 0.0), REPRODUCED),
        (9.0, Slope(-0.1, -0.2, 0.0), NOT_REPRODUCED),
        (9.0, Slope(-0.4, -0.6, -0.2), UNDECIDED),
        (np.inf, Slope(-0.1, -0.2, 0.0), NOT_REPRODUCED),
    ],
)
def test_the_rule(missed, minimum, verdict):
    assert verdict_of(missed, minimum, Slope(-0.5, -0.55, -0.45)) == verdict


def synthetic_run(power: float, chi2: float, converged: bool = False) -> Measured:
    rng = np.random.default_rng(0)
    rows = []
    for n in sensitivity.SIZES:
        for replicate in range(20):
            loss = n**power * np.exp(0.1 * rng.standard_normal())
            for quantity, value in (("D2", loss), ("L2", loss), ("chi2", chi2)):
                rows.append(Row(quantity, float(value), n, replicate, converged=converged))
    return Measured(rows)


def results_of(powers: dict[str, tuple[float, float]]):
    usual = {LEAST_SQUARES: (-0.5, 100.0, True)} | powers
    return {
        (task.cell, task.part): [synthetic_run(*usual.get(task.part, (-0.5, 100.2)))] * 3
        for task in STUDY.tasks()
    }


def test_recipes_that_agree_with_least_squares_are_reproduced():
    results = judge(results_of({}))
    assert {finding.verdict for finding in results} == {REPRODUCED}


def test_one_recipe_that_differs_makes_it_a_matter_of_the_start():
    by_cell = {finding.cell: finding for finding in judge(results_of({"SGD": (-0.2, 150.0)}))}
    assert by_cell["softmax gelu, SGD"].verdict == NOT_REPRODUCED
    assert "up to 50 chi2 above least squares" in by_cell["softmax gelu, SGD"].because
    assert "without any noise the slope is -0.50" in by_cell["softmax gelu, SGD"].because
    assert by_cell["softmax gelu, Adam"].verdict == REPRODUCED
    assert by_cell["softmax gelu, all recipes"].verdict == DEPENDS_ON_THE_START


def test_recipes_of_which_intervals_are_wide_are_not_alike():
    wide = [Slope(-0.3, -0.5, -0.1), Slope(-0.3, -0.45, -0.15)]
    assert sensitivity._together("x", wide).verdict == UNDECIDED
    near = [Slope(-0.3, -0.33, -0.27), Slope(-0.28, -0.31, -0.25)]
    assert sensitivity._together("x", near).verdict == REPRODUCED


def test_diverged_fits_are_named_and_are_no_minimum():
    lost = Measured([replace(row, value=np.inf) if row.replicate < 12 and row.quantity == "chi2"
                     else row for row in synthetic_run(-0.5, 100.2).rows])  # fmt: skip
    results = results_of({})
    results["sigmoid relu", "Adam"] = [lost] * 3
    adam = {finding.cell: finding for finding in judge(results)}["sigmoid relu, Adam"]
    assert adam.controls == "diverged 60%"
    assert adam.verdict == UNDECIDED


def test_the_figure_shows_training_without_noise():
    figure = STUDY.draw(results_of({}))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(figure.axes) == len(sensitivity.FAMILIES)
    assert any("no noise" in label for label in labels)
    assert any(label.startswith(LEAST_SQUARES) for label in labels)
