"""The runs of the recipe study: rows, resuming, and the page."""

from dataclasses import replace

import pytest

from sigmoid_attention.studies.recipe import language
from sigmoid_attention.studies.recipe.language import train_unit
from sigmoid_attention.studies.recipe.page import command, markers, publish
from sigmoid_attention.studies.recipe.run import run
from sigmoid_attention.studies.recipe.setting import SETTINGS, RecipeSetting
from sigmoid_attention.studies.recipe.standing import standings
from sigmoid_attention.studies.recipe.unit import COMMON, COURSE, PREFIX, ROTATING, Unit
from tests.support.studies import recipe_store
from tests.support.studies.recipe_store import SETTING

store = recipe_store.store  # a fixture


@pytest.fixture
def tiny(tmp_path) -> RecipeSetting:
    corpus = tmp_path / "text.txt"
    corpus.write_bytes(b"to be or not to be, that is the question\n" * 40)
    return RecipeSetting(
        candidates=("softmax", "sigmoid-centred-state"),
        seeds=(0,),
        learning_rates=(1e-2,),
        steps=4,
        warmup_steps=1,
        batch_size=2,
        dim=8,
        layers=1,
        num_heads=2,
        ffn_dim=8,
        seq_len=8,
        times=(1, 2),
        heldout_bytes=100,
        tests=2,
        records=2,
        source=str(corpus),
    )


def test_a_unit_continues_from_its_checkpoint_with_the_same_rows(tiny, tmp_path, monkeypatch):
    unit = Unit("sigmoid-centred-state", 1e-2, 0)

    def values(folder) -> dict:
        rows = train_unit(tiny, unit, folder)
        return {
            (row.metric, row.step, row.length, row.layer): row.value
            for row in rows
            if row.metric != "seconds"
        }

    whole = values(tmp_path / "whole")
    metrics = {metric for metric, *_ in whole}
    assert {
        "trained_strength",
        "attention_mass",
        "bits_after_new",
        COURSE,
        PREFIX,
        COMMON,
        ROTATING,
    } <= metrics
    stopped = tmp_path / "stopped"
    losses = language._losses
    with monkeypatch.context() as patch:
        patch.setattr(language, "_losses", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_unit(tiny, unit, stopped)
    assert language._losses is losses
    resumed = values(stopped)
    assert resumed == whole


@pytest.mark.slow
def test_a_study_runs_and_resumes_without_training_again(tiny, tmp_path):
    out = tmp_path / "study"
    first = run(out, tiny, workers=1)
    parts = {part: part.stat().st_mtime_ns for part in (out / "rows").iterdir()}
    assert len(parts) == 2 and not list((out / "runs").iterdir())
    run(out, replace(tiny, seeds=(0, 1), candidates=("softmax",)), resume=True, workers=1)
    assert parts.items() <= {p: p.stat().st_mtime_ns for p in (out / "rows").iterdir()}.items()
    assert len(standings(first, tiny)) == 2


def test_no_workers_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="workers must be 1 or more, got 0"):
        run(tmp_path / "study", tiny, workers=0)


def test_the_page_has_the_table_the_command_and_the_figure(store, tmp_path):
    begin, end = markers("trial")
    document = tmp_path / "page.md"
    document.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    ranking = standings(store, SETTING)
    for _ in range(2):
        publish("trial", SETTING, store, ranking, document)
        text = document.read_text()
    assert text.startswith(
        f"before\n{begin}\nThis table is made by `sigmoid-attention recipe --setting trial"
    )
    assert text.endswith(f"{end}\nafter\n") and "| sigmoid-centred | 0.01 |" in text
    figure = (tmp_path / "page" / "trial.svg").read_text()
    assert "sigmoid-centred" in figure and "mass of a row" in figure and "by length" in figure
    assert "copying" not in figure


def test_a_page_without_a_sigmoid_has_its_figure_too(store, tmp_path):
    document = tmp_path / "page.md"
    document.write_text("\n".join(markers("trial")))
    chosen = replace(SETTING, candidates=("softmax",))
    publish("trial", chosen, store, standings(store, chosen), document)
    assert "softmax" in (tmp_path / "page" / "trial.svg").read_text()


def test_the_command_names_what_differs():
    assert command("report", SETTINGS["report"]) == "sigmoid-attention recipe --setting report"
    changed = replace(SETTINGS["report"], seeds=(100, 101), candidates=("softmax",))
    assert command("report", changed).endswith("--candidates softmax --seeds 100 101")
