"""Retrieval runs: their batches, their rows, and the verdict on recall, on synthetic values."""

from dataclasses import replace

import pytest
import torch

from sigmoid_attention.lab.rows import ArmRow
from sigmoid_attention.lab.statistics import Interval
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.recipe import retrieval
from sigmoid_attention.studies.recipe.recall_standing import (
    RECALLS,
    RecallStanding,
    recall_report,
    recall_standings,
)
from sigmoid_attention.studies.recipe.retrieval import COPY, SOURCE, WINDOWED, Retrieval
from sigmoid_attention.studies.recipe.setting import SETTINGS, RecipeSetting
from sigmoid_attention.studies.recipe.unit import DIVERGED, PREFIX, Unit, units

SETTING = RecipeSetting(
    ("softmax", "sigmoid-paper", "sigmoid-centred"),
    seeds=(0, 1, 2),
    learning_rates=(1e-3, 1e-2),
    seq_len=128,
    source=SOURCE,
)


def test_batches_are_the_tasks_by_turns_and_the_same_for_a_step():
    tasks = Retrieval.of(SETTING, seed=3)
    scored = [int((tasks.batch(step)[1] != -100).sum()) // 8 for step in range(10)]
    assert scored == [4, 8, 16, 32, 64] * 2
    assert torch.equal(tasks.batch(7)[0], Retrieval.of(SETTING, seed=3).batch(7)[0])
    assert not torch.equal(tasks.batch(7)[0], Retrieval.of(SETTING, seed=4).batch(7)[0])
    assert tasks.batch(0)[0].shape == (8, 128)


def test_longer_tests_have_the_same_pairs_and_a_longer_string():
    tasks = Retrieval.of(SETTING, seed=0)
    for name, length, batches in tasks.tests(4):
        inputs, targets = batches[0]
        assert length == 512 and inputs.shape == (8, 512)
        scored = int((targets != -100).sum()) // 8
        assert scored == (256 if name == COPY else int(name.removeprefix("recall_")))


@pytest.fixture
def tiny() -> RecipeSetting:
    return RecipeSetting(
        ("softmax", "sigmoid-centred"), seeds=(0,), learning_rates=(1e-2,), steps=4,
        warmup_steps=1, batch_size=2, dim=8, layers=1, num_heads=2, ffn_dim=8, seq_len=128,
        tests=2, source=SOURCE,
    )  # fmt: skip


def test_a_run_continues_from_its_checkpoint_with_the_same_rows(tiny, tmp_path, monkeypatch):
    unit = Unit("sigmoid-centred", 1e-2, 0)
    whole = retrieval.train_unit(tiny, unit, tmp_path / "whole")
    metrics = {row.metric for row in whole}
    assert {*RECALLS, COPY, RECALLS[0] + WINDOWED, PREFIX} <= metrics
    assert {row.length for row in whole if row.metric == COPY} == {128, 512}
    with monkeypatch.context() as patch:
        patch.setattr(retrieval, "_accuracies", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            retrieval.train_unit(tiny, unit, tmp_path / "stopped")
    assert retrieval.train_unit(tiny, unit, tmp_path / "stopped") == whole


def test_a_run_that_diverges_says_so(tiny, tmp_path):
    rows = retrieval.train_unit(replace(tiny, steps=40), Unit("softmax", 1e30, 0), tmp_path / "run")
    assert [row.metric for row in rows] == [DIVERGED]


# Accuracy at 128 tokens of each candidate, at the better rate.
SHARES = {"softmax": 0.9, "sigmoid-paper": 0.8, "sigmoid-centred": 0.95}


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "study", {}, {}, resume=False)
    for unit in units(SETTING):
        rows = []
        for length in (128, 512):
            share = SHARES[unit.candidate] - (0.3 if unit.lr == 1e-3 else 0) + 0.001 * unit.seed
            share -= 0.2 if length == 512 and unit.candidate == "sigmoid-centred" else 0
            for name in (*RECALLS, COPY):
                for metric, value in ((name, share), (name + WINDOWED, share + 0.01)):
                    rows.append(
                        ArmRow(unit.arm, metric, value, "fraction", unit.seed, length=length)
                    )
        store.put(unit.name, rows)
    return store


def test_the_verdict_is_by_points_of_recall(store):
    ranking = recall_standings(store, SETTING)
    assert [standing.candidate for standing in ranking] == [
        "sigmoid-centred",
        "softmax",
        "sigmoid-paper",
    ]
    assert {standing.lr for standing in ranking} == {1e-2}
    centred, softmax, paper = ranking
    assert centred.points[128].mean == pytest.approx(5)
    assert (centred.verdict(128), centred.verdict(512)) == ("ahead", "behind")
    assert (softmax.verdict(128), paper.verdict(128)) == ("level", "behind")
    text = recall_report(ranking, SETTING)
    assert "| sigmoid-centred | 0.01 | 95.1 |" in text and "75.1 (76.1)" in text
    assert "+5.0 (+5.0 to +5.0), ahead" in text


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((1.5, 0.1, 2.9), "ahead"),
        ((0.5, -1.9, 2.9), "level"),
        ((-1.0, -1.9, -0.1), "level"),
        ((0.5, -2.1, 3.1), "open"),
        ((-2.5, -4.0, -1.0), "open"),
        ((-3.0, -3.9, -2.1), "behind"),
        ((-3.0, float("nan"), float("nan")), "-"),
    ],
)
def test_the_verdict_is_by_the_whole_interval(interval, verdict):
    standing = RecallStanding("sigmoid-paper", 1e-2, {}, {128: Interval(*interval, n=3)})
    assert standing.verdict(128) == verdict


def test_the_reported_retrieval_takes_seeds_that_no_choice_has_seen():
    assert SETTINGS["report-retrieval"].seeds[0] == 100
