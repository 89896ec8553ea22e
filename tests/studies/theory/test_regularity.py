"""The studies of Jacobian norms: their rules on synthetic numbers, and a small run of each."""

from dataclasses import replace

import pytest
import torch

from sigmoid_attention.lab.study import Measured
from sigmoid_attention.mixtures.rates.slopes import Slope
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from sigmoid_attention.studies.theory import (
    regularity_depth,
    regularity_length,
    regularity_radius,
    regularity_training,
)
from sigmoid_attention.studies.theory.drawn import DrawnLayers, generator, layer, tokens_of
from tests.support.tiers import sampled

STUDIES = {
    study.STUDY.name: (study,) for study in (regularity_radius, regularity_length, regularity_depth)
}


def sharp(value: float, half: float = 0.05) -> Slope:
    return Slope(value, value - half, value + half)


@pytest.mark.parametrize(
    "far, verdict",
    (
        (sharp(1.9), REPRODUCED),
        (sharp(1.5), NOT_REPRODUCED),
        (sharp(6.0), NOT_REPRODUCED),
        (sharp(2.0, half=0.6), UNDECIDED),
    ),
)
def test_the_rule_on_radii(far, verdict):
    assert regularity_radius.verdict_of(far) == verdict


def test_the_rules_on_length_depth_and_training():
    assert regularity_length.verdict_of(sharp(0.1), 0.0) == REPRODUCED
    assert regularity_length.verdict_of(sharp(0.3), 0.0) == NOT_REPRODUCED
    for rule in (regularity_depth.verdict_of, regularity_training.verdict_of):
        assert rule(sharp(0.8)) == REPRODUCED
        assert rule(sharp(1.2)) == NOT_REPRODUCED
        assert rule(sharp(0.98)) == UNDECIDED


@pytest.mark.parametrize("study", sampled(STUDIES, "regularity_length", "regularity_depth"))
def test_a_small_run_gives_findings_a_figure_and_measurements_below_their_bounds(
    study, monkeypatch
):
    monkeypatch.setattr(regularity_radius, "STEPS", 3)
    results = {}
    for task in study.STUDY.tasks():
        small = {"replicates": 2}
        if study is regularity_depth:
            small |= {"dim": 8, "num_heads": 2, "tokens": 4}
        rows = list(task.run(replace(task.setting, **small)))
        results.setdefault((task.cell, task.part), []).append(Measured(rows))
        values = {name: Measured(rows).values(name) for name in {row.quantity for row in rows}}
        measured = values.get("measured", values.get("steepest"))
        assert (measured <= values["bound"] * (1 + 1e-6)).all()
        assert (measured > 0).all()
    findings = study.STUDY.judge(results)
    assert len(findings) == len({cell for cell, _ in results})
    assert all(finding.verdict and finding.measured for finding in findings)
    assert study.STUDY.draw(results).axes


def test_both_kinds_get_the_same_weights_and_tokens_and_these_are_independent():
    sigmoid, softmax = (DrawnLayers(kind, 4, radius=2.0) for kind in ("sigmoid", "softmax"))
    assert layer(sigmoid, 1).key.weight.equal(layer(softmax, 1).key.weight)
    assert not layer(sigmoid, 1).key.weight.equal(layer(sigmoid, 2).key.weight)
    x = tokens_of(sigmoid, generator(sigmoid, 1, "tokens"))
    assert x.norm(dim=-1).tolist() == pytest.approx([2.0] * 4)
    assert not torch.allclose(tokens_of(sigmoid, generator(sigmoid, 1, "weights")), x, atol=1e-3)


def test_the_search_starts_where_all_logits_are_near_zero():
    setting = DrawnLayers("sigmoid", 6, radius=100.0)
    attention = layer(setting, 0)
    x = regularity_radius.undecided_tokens(attention, setting, torch.Generator().manual_seed(0))
    query, key, _ = attention.project(x[None], 0, None)
    assert x.norm(dim=-1).tolist() == pytest.approx([100.0] * 6)
    assert float((query @ key.mT).abs().max()) < 1e-6


def test_training_measures_every_look_and_all_robustness():
    run = regularity_training.TrainingSetting(
        "sigmoid", 0, steps=50, dim=8, num_heads=2, layers=1, seq_len=8
    )
    rows = list(regularity_training.measure(run))
    looks = {row.step for row in rows if row.quantity == "steepness"}
    assert looks == {0, 50}
    values = {row.quantity: row.value for row in rows}
    assert values["attack"] > values["noise"] > 0
    assert values["loss"] > 0 and values["roughness"] > 0
