"""The comparison from end to end, at a size that takes seconds and has no meaningful result."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch

from sigmoid_attention.attention.impl.cpu import library
from sigmoid_attention.attention.impl.cpu.abi import loaded
from sigmoid_attention.lab.rows import ARMS, NONE, ROW_SCHEMA, SIGMOID
from sigmoid_attention.report.method import when
from sigmoid_attention.studies.compare import run as compare_module
from sigmoid_attention.studies.compare.results import UNFUSED
from sigmoid_attention.studies.compare.run import compare
from sigmoid_attention.studies.compare.settings import compare_setting
from sigmoid_attention.studies.compare.summary import select_values
from sigmoid_attention.training.checkpoint import load_checkpoint
from sigmoid_attention.training.trainer import Diverged

STEPS = 40
MEASURED_ANEW = {
    "step_seconds",
    "operator_forward_seconds",
    "operator_training_seconds",
    "process_peak_bytes",
    "unit_seconds",
    "unit_end",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    draw = random.Random(0)
    words = ["sigmoid", "softmax", "row", "key", "\n", "attends", "to", "no", "other"]
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text(" ".join(draw.choice(words) for _ in range(4000)))
    return path


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """An uninterrupted run: its folder and what it returned."""
    out = tmp_path_factory.mktemp("compare") / "out"
    setting = compare_setting("tiny", data=str(corpus), seeds=1, steps=STEPS)
    return out, compare(setting, out)


def reproducible(table):
    names = [name for name in ROW_SCHEMA.names if name not in ("machine", "versions")]
    rows = zip(*(table[name].to_pylist() for name in names), strict=True)
    return sorted(row for row in rows if row[names.index("metric")] not in MEASURED_ANEW)


def test_rows_hold_every_measurement_of_both_arms(finished):
    out, comparison = finished
    table = pq.read_table(out / "rows.parquet")
    assert table.schema.equals(ROW_SCHEMA) and table.equals(comparison.rows)
    by_arm = {
        arm: {m for m, a in zip(table["metric"].to_pylist(), table["arm"].to_pylist(), strict=True)
              if a == arm}
        for arm in (*ARMS, "both")
    }  # fmt: skip
    assert by_arm["softmax"] == by_arm["sigmoid"] == {
        "train_loss", "validation_bits_per_byte", "recall_accuracy", "copy_accuracy",
        "attention_output_norm", "attention_mass", "largest_weight", "residual_norm",
        "gradient_norm", "step_seconds", "operator_forward_seconds", "operator_training_seconds",
        "operator_peak_bytes", "peak_memory_bytes", "parameters", "validation_during_training",
        "sample_prompt", "sample_text", "bits_after_seen", "bits_after_new",
    }  # fmt: skip
    assert by_arm["both"] == {
        "bigram_bits_per_byte", "process_peak_bytes", "unit_seconds", "unit_end",
    }  # fmt: skip
    assert "nats/token" not in set(table["unit"].to_pylist())


def test_the_unfused_operator_is_measured_beside_the_kernel(finished):
    _, comparison = finished
    turns = select_values(comparison.rows, "step_seconds", "step", arm=UNFUSED)
    if loaded() is None:
        assert not turns and not comparison.fusion.gains
        return
    assert turns == select_values(comparison.rows, "step_seconds", "step", arm=SIGMOID)
    assert [(gain.metric, gain.length) for gain in comparison.fusion.gains] == [
        ("step_seconds", NONE),
        *((f"operator_{p}_seconds", n) for p in ("forward", "training") for n in (32, 64)),
    ]
    assert all(gain.ratio.bounded for gain in comparison.fusion.gains)
    path = library.decision().path
    assert path in comparison.fusion.operator
    assert comparison.machine["sigmoid_operator"] == comparison.fusion.operator


@pytest.mark.slow
def test_without_a_kernel_all_else_is_measured(finished, corpus, tmp_path, monkeypatch):
    _, with_kernel = finished
    monkeypatch.setenv("SIGMOID_ATTENTION_CPU", "off")
    setting = compare_setting("tiny", data=str(corpus), seeds=1, steps=STEPS)
    comparison = compare(setting, tmp_path / "out")
    assert set(comparison.rows["arm"].to_pylist()) == {*ARMS, "both"}
    assert comparison.fusion.gains == []
    assert "switched off" in comparison.fusion.operator
    questions = [(row.metric, row.length) for row in comparison.summary]
    assert questions == [(row.metric, row.length) for row in with_kernel.summary]


def test_a_run_is_not_continued_with_another_operator(finished, corpus, monkeypatch):
    if loaded() is None:
        pytest.skip("there is no CPU kernel here")
    out, _ = finished
    monkeypatch.setenv("SIGMOID_ATTENTION_CPU", "off")
    setting = compare_setting("tiny", data=str(corpus), seeds=1, steps=STEPS)
    with pytest.raises(ValueError, match=r'cpu_kernel was ".*" .* is "none" now'):
        compare(setting, out, resume=True)


def test_the_kernel_is_there_before_any_work_begins(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "_choices", {})
    decided = []

    def nothing(*arguments):
        decided.append(library.decision())
        return iter(())

    monkeypatch.setattr(compare_module, "units", nothing)
    assert library.decision() is None
    comparison = compare(compare_setting("tiny", data=str(corpus)), tmp_path / "out")
    assert decided != [None] and len(decided) == 1
    assert comparison.fusion is None and comparison.summary == []


def test_rows_carry_where_they_came_from(finished, corpus):
    _, comparison = finished
    row = comparison.rows.slice(0, 1).to_pylist()[0]
    assert json.loads(row["setting"])["text"]["model"]["max_seq_len"] == 32
    assert json.loads(row["machine"])["cores"] >= 1
    assert json.loads(row["versions"])["torch"]
    assert json.loads(row["provenance"])["source"] == str(corpus)
    assert comparison.provenance["source"] == str(corpus)
    assert "--preset tiny --steps 40 --seeds 1" in comparison.setting["command"]


def test_lengths_steps_and_layers_are_as_asked(finished):
    _, comparison = finished
    rows = comparison.rows
    assert set(select_values(rows, "validation_bits_per_byte", "length")) == {32, 64, 128}
    assert set(select_values(rows, "train_loss", "step")) == set(range(1, STEPS + 1))
    tested = select_values(rows, "validation_during_training", "step", arm=SIGMOID)
    assert sorted(tested) == list(range(4, STEPS + 1, 4))
    assert set(select_values(rows, "recall_accuracy", "step")) == {5, 10}
    assert set(select_values(rows, "attention_output_norm", "layer")) == {0, 1}
    # At the initialisation, before the first update.
    assert min(select_values(rows, "attention_output_norm", "step")) == 0
    assert set(select_values(rows, "step_seconds", "seed")) == {NONE}


def test_arms_start_from_equal_weights_and_read_equal_batches(finished):
    out, _ = finished
    runs = [load_checkpoint(out / "runs" / f"{arm}-seed100" / "checkpoint.safetensors").config
            for arm in ARMS]  # fmt: skip
    differing = {key for key in runs[0]["model"] if runs[0]["model"][key] != runs[1]["model"][key]}
    assert differing == {"activation"}
    assert runs[0]["data"] == runs[1]["data"] and runs[0]["train"] == runs[1]["train"]


def test_one_seed_gives_no_verdict(finished):
    _, comparison = finished
    assert comparison.verdict.headline == "No verdict: 1 seed gives no interval, 3 would"
    assert not any(r.difference.bounded for r in comparison.summary if r.kind == "difference")


def test_a_finished_run_is_read_and_not_repeated(finished, corpus):
    out, comparison = finished
    parts = {part: part.stat().st_mtime_ns for part in (out / "rows").iterdir()}
    setting = compare_setting("tiny", data=str(corpus), seeds=1, steps=STEPS)
    again = compare(setting, out, resume=True)
    assert again.rows.equals(comparison.rows)
    assert {part: part.stat().st_mtime_ns for part in (out / "rows").iterdir()} == parts


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("rows/text-softmax-seed100.parquet", "flipped"),
        ("rows/copy-sigmoid-seed100-step000005.parquet", "missing"),
        ("rows/text-sigmoid-seed100-step000008.parquet", "missing"),
        ("rows/recall-softmax-seed100-step000005.parquet", "flipped"),
        ("runs/sigmoid-seed100/records/steps-000000010-000000010.parquet", "flipped"),
        ("runs/sigmoid-seed100/records/steps-000000010-000000010.parquet", "missing"),
    ],
    ids=[
        "a unit",
        "a test that is missing",
        "a test of text that is missing",
        "a test",
        "records",
        "records that are missing",
    ],
)
def test_a_damaged_file_is_named_and_written_again(finished, corpus, tmp_path, capsys, name, harm):
    whole, comparison = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    if harm == "missing":
        (out / name).unlink()
    else:
        data = bytearray((out / name).read_bytes())
        data[len(data) // 2] ^= 1
        (out / name).write_bytes(data)
    if name.startswith("runs"):
        # They are read again when the unit is.
        (out / "rows" / "text-sigmoid-seed100.parquet").unlink()
    setting = compare_setting("tiny", data=str(corpus), seeds=1, steps=STEPS)
    again = compare(setting, out, resume=True)
    message = capsys.readouterr().err
    assert (
        str((out / name).parent if "missing" in harm and "records" in name else out / name)
        in message
    )
    assert reproducible(again.rows) == reproducible(comparison.rows)


def test_another_text_is_refused(finished, corpus, tmp_path):
    out, _ = finished
    other = tmp_path / "corpus.txt"
    other.write_text(corpus.read_text()[::-1])
    setting = compare_setting("tiny", data=str(corpus), seeds=1, steps=STEPS)
    with pytest.raises(ValueError, match=r"data was .* is .* now"):
        compare(dataclasses.replace(setting, data=str(other)), out, resume=True)
    before = corpus.read_text()
    corpus.write_text(before[::-1])
    try:
        with pytest.raises(
            ValueError, match="the text was another one when this folder was started"
        ):
            compare(setting, out, resume=True)
    finally:
        corpus.write_text(before)


# Dies as if the machine had been switched off, in the middle of the second arm's training: its
# third checkpoint is written, the first arm wrote eight.
DIES = """
import os, signal
from sigmoid_attention.cli import main
from sigmoid_attention.training import trainer

