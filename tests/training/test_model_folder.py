"""The folder of a trained model."""

import shutil

import pytest
import torch

from sigmoid_attention.nn.models import PRESETS
from sigmoid_attention.training.data.batches import TextBatches, token_stream
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.data.tokenizer import ByteTokenizer
from sigmoid_attention.training.files import read_json, write_json
from sigmoid_attention.training.model_folder import (
    describe_run,
    encode_prompt,
    load_trained,
    new_model,
)
from sigmoid_attention.training.trainer import TrainConfig, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    source = folder / "text.txt"
    source.write_text("to be or not to be, " * 100)
    corpus = load_corpus(source)
    tokens = token_stream(ByteTokenizer(), corpus.train)
    model = new_model(PRESETS["tiny"], seed=3)
    batches, config = TextBatches(tokens, 32, 2, seed=3), TrainConfig(steps=3)
    out = folder / "run"
    describe_run(out, model, batches, config, ByteTokenizer(), corpus.provenance)
    train(model, batches, config, out=out, progress=False)
    return out, model.eval()


def test_the_folder_gives_the_model_back(trained):
    folder, model = trained
    loaded, tokenizer = load_trained(folder)
    prompt = encode_prompt(tokenizer, "to be")
    assert torch.equal(loaded(prompt), model(prompt))
    assert not loaded.training


def test_a_seed_decides_the_weights_and_the_generator_stays():
    before = torch.get_rng_state()
    weights = [new_model(PRESETS["tiny"], seed).embedding.weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_both_arms_of_a_seed_start_equal():
    ours = new_model(PRESETS["tiny"], 5).state_dict()
    theirs = new_model(PRESETS["tiny"].as_softmax(), 5).state_dict()
    assert {name for name in ours if name not in theirs} == {
        f"blocks.{layer}.attention.bias.{name}"
        for layer in (0, 1)
        for name in ("strength", "bias.value")
    }
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "checkpoint.safetensors"])
def test_an_incomplete_folder_is_refused(trained, tmp_path, missing):
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "run" / missing).unlink()
    with pytest.raises(ValueError, match=f"no {missing.split('.safetensors')[0]} in it"):
        load_trained(tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("{not json", "is damaged"), ('{"run": {}}', "is damaged"), ("[]", "is damaged")],
)
def test_a_damaged_configuration_is_refused(trained, tmp_path, content, sentence):
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        load_trained(tmp_path / "run")


def test_weights_of_another_configuration_are_refused(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    described = read_json(path)
    described["run"]["model"]["num_heads"] = 4
    write_json(path, described)
    with pytest.raises(ValueError, match=r"another configuration: model\.num_heads"):
        load_trained(tmp_path / "run")


@pytest.mark.parametrize("vocab_size", [10**13, "257", -1, None, [], {}])
def test_an_impossible_vocabulary_gives_one_sentence(trained, tmp_path, vocab_size):
    shutil.copytree(trained[0], tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    described = read_json(path)
    described["run"]["model"]["vocab_size"] = vocab_size
    write_json(path, described)
    with pytest.raises(ValueError, match=r"is damaged|another configuration"):
        load_trained(tmp_path / "run")


@pytest.mark.parametrize(
    "content", ["{", "[]", "[" * 9999, None], ids=["cut", "list", "deep", "no"]
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_going_on_writes_what_was_damaged_again(trained, tmp_path, capsys, name, content):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    text = load_corpus(trained[0].parent / "text.txt")
    batches = TextBatches(token_stream(ByteTokenizer(), text.train), 32, 2, seed=3)
    model, config = new_model(PRESETS["tiny"], seed=3), TrainConfig(steps=3)
    other = TrainConfig(steps=3, lr=1.0)
    describe_run(folder, model, batches, other, ByteTokenizer(), text.provenance)
    assert capsys.readouterr().err == "", "the checkpoint is of another run"
    describe_run(folder, model, batches, config, ByteTokenizer(), text.provenance)
    message = capsys.readouterr().err
    assert str(folder / name) in message and "it is written again" in message
    load_trained(folder)


def test_a_prompt_of_bytes_that_are_no_text_is_read_as_those_bytes():
    assert encode_prompt(ByteTokenizer(), "\udcff\udcfe").tolist() == [[255, 254]]


def test_the_older_checkpoint_is_named_where_it_is_taken(trained, tmp_path, capsys):
    shutil.copytree(trained[0], tmp_path / "run")
    names = ("checkpoint.safetensors", "checkpoint.previous.safetensors")
    (tmp_path / "run" / names[0]).rename(tmp_path / "run" / names[1])
    load_trained(tmp_path / "run")
    assert f"{names[0]} is missing; the older {names[1]}" in capsys.readouterr().err


def test_an_empty_prompt_is_the_end_of_a_document():
    assert encode_prompt(ByteTokenizer(), "").tolist() == [[256]]
