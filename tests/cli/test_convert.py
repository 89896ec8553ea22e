"""`sigmoid-attention convert`, in this process: a tiny run, its resumption, and bad input."""

import json
import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from sigmoid_attention.cli import main
from tests.support.conversion.checkpoints import checkpoint, text
from tests.support.conversion.models import ids

QUICK = "--steps=2 --layer-steps=2 --seq-len=32 --batch-size=2 --layer-batches=1 "
QUICK += "--heldout-sequences=2 --needles 64 --device=cpu"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return str(checkpoint(folder / "model", "llama")), str(text(folder))


def ask(tiny, out, *more):
    return main(["convert", tiny[0], "--data", tiny[1], "--out", str(out), *QUICK.split(), *more])


def complaint(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("sigmoid-attention: ")
    return lines[0]


def test_it_leaves_a_model_that_writes(tiny, tmp_path, capsys):
    assert ask(tiny, tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "loss: " in told and "needle_64: " in told and "(parent " in told
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert model.config._attn_implementation == "sigmoid"
    assert model.generate(ids(1, 5), max_new_tokens=3, pad_token_id=0).shape == (1, 8)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out" / "model")("w1 w2").input_ids) == 2
    # A second time: nothing is overwritten, and with --resume there is nothing left to do.
    before = (tmp_path / "out" / "curve.json").read_text()
    assert ask(tiny, tmp_path / "out") == 2
    assert "is not empty; nothing was overwritten" in complaint(capsys)
    assert ask(tiny, tmp_path / "out", "--resume", "--gain", "3") == 2
    assert "gain was 1.5 when this folder was started and is 3.0 now" in complaint(capsys)
    assert (tmp_path / "out" / "curve.json").read_text() == before
    assert json.loads(before)["points"][-1]["stage"] == "final"
    assert ask(tiny, tmp_path / "out", "--resume") == 0
    captured = capsys.readouterr()
    assert "there is nothing left to do" in captured.err and "needle_64: " in captured.out
    assert (tmp_path / "out" / "curve.json").read_text() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--form", "row"], "form must be one of linear, constant, got 'row'"),
        (["--data", "/nowhere"], "data must be 'stdlib', 'shakespeare', or the path"),
        (["--seq-len", "5000"], "--seq-len must be at most the model's"),
        (["--needles", "5000"], "text.txt' is too short: "),
        (["--needles", "1"], "--needles must be at least"),
        (["--evaluate-every", "0"], "--evaluate-every must be at least 1, got 0"),
        (["--heldout-sequences", "0"], "--heldout-sequences must be at least 1, got 0"),
        (["--lr", "inf"], "--lr must be at least 0 and finite, got inf"),
        (["--text-weight", "-1"], "--text-weight must be at least 0 and finite, got -1.0"),
        (["--device", "tpu"], "device must be one of"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_options_give_one_sentence(tiny, tmp_path, capsys, options, message):
    assert ask(tiny, tmp_path / "out", *options) == 2
    assert message in complaint(capsys)
    assert not (tmp_path / "out").exists(), "another try would find the folder occupied"


def test_an_unknown_model_gives_one_sentence(tiny, tmp_path, capsys):
    assert ask(("smollm3", tiny[1]), tmp_path / "out") == 2
    assert "model must be one of smollm2-135m, all-minilm-l6-v2, a folder" in complaint(capsys)


def test_a_missing_extra_differs_from_one_that_does_not_import(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sigmoid_attention.studies.conversion.parents", None)
    assert ask(tiny, tmp_path / "out") == 2
    assert "transformers, which is installed but does not import here: " in complaint(capsys)
    monkeypatch.setattr("sigmoid_attention.cli.convert.find_spec", lambda _: None)
    assert ask(tiny, tmp_path / "out") == 2
    assert complaint(capsys).endswith("pip install '.[lab,transformers]' in a clone")


def test_an_unwritable_output_gives_one_sentence(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert ask(tiny, tmp_path / "file" / "out") == 2
    assert "could not write" in complaint(capsys)
