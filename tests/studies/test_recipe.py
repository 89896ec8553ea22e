"""The recipe study on synthetic values: best settings, comparisons, and recommendation."""

import pytest

from sigmoid_attention.studies.recipe import (
    CANDIDATES,
    RecipeSetting,
    model_config,
    recommended,
    report,
    run,
    standings,
)
from tests.support.studies import recipe_store
from tests.support.studies.recipe_store import SETTING

store = recipe_store.store  # a fixture


def test_every_candidate_stands_at_its_best_rate_against_the_better_softmax(store):
    by_candidate = {standing.candidate: standing for standing in standings(store, SETTING)}
    assert {standing.lr for standing in by_candidate.values()} == {1e-2}
    # "rope softmax hybrid" stands second in the list, so it is the better of rope's two.
    first = by_candidate["rope softmax pre"]
    assert first.gap.mean == pytest.approx(0.1)
    assert first.gap.high == pytest.approx(first.gap.low)
    assert by_candidate["rope sigmoid hybrid -log n"].gap.mean == pytest.approx(-0.1)
    assert by_candidate["rope softmax hybrid"].at[16].mean == pytest.approx(3 - 0.1 + 2 + 0.01)


def test_the_lowest_sigmoid_of_each_position_is_recommended(store):
    candidates = standings(store, SETTING)
    chosen = {position: choice.candidate for position, choice in recommended(candidates).items()}
    assert chosen == {
        "rope": "rope sigmoid hybrid -log n - 2.5",
        "alibi": "alibi sigmoid pre -log L",
    }
    text = report(candidates)
    assert "rope: recommended is *rope sigmoid hybrid -log n - 2.5*, -0.200 (" in text
    assert "bits per byte to softmax and -0.100 (" in text
    assert text.count("\n| ") == len(CANDIDATES)


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_names_say_what_the_models_are(candidate):
    config = model_config(candidate, SETTING)
    position, activation, placement = candidate.split()[:3]
    assert (config.position, config.activation, config.norm_placement) == (
        position,
        activation,
        placement,
    )
    if activation == "sigmoid":
        assert ("-log L" in candidate) == (config.bias == "neg_log_effective_length")
        assert (config.bias_offset == -2.5) == candidate.endswith("- 2.5")


def test_runs_and_resumes_without_training_again(tmp_path):
    corpus = tmp_path / "text.txt"
    corpus.write_bytes(b"to be or not to be, that is the question\n" * 40)
    tiny = RecipeSetting(
        seeds=1,
        learning_rates=(1e-2,),
        steps=2,
        warmup_steps=1,
        batch_size=2,
        dim=8,
        layers=1,
        num_heads=2,
        ffn_dim=8,
        seq_len=8,
        heldout_bytes=100,
        source=str(corpus),
    )
    store = run(tmp_path / "study", tiny)
    parts = {part: part.stat().st_mtime_ns for part in (tmp_path / "study/rows").iterdir()}
    assert len(parts) == len(CANDIDATES)
    run(tmp_path / "study", tiny, resume=True)
    assert parts == {part: part.stat().st_mtime_ns for part in (tmp_path / "study/rows").iterdir()}
    assert "recommended" in report(standings(store, tiny))
