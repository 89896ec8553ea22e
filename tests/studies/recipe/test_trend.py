"""Cells of the trend: their sizes, differences at the best rates, slopes and verdicts."""

import pytest

from sigmoid_attention.lab.rows import ArmRow
from sigmoid_attention.lab.statistics import Interval
from sigmoid_attention.lab.store import Store
from sigmoid_attention.nn.models import DecoderLM
from sigmoid_attention.studies.recipe import candidates, trend
from sigmoid_attention.studies.recipe.setting import SETTINGS
from sigmoid_attention.studies.recipe.trend import CELLS, Cell
from sigmoid_attention.studies.recipe.unit import DIVERGED, LOSS, units

TREND = SETTINGS["trend"]


@pytest.mark.parametrize("dim", trend.SIZES)
def test_cells_name_their_parameters_and_read_that_many_bytes_a_parameter(dim):
    for cell in (cell for cell in CELLS if cell.dim == dim):
        setting = cell.setting(TREND)
        softmax = candidates.CANDIDATES["softmax"].config(vocab_size=257, **setting.sizes)
        model = DecoderLM(softmax)
        assert sum(parameter.numel() for parameter in model.parameters()) == cell.parameters
        read = setting.steps * setting.batch_size * setting.seq_len
        assert read / cell.parameters == pytest.approx(cell.ratio, rel=0.03)


def test_the_series_are_made_of_cells():
    assert {Cell(dim, ratio) for dim, ratios in trend.BY_TRAINING.items() for ratio in ratios} <= {
        *CELLS
    }
    assert {Cell(dim, ratio) for dim, ratio in trend.BY_SIZE.items()} <= {*CELLS}
    assert len({cell.name for cell in CELLS}) == len(CELLS) == 7


def test_differences_are_at_each_candidates_best_rate(tmp_path):
    store = Store(tmp_path / "cell", {}, {}, resume=False)
    setting = CELLS[0].setting(TREND)
    best = {"softmax": 5e-3, "sigmoid-centred": 1e-2}
    for unit in units(setting):
        value = 2.0 + 0.1 * (unit.seed - 100) + (0.5 if unit.lr != best[unit.candidate] else 0)
        value -= 0.1 if unit.candidate == "sigmoid-centred" else 0
        rows = [
            ArmRow(unit.arm, LOSS, value + times - 1, "bits/byte", unit.seed, length=256 * times)
            for times in (1, 2)
        ]
        store.put(unit.name, rows)
    found = trend.differences(store, setting)
    assert found == {seed: pytest.approx(-0.1 / 2.1 * 100) for seed in (100, 101, 102)}


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-1.0, -2.0, -0.1), "growing in favour of sigmoid"),
        ((0.5, 0.1, 0.9), "turning against sigmoid"),
        ((0.5, -0.1, 1.1), "open"),
        ((0.5, float("nan"), float("nan")), "-"),
    ],
)
def test_the_verdict_is_by_the_whole_interval(interval, verdict):
    assert trend.verdict(Interval(*interval, n=3)) == verdict


def test_the_report_has_every_cell_and_series():
    found = {cell: {seed: -cell.ratio - 0.01 * seed for seed in (100, 101, 102)} for cell in CELLS}
    text = trend.trend_report(found)
    assert text.count(" % |") == len(CELLS)
    assert "| length of training, 838,144 parameters | -4." in text
    assert "| size, 5 bytes a parameter | +0.00 (" in text or "-0.00 (" in text
    assert text.count("growing in favour of sigmoid") == 2


def test_a_cell_whose_candidate_diverged_says_so(tmp_path):
    store = Store(tmp_path / "cell", {}, {}, resume=False)
    setting = CELLS[0].setting(TREND)
    for unit in units(setting):
        row = ArmRow(unit.arm, LOSS, 2.0, "bits/byte", unit.seed, length=256)
        if unit.candidate == "softmax" and unit.seed == 101:
            row = ArmRow(unit.arm, DIVERGED, 1.0, "runs", unit.seed)
        store.put(unit.name, [row])
    assert trend.differences(store, setting) == {}
    found = {cell: {100: 1.0, 101: 1.5, 102: 2.0} for cell in CELLS} | {CELLS[0]: {}}
    text = trend.trend_report(found)
    assert "| 218,368 | 1 | diverged at every rate |" in text
    assert "| length of training, 218,368 parameters | - | - |" in text