save, saved = trainer.save_checkpoint, []

def save_and_die(*arguments, **named):
    save(*arguments, **named)
    saved.append(1)
    if len(saved) == 11:
        os.kill(os.getpid(), signal.SIGKILL)

trainer.save_checkpoint = save_and_die
main()
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_rows(finished, corpus, tmp_path):
    whole, comparison = finished
    out = tmp_path / "out"
    command = [sys.executable, "-c", DIES, "compare", "--preset", "tiny", "--seeds", "1"]
    command += ["--steps", str(STEPS), "--device", "cpu", "--data", str(corpus), "--out", str(out)]
    died = subprocess.run(
        command, capture_output=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert died.returncode == -signal.SIGKILL
    whole_parts = {part.stem for part in (out / "rows").iterdir() if "-step" not in part.stem}
    assert whole_parts == {"baseline", "text-softmax-seed100"}

    setting = compare_setting("tiny", data=str(corpus), seeds=1, steps=STEPS)
    resumed = compare(setting, out, resume=True)
    assert reproducible(resumed.rows) == reproducible(comparison.rows)
    # The trained weights too, to the bit.
    for arm in ARMS:
        ours, theirs = (
            load_checkpoint(folder / "runs" / f"{arm}-seed100" / "checkpoint.safetensors").tensors
            for folder in (out, whole)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_more_seeds_are_added_to_a_finished_run(finished, corpus, tmp_path):
    whole, comparison = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    parts = {part.name: part.stat().st_mtime_ns for part in (out / "rows").iterdir()}

    def setting_of(seeds, **changes):
        return compare_setting("tiny", data=str(corpus), seeds=seeds, **{"steps": STEPS} | changes)

    with pytest.raises(ValueError, match=r"text\.steps was 40 .* is 41 now"):
        compare(setting_of(2, steps=STEPS + 1), out, resume=True)
    grown = compare(setting_of(2), out, resume=True)
    assert set(select_values(grown.rows, "train_loss", "seed")) == {100, 101}
    before = reproducible(comparison.rows)
    assert [row for row in reproducible(grown.rows) if row in before] == before
    after = {part.name: part.stat().st_mtime_ns for part in (out / "rows").iterdir()}
    assert {name: after[name] for name in parts} == parts
    assert all("seed101" in name for name in after.keys() - parts.keys())
    assert "--seeds 2" in grown.setting["command"]

    files = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=r"--seeds: .* has rows of 2 seeds already, got 1"):
        compare(setting_of(1), out, resume=True)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == files


@pytest.mark.slow
def test_each_arm_has_the_learning_rate_that_it_is_given(corpus, tmp_path):
    setting = compare_setting(
        "tiny", data=str(corpus), seeds=1, steps=3, lr=0.002, softmax_lr=0.004
    )
    compare(setting, tmp_path)
    rates = {
        arm: load_checkpoint(tmp_path / "runs" / f"{arm}-seed100" / "checkpoint.safetensors")
        .config["train"]["lr"]
        for arm in ARMS
    }  # fmt: skip
    assert rates == {"softmax": 0.004, "sigmoid": 0.002}


def test_both_arms_write_after_the_same_words_of_the_held_out_text(finished, corpus):
    _, comparison = finished
    prompts, texts = (
        {arm: bytes(map(int, select_values(comparison.rows, metric, "value", arm=arm)))
         for arm in ARMS}
        for metric in ("sample_prompt", "sample_text")
    )  # fmt: skip
    assert prompts["softmax"] == prompts["sigmoid"] and prompts["softmax"] in corpus.read_bytes()
    assert all(0 < len(text) <= 32 for text in texts.values())


def test_a_run_says_when_it_was_and_how_long_it_took(finished):
    _, comparison = finished
    told = when(comparison.rows)
    assert told.keys() == {"begun", "finished", "duration"} and told["begun"] <= told["finished"]
    assert when(ROW_SCHEMA.empty_table()) == {}
    assert comparison.path.endswith("out/rows.parquet")
    assert comparison.advice


def test_a_run_that_diverges_is_named(corpus, tmp_path):
    setting = compare_setting("tiny", data=str(corpus), seeds=1, lr=1e30)
    with pytest.raises(Diverged, match="diverged at step") as caught:
        compare(setting, tmp_path / "out")
    assert caught.value.__notes__ == ["in the run: text, softmax, seed 100"]


def test_a_short_corpus_is_refused_before_anything_is_written(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("too short to hold out four sequences " * 20)
    with pytest.raises(ValueError, match="shorter than one sequence"):
        compare(compare_setting("tiny", data=str(short)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
