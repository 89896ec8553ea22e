"""A whole conversion of tiny models: the result, the measurements, and resuming after a kill."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from sigmoid_attention.attention import NegLogVisible
from sigmoid_attention.integrations.conversion import relative_error
from sigmoid_attention.integrations.transformers import attention_modules, convert
from sigmoid_attention.studies.conversion import run as run_module
from sigmoid_attention.studies.conversion.curve import read_curve
from sigmoid_attention.studies.conversion.parents import load_parent
from sigmoid_attention.studies.conversion.run import MODEL, Conversion, begin
from sigmoid_attention.studies.conversion.setting import ConversionSetting
from sigmoid_attention.studies.conversion.similarity import Pairs
from sigmoid_attention.studies.conversion.text import TokenSequences
from sigmoid_attention.training.checkpoint import load_checkpoint, save_checkpoint
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.progress import StepProgress
from tests.support.conversion.checkpoints import WORDS, checkpoint, text
from tests.support.conversion.models import answer

SETTING = {"steps": 6, "layer_steps": 6, "seq_len": 32, "batch_size": 2, "layer_batches": 2}
PAIRS = (Pairs("made", WORDS[:4], [(0, 1), (1, 2), (2, 3)], [0.1, 0.9, 0.4]),)


@pytest.fixture(scope="module", params=["llama", "bert"])
def parent_and_text(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return checkpoint(folder / "model", request.param), load_corpus(text(folder))


@pytest.fixture(autouse=True)
def own_pairs(monkeypatch):
    monkeypatch.setattr(
        "sigmoid_attention.studies.conversion.similarity.human_pairs", lambda: PAIRS
    )


def run(parent_and_text, out, monkeypatch=None, **changes):
    parent = load_parent(str(parent_and_text[0]))
    more = {"heldout_sequences": 4, "lengths": (), "evaluate_every": 3, "checkpoint_seconds": 0}
    setting = ConversionSetting(**{**SETTING, **changes})
    return Conversion(
        parent, parent_and_text[1], setting, out, torch.device("cpu"), **more, shown=False
    )


def loaded(parent_and_text, out):
    causal = load_parent(str(parent_and_text[0])).causal
    return (AutoModelForCausalLM if causal else AutoModel).from_pretrained(out / MODEL)


def error(parent_and_text, model):
    """How far a model's answers are from the parent's on text that is held out."""
    parent = load_parent(str(parent_and_text[0]))
    sequences = TokenSequences(parent, parent_and_text[1], seq_len=32, batch_size=8, seed=0)
    (batch,) = sequences.heldout_batches(8)
    tokens = batch["input_ids"]
    return float(relative_error(answer(model, tokens), answer(parent.model, tokens)))


def test_it_ends_as_a_sigmoid_model_near_its_parent(parent_and_text, tmp_path):
    longer = {"steps": 48, "layer_steps": 16, "layer_lr": 1e-3, "lr": 1e-3}
    curve = run(parent_and_text, tmp_path, **longer).run()
    naive = convert(load_parent(str(parent_and_text[0])).model, bias=NegLogVisible())
    model = loaded(parent_and_text, tmp_path)
    assert model.config._attn_implementation == "sigmoid"
    assert 0 < error(parent_and_text, model) < 0.9 * error(parent_and_text, naive)
    assert not (tmp_path / "checkpoint.safetensors").exists()
    assert curve.points == read_curve(tmp_path).points


def test_a_constant_form_ends_as_a_number_a_head(parent_and_text, tmp_path):
    run(parent_and_text, tmp_path, form="constant").run()
    biases = [
        module.sigmoid_bias
        for module in attention_modules(loaded(parent_and_text, tmp_path)).values()
    ]
    assert len(biases) == 2 and all(bias.dim() == 1 for bias in biases)
    # Calibrated per head, not left where they began.
    assert all(bias.abs().min() > 0.1 and bias.std() > 0 for bias in biases)


def test_without_a_parent_it_learns_the_text(parent_and_text, tmp_path, monkeypatch):
    """A plain fine-tuning: the parent is not run, and held-out text becomes likelier."""
    weights = {"hidden_weight": 0, "logit_weight": 0, "text_weight": 1.0, "layer_steps": 0}
    if not load_parent(str(parent_and_text[0])).causal:
        with pytest.raises(ValueError, match=r"^text_weight must be 0: this model predicts no tok"):
            run(parent_and_text, tmp_path, **weights)
        return
    of = run(parent_and_text, tmp_path, **weights, steps=60, lr=1e-2, repeats=0)
    ran = []
    of.parent.model.register_forward_hook(lambda module, *_: ran.append(module))
    curve = of.run()
    # Only to be measured, once for each batch. Its copies have the hook, too.
    assert sum(module is of.parent.model for module in ran) == 2
    assert curve.at("final").found["loss"] < curve.at("parent").found["loss"] - 0.3


def test_terms_of_weight_zero_are_not_learned(parent_and_text, tmp_path):
    of = run(parent_and_text, tmp_path)
    of.run()
    batch, taught = of.text.batch(0), of.distillation

    def loss(**weights):
        none = {"hidden_weight": 0.0, "logit_weight": 0.0, "text_weight": 0.0}
        taught.setting = replace(of.setting, **none | weights)
        return float(taught.loss(batch).detach())

    hidden, logits = loss(hidden_weight=1.0), loss(hidden_weight=1.0, logit_weight=2.0)
    if not of.parent.causal:
        assert logits == hidden > 0
        return
    text = loss(text_weight=1.0)
    assert logits == pytest.approx(hidden + 2 * loss(logit_weight=1.0))
    assert loss(hidden_weight=1.0, text_weight=3.0) == pytest.approx(hidden + 3 * text)
    assert len({hidden, logits, text}) == 3 and min(hidden, text, logits - hidden) > 0


def test_an_encoder_is_taught_by_its_hidden_states_alone(parent_and_text, tmp_path):
    if load_parent(str(parent_and_text[0])).causal:
        run(parent_and_text, tmp_path, hidden_weight=0)
    else:
        with pytest.raises(ValueError, match=r"^hidden_weight must be positive: this model"):
            run(parent_and_text, tmp_path, hidden_weight=0)


def test_the_curve_has_a_point_for_every_stage(parent_and_text, tmp_path):
    curve = run(parent_and_text, tmp_path).run()
    assert [(point.stage, point.step) for point in curve.points] == [
        ("parent", 0),
        ("naive", 0),
        ("row LSE", 0),
        ("start", 0),
        ("calibrated", 0),
        ("layer by layer", 12),
        ("all layers", 15),
        ("final", 18),
    ]
    seconds = [point.seconds for point in curve.points]
    assert seconds == sorted(seconds) and seconds[-1] > 0
    assert str(parent_and_text[0]) not in json.dumps(curve.described["model"])


class Killed(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("layer_steps", [6, 0], ids=["two-stages", "all-at-once"])
@pytest.mark.parametrize("updates", [1, 4], ids=["early", "late"])
def test_killed_anywhere_and_resumed_it_ends_with_the_same_bits(
    parent_and_text, tmp_path, monkeypatch, updates, layer_steps
):
    whole = run(parent_and_text, tmp_path / "whole", layer_steps=layer_steps).run()
    update, seen = StepProgress.update, []

    def killed(bar, done, loss):
        update(bar, done, loss)
        seen.append(done)
        if len(seen) == updates + 1:
            raise Killed

    monkeypatch.setattr(StepProgress, "update", killed)
    with pytest.raises(Killed):
        run(parent_and_text, tmp_path / "cut", layer_steps=layer_steps).run()
    monkeypatch.undo()
    monkeypatch.setattr(
        "sigmoid_attention.studies.conversion.similarity.human_pairs", lambda: PAIRS
    )
    resumed = run(parent_and_text, tmp_path / "cut", layer_steps=layer_steps).run()
    assert [point.found for point in resumed.points] == [point.found for point in whole.points]
    assert len({(point.stage, point.step) for point in resumed.points}) == len(resumed.points)
    first, second = (
        loaded(parent_and_text, tmp_path / name).state_dict() for name in ("whole", "cut")
    )
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("saves", [2, 3, 6], ids=["layer", "behind stage one", "evaluation"])
def test_killed_between_a_checkpoint_and_an_evaluation_no_point_is_lost(
    parent_and_text, tmp_path, monkeypatch, saves
):
    whole = run(parent_and_text, tmp_path / "whole").run()
    saved = []

    def save_and_die(*arguments, **named):
        save_checkpoint(*arguments, **named)
        saved.append(1)
        if len(saved) == saves:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            run(parent_and_text, tmp_path / "cut").run()
    resumed = run(parent_and_text, tmp_path / "cut").run()
    assert [(point.stage, point.step, point.found) for point in resumed.points] == [
        (point.stage, point.step, point.found) for point in whole.points
    ]


def test_a_finished_folder_is_found_finished(parent_and_text, tmp_path, monkeypatch, capsys):
    first = run(parent_and_text, tmp_path).run()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(StepProgress, "update", lambda *_, **__: (_ for _ in ()).throw(Killed))
    assert run(parent_and_text, tmp_path).run().points == first.points
    assert "is finished: there is nothing left to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files


@pytest.mark.slow
@pytest.mark.parametrize("name", ["curve.json", "model/model.safetensors", "model/config.json"])
def test_a_damaged_file_is_named_and_written_again(parent_and_text, tmp_path, capsys, name):
    first = run(parent_and_text, tmp_path).run()
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    again = run(parent_and_text, tmp_path).run()
    assert f"{path} is damaged" in capsys.readouterr().err
    assert [point.found for point in again.points] == [point.found for point in first.points]
    weights = "model.safetensors"
    assert path.read_bytes() != data and again.model[weights] == first.model[weights]


def test_killed_before_the_model_takes_its_name_it_has_checksums(
    parent_and_text, tmp_path, monkeypatch
):
    real = os.replace

    def replace_and_die(source, target):
        real(source, target)
        if str(target) == str(tmp_path / MODEL):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_and_die)
        with pytest.raises(Killed):
            run(parent_and_text, tmp_path).run()
    (tmp_path / MODEL / "config.json").write_text("{}")
    run(parent_and_text, tmp_path).run()
    assert json.loads((tmp_path / MODEL / "config.json").read_text())


def test_a_curve_that_is_missing_loses_no_point(parent_and_text, tmp_path, monkeypatch, capsys):
    names = [point.stage for point in run(parent_and_text, tmp_path / "whole").run().points]
    with monkeypatch.context() as patch:
        patch.setattr(Conversion, "_train_all_layers", lambda _: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(parent_and_text, tmp_path / "cut").run()
    (tmp_path / "cut" / "curve.json").unlink()
    assert [point.stage for point in run(parent_and_text, tmp_path / "cut").run().points] == names
    assert "curve.json is missing; the conversion begins anew" in capsys.readouterr().err


def test_without_its_setting_a_folder_is_not_continued(tmp_path):
    begin(tmp_path, {"steps": 6})
    (tmp_path / "setting.json").rename(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"holds no conversion \(there is no setting\.json in it"):
        begin(tmp_path, {"steps": 6})


@pytest.mark.parametrize(
    ("stage", "at", "kept", "steps"),
    [
        ("layer by layer", 6, "layer 1 of 2 is kept in", 6),
        ("layer by layer", 12, "layer 2 of 2 is kept in", 12),
        ("all layers", 2, "step 2 of 6 is kept in", 12 + 2),
    ],
    ids=["first layer", "last layer", "all layers"],
)
def test_an_interrupt_keeps_what_was_done(
    parent_and_text, tmp_path, monkeypatch, stage, at, kept, steps
):
    update, interrupts = StepProgress.update, []

    def ask(bar, done, loss):
        update(bar, done, loss)
        if bar._label == stage and done == at and not interrupts:
            interrupts.append(1)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(StepProgress, "update", ask)
        with pytest.raises(KeyboardInterrupt) as caught:
            of = run(parent_and_text, tmp_path)
            of.checkpoint_seconds = 1e9
            of.run()
    assert caught.value.__notes__[0].startswith(kept)
    assert load_checkpoint(tmp_path / "checkpoint.safetensors").step == steps


@pytest.mark.parametrize("content", ["{}", "[]", '{"points": [3]}', "[" * 9999])
def test_a_damaged_curve_gives_one_sentence(tmp_path, content):
    (tmp_path / "curve.json").write_text(content)
    with pytest.raises(ValueError, match=r"curve\.json is damaged"):
        read_curve(tmp_path)


def test_a_checkpoint_of_another_setting_is_refused(parent_and_text, tmp_path, monkeypatch):
    begin(tmp_path, {"steps": 6})
    monkeypatch.setattr(StepProgress, "update", lambda *_, **__: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        run(parent_and_text, tmp_path, layer_steps=0).run()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="steps was 6 when this folder was started and is 7 now"):
        begin(tmp_path, {"steps": 7})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", -1, "at least 0"),
        ("form", "row", "one of linear, constant"),
        ("gain", 0.0, "positive"),
        ("seq_len", 8, "at least 16"),
        ("temperature", 0.0, "positive"),
    ],
)
def test_a_setting_out_of_range_is_refused(name, value, expected):
    with pytest.raises(ValueError, match=f"{name} must be {expected}"):
        ConversionSetting(**{**SETTING, name: value}).check()


def test_lengths_default_to_those_of_the_model():
    setting = ConversionSetting(steps=1, layer_steps=0)
    assert [
        (fitted.seq_len, fitted.batch_size)
        for positions in (None, 8192, 512, 77)
        for fitted in [setting.fitted(positions, predicts=True)]
    ] == [(1024, 1), (1024, 1), (512, 2), (77, 13)]
    chosen = ConversionSetting(steps=1, layer_steps=0, seq_len=100, batch_size=3)
    assert chosen.fitted(100, predicts=True).batch_size == 3
    with pytest.raises(ValueError, match="seq_len must be at most the model's 512, got 513"):
        ConversionSetting(steps=1, layer_steps=0, seq_len=513).fitted(512, predicts=True)


def test_a_setting_that_trains_nothing_is_refused():
    with pytest.raises(ValueError, match="must not both be 0"):
        ConversionSetting(steps=0, layer_steps=0).check()
    with pytest.raises(ValueError, match="must not all be 0"):
        ConversionSetting(steps=1, layer_steps=1, hidden_weight=0, logit_weight=0).check()
