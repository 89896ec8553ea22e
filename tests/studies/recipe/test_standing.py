"""The rule of the recipe study on synthetic values: best rates, comparisons, verdicts."""

from dataclasses import replace

import pytest

from sigmoid_attention.lab.rows import ArmRow
from sigmoid_attention.lab.statistics import Interval
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.recipe.standing import Comparison, recommended, report, standings
from sigmoid_attention.studies.recipe.unit import DIVERGED, LOSS, WINDOWED, units
from tests.support.studies import recipe_store
from tests.support.studies.recipe_store import ORDER, SETTING, bits

store = recipe_store.store  # a fixture


def test_candidates_stand_at_their_best_rate_and_in_the_order_of_their_losses(store):
    ranking = standings(store, SETTING)
    assert [standing.candidate for standing in ranking] == list(reversed(ORDER))
    assert {standing.lr for standing in ranking} == {1e-2}


def test_only_the_settings_seeds_rates_and_candidates_are_judged(store):
    chosen = replace(SETTING, candidates=ORDER[1:3], seeds=(1,), learning_rates=(1e-3,))
    ranking = standings(store, chosen)
    assert [standing.candidate for standing in ranking] == ["softmax", "softmax-pre"]
    assert {standing.lr for standing in ranking} == {1e-3}
    assert ranking[0].at[8].bits.mean == pytest.approx(4.8 + 0.5 + 0.01)
    assert ranking[1].at[8].verdict == "-"


def test_differences_are_in_percent_of_the_better_softmax(store):
    by_name = {standing.candidate: standing for standing in standings(store, SETTING)}
    # "softmax" has 4.8 bits, seeds on average 0.01 more.
    centred = by_name["sigmoid-centred"].at[8]
    assert centred.bits.mean == pytest.approx(4.71)
    assert centred.percent.mean == pytest.approx(-0.1 / 4.81 * 100)
    assert centred.percent.low == pytest.approx(centred.percent.high)
    assert by_name["softmax"].at[8].percent.mean == 0
    # Beyond n the softmax with the window is better, by 0.2.
    assert by_name["softmax-pre"].at[16].percent.mean == pytest.approx(0.3 / 5.61 * 100)
    assert by_name["softmax-pre"].windowed[16].percent.mean == pytest.approx(0.1 / 5.61 * 100)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-1.0, -2.0, -0.1), "ahead"),
        ((0.1, -0.2, 0.5), "level"),
        ((0.1, 0.05, 0.4), "level"),
        ((0.1, -0.3, 0.6), "open"),
        ((0.7, 0.1, 1.3), "behind"),
        ((-3.0, float("nan"), float("nan")), "-"),
    ],
)
def test_the_verdict_is_by_the_whole_interval(interval, verdict):
    comparison = Comparison(Interval(2.0, 1.9, 2.1, 3), Interval(*interval, n=3))
    assert comparison.verdict == verdict


def test_the_recommended_sigmoid_is_not_divided_by_its_mass(store):
    ranking = standings(store, SETTING)
    assert ranking[0].candidate == "sigmoid-mass"
    assert recommended(ranking).candidate == "sigmoid-centred"


def test_the_table_shows_every_candidate_and_the_windowed_losses(store):
    text = report(standings(store, SETTING), SETTING)
    assert text.count("\n| s") == len(ORDER)
    assert "| sigmoid-centred | 0.01 | 4.710 | 5.710 (5.510) | -2.08 %" in text
    assert "-2.08 % (-2.08 to -2.08), ahead | -1.78 % (-1.78 to -1.78), ahead |" in text
    assert "Seeds 0, 1, 2." in text and "with 95 % intervals" in text
    one = report(standings(store, replace(SETTING, seeds=(1,))), replace(SETTING, seeds=(1,)))
    assert "intervals" not in one and "ahead" not in one


def test_a_rate_at_which_a_seed_diverged_is_not_judged(tmp_path):
    lossy = Store(tmp_path / "study", {}, {}, resume=False)
    for unit in units(SETTING):
        fails = unit.lr == 1e-2 and unit.seed == 1 and unit.candidate == "sigmoid-centred"
        fails |= unit.candidate == "sigmoid-paper" and unit.seed == 2
        rows = [
            ArmRow(unit.arm, metric, bits(*unit, times), "bits/byte", unit.seed, length=8 * times)
            for times in (1, 2)
            for metric in (LOSS, WINDOWED)
        ]
        lossy.put(
            unit.name, [ArmRow(unit.arm, DIVERGED, 1.0, "runs", unit.seed)] if fails else rows
        )
    by_name = {standing.candidate: standing for standing in standings(lossy, SETTING)}
    assert by_name["sigmoid-centred"].lr == 1e-3
    assert by_name["sigmoid-mass"].lr == 1e-2
    assert "sigmoid-paper" not in by_name


def test_without_a_sigmoid_none_is_recommended(store):
    assert recommended(standings(store, replace(SETTING, candidates=("softmax",)))) is None


def test_without_a_softmax_there_is_nothing_to_compare_with(tmp_path):
    lonely = Store(tmp_path / "study", {}, {}, resume=False)
    lonely.put("sigmoid", [ArmRow("sigmoid @ 0.01", LOSS, 2.0, "bits/byte", 0, length=8)])
    with pytest.raises(ValueError, match="candidates must have a softmax to compare with"):
        standings(lonely, SETTING)
