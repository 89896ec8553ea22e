"""A converted checkpoint is restored exactly, and loads with no other implementation."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    CLIPModel,
    CLIPTextModel,
    LlamaForCausalLM,
    T5EncoderModel,
)

from sigmoid_attention import Constant, NegLogEffectiveLength, NegLogLength, NegLogVisible, RowLSE
from sigmoid_attention.integrations.transformers import (
    PerHead,
    attention_modules,
    convert,
    set_bias,
)
from tests.support.transformers.architectures import ARCHITECTURES

LLAMA = ARCHITECTURES["Llama"]
REFUSED = "belongs to a model with sigmoid attention"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A converted Llama with a bias of its own for each head, saved."""
    folder = tmp_path_factory.mktemp("llama")
    model = convert(LLAMA.build(), bias=PerHead(NegLogLength(8)), qk_norm="layer", layer_scale=0.3)
    with torch.no_grad():
        for place, module in enumerate(attention_modules(model).values()):
            module.sigmoid_bias.copy_(-torch.arange(4.0) - place)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["sdpa", "eager", "flex_attention"])
def test_from_pretrained_refuses_another_implementation(checkpoint, name):
    for load in (LlamaForCausalLM, AutoModel, AutoConfig):
        with pytest.raises(ValueError, match=f"{REFUSED}.*{name}"):
            load.from_pretrained(checkpoint, attn_implementation=name)


def test_a_loaded_model_refuses_another_implementation_and_stays(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    before = model(**LLAMA.batch()).logits
    with pytest.raises(ValueError, match=REFUSED):
        model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=REFUSED):
        model.config._attn_implementation = "eager"
    assert torch.equal(model(**LLAMA.batch()).logits, before)


def test_a_config_without_the_name_of_the_implementation_still_restores(checkpoint, tmp_path):
    """As `AutoConfig` and `save_pretrained` leave it, which drop the name."""
    model = LlamaForCausalLM.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    assert entries.pop("attn_implementation") == "sigmoid"
    (tmp_path / "config.json").write_text(json.dumps(entries))
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(model(**LLAMA.batch()).logits, again(**LLAMA.batch()).logits)
    again.save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    assert entries["attn_implementation"] == "sigmoid"


def test_auto_classes_restore(checkpoint):
    for kind in (AutoModel, AutoModelForCausalLM):
        modules = list(attention_modules(kind.from_pretrained(checkpoint)).values())
        assert len(modules) == 2
        for place, module in enumerate(modules):
            assert torch.equal(module.sigmoid_bias, -torch.arange(4.0) - place)
            assert module.sigmoid_qk_norm.query.weight.shape == (6,)


def test_the_bias_stays_in_single_precision(checkpoint):
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    dtypes = {name: x.dtype for name, x in model.named_parameters()}
    bias = {dtype for name, dtype in dtypes.items() if name.endswith("sigmoid_bias")}
    assert bias == {torch.float32}
    rest = {dtype for name, dtype in dtypes.items() if not name.endswith("sigmoid_bias")}
    assert rest == {torch.bfloat16}
    assert model(**LLAMA.batch()).logits.dtype == torch.bfloat16


def run(code):
    preamble = "import transformers\n"
    return subprocess.run(
        [sys.executable, "-c", preamble + code], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_transformers_alone_refuses_the_checkpoint(checkpoint):
    """Where this package is installed or not, but was not imported."""
    process = run(f"transformers.AutoModel.from_pretrained({str(checkpoint)!r})")
    assert process.returncode != 0
    assert 'Specified `attn_implementation="sigmoid"` is not supported' in process.stderr


def test_without_transformers_the_sentence_says_what_to_install():
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "try:\n    import sigmoid_attention.integrations.transformers\n"
        "except ImportError as error:\n    print(error)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "pip install '.[transformers]'" in process.stdout


def test_parts_of_a_composite_model_restore_by_themselves(tmp_path):
    clip, t5 = (ARCHITECTURES[name] for name in ("CLIP", "T5"))
    plan = {"text_config": NegLogLength(37), "vision_config": NegLogLength(10)}
    model = convert(clip.build(), bias=plan)
    model.save_pretrained(tmp_path / "clip")
    text = CLIPTextModel.from_pretrained(tmp_path / "clip")
    assert {x.sigmoid_bias for x in attention_modules(text).values()} == {NegLogLength(37)}
    tokens = clip.batch()["input_ids"]
    whole = CLIPModel.from_pretrained(tmp_path / "clip").text_model(input_ids=tokens)
    actual = text(input_ids=tokens)
    torch.testing.assert_close(actual.last_hidden_state, whole.last_hidden_state)

    model = convert(t5.build(), bias=PerHead(-2.0))
    model.save_pretrained(tmp_path / "t5")
    encoder = T5EncoderModel.from_pretrained(tmp_path / "t5")
    assert len(attention_modules(encoder)) == 2
    tokens = t5.batch()["input_ids"]
    torch.testing.assert_close(
        encoder(input_ids=tokens).last_hidden_state,
        model.get_encoder()(input_ids=tokens).last_hidden_state,
    )


def test_a_converted_config_gives_what_a_checkpoint_of_a_softmax_lacks(tmp_path):
    parent = LLAMA.build()
    parent.save_pretrained(tmp_path)
    options = {"bias": PerHead(-1.5), "qk_norm": "rms", "layer_scale": 0.2, "norm": "hybrid"}
    config = convert(AutoConfig.from_pretrained(tmp_path), **options)
    model = LlamaForCausalLM.from_pretrained(tmp_path, config=config)
    other = convert(parent, **options)
    for (name, ours), theirs in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    torch.testing.assert_close(model(**LLAMA.batch()).logits, other(**LLAMA.batch()).logits)


def test_a_model_is_built_from_a_converted_config():
    config = convert(ARCHITECTURES["CLIP"].build().config, bias=-3.0, norm="hybrid")
    model = CLIPModel(config)
    assert len(attention_modules(model)) == 4
    assert (
        "vision_model.encoder.layers.1.self_attn.sigmoid_branch.norm.weight" in model.state_dict()
    )
    model(**ARCHITECTURES["CLIP"].batch())


@pytest.mark.parametrize(
    "bias",
    [
        -3.0,
        Constant(-2.5),
        NegLogLength(64, offset=0.5),
        NegLogVisible(at_least=3),
        NegLogEffectiveLength((0.5, 0.25, 0.125, 0.0), n=16),
        RowLSE(),
        PerHead(NegLogEffectiveLength((0.5, 0.25, 0.125, 0.0), n=16), learned=False),
    ],
    ids=lambda bias: type(bias).__name__,
)
def test_every_bias_comes_back(bias, tmp_path):
    model = convert(LLAMA.build())
    set_bias(model, bias)
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    for ours, theirs in zip(
        attention_modules(model).values(), attention_modules(again).values(), strict=True
    ):
        if isinstance(bias, PerHead):
            assert torch.equal(ours.sigmoid_bias, theirs.sigmoid_bias)
            assert not theirs.sigmoid_bias.requires_grad
        else:
            assert theirs.sigmoid_bias == (Constant(bias) if isinstance(bias, float) else bias)
    torch.testing.assert_close(
        model(**LLAMA.batch()).logits, again(**LLAMA.batch()).logits, atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": 1}, "reads formats 2 and 3 of the config's key, got 1"),
        ({"bias": {"policy": "Warm"}}, "a bias policy 'Warm' is not known"),
    ],
    ids=["format", "policy"],
)
def test_a_key_of_another_version_is_refused(checkpoint, tmp_path, change, complaint):
    entries = json.loads((checkpoint / "config.json").read_text())
    entries["sigmoid_attention"] |= change
    (tmp_path / "config.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=complaint):
        AutoConfig.from_pretrained(tmp_path)


def test_other_models_are_left_alone(tmp_path):
    model = LLAMA.build()
    assert not hasattr(model.config, "sigmoid_attention")
    model.set_attn_implementation("eager")
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "sigmoid" not in text and "attn_implementation" not in text
    again = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert again.config._attn_implementation == "sdpa"
