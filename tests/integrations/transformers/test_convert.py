"""The errors of `convert`, each of which leaves the model unchanged."""

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

from sigmoid_attention import Constant, Learned, NegLogLength, NegLogVisible, RowLSE
from sigmoid_attention.integrations.transformers import (
    PerHead,
    attention_modules,
    convert,
    find_attention_modules,
    register,
    replace_bias,
    set_bias,
)
from tests.support.transformers.architectures import ARCHITECTURES
from tests.support.transformers.checks import answer


def Parameter(number):
    return nn.Parameter(torch.tensor(number))


def bloom():
    return tf.BloomModel(tf.BloomConfig(vocab_size=31, hidden_size=12, n_layer=2, n_head=2))


def gpt_oss():
    config = tf.GptOssConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        num_local_experts=2,
        num_experts_per_tok=1,
        max_position_embeddings=32,
    )
    return tf.GptOssModel(config)


def siglip():
    """Its layers call the interface, and the pooling head on top of them does not."""
    sizes = {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1}
    config = tf.SiglipVisionConfig(**sizes, num_attention_heads=2, image_size=8, patch_size=4)
    return tf.SiglipVisionModel(config)


def state(model):
    """All that a conversion may touch."""
    implementations = {
        name: module.config._attn_implementation
        for name, module in model.named_modules()
        if hasattr(module, "config")
    }
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    modes = {name: module.training for name, module in model.named_modules()}
    return implementations, hooks, modes, model.config.to_json_string(), set(model.state_dict())


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (bloom, r"BloomModel: not every .* softmax: h.0.self_attention \(BloomAttention\), h.1"),
        (gpt_oss, "^s_aux: GptOssAttention has attention sinks"),
        (siglip, r"head.attention \(MultiheadAttention\)"),
    ],
    ids=["bloom", "gpt-oss", "siglip"],
)
def test_attention_that_bypasses_the_interface_is_named_and_unchanged(build, complaint):
    model = build()
    before = state(model)
    with pytest.raises(ValueError, match=complaint):
        convert(model, bias=-3.0)
    assert state(model) == before


def test_a_class_may_be_excepted_by_name():
    model = convert(siglip(), bias=-3.0, except_for=["MultiheadAttention"])
    assert len(attention_modules(model)) == 1


@pytest.mark.parametrize(
    ("error", "name", "options", "complaint"),
    [
        (ValueError, "Llama", {"qk_norm": "batch"},
         "qk_norm must be 'rms', 'layer' or None, got 'batch'"),
        (TypeError, "Llama", {"layer_scale": Parameter(0.1)},
         "layer_scale must be .*, got a Parameter of"),
        (TypeError, "Llama", {"bias": Parameter(-3.0)},
         r"bias:? .* a Parameter of .*; PerHead\(init\)"),
        (ValueError, "Llama", {"bias": Constant(Parameter(-3.0))},
         "^bias: a config holds numbers, .* Param"),
        (ValueError, "Llama", {"bias": Constant(torch.tensor(-3.0))},
         "^bias: a config holds numbers, .* tens"),
        (ValueError, "Llama", {"bias": NegLogLength(8, Parameter(1.0))},
         r"with offset a Par.*PerHead\(init\)"),
        (ValueError, "Llama", {"bias": 10**400}, "^bias must be .*, got a number of 1329 bits"),
        (ValueError, "Llama", {"bias": float("nan")}, "^bias must be .*, got nan"),
        (ValueError, "Llama", {"layer_scale": 0.0},
         "layer_scale must be positive or None, got 0.0"),
        (ValueError, "Llama", {"norm": "post"}, "norm must be 'hybrid' or None, got 'post'"),
        (TypeError, "Llama", {"norm": ["hybrid"]}, "norm must be 'hybrid' or None, got .'hybrid'"),
        (TypeError, "Llama", {"qk_norm": 3}, "qk_norm must be 'rms', 'layer' or None, got 3"),
        (TypeError, "Llama", {"inputs": [3]}, r"inputs must be a batch of tensors .*, got \[3\]"),
        (TypeError, "Llama", {"bias": Learned(-3.0, 4)}, "bias must be .*, got .*Learned"),
        (TypeError, "Llama", {"bias": "log"}, "bias must be .*, got the string 'log'"),
        (ValueError, "ViT", {}, "bias: ViTConfig has no max_position_embeddings .*NegLogLength"),
        (ValueError, "T5", {}, "bias: T5Config has no max_position_embeddings"),
        (ValueError, "CLIP", {"bias": {"text_config": -3.0}},
         r"\['text_config', 'vision_config'\]"),
        (ValueError, "Qwen3", {"qk_norm": "rms"},
         "Qwen3Attention normalises its queries and keys already"),
        (ValueError, "DeepSeek-V3", {"qk_norm": "rms", "bias": -3.0},
         "DeepseekV3Attention has no projection"),
        (ValueError, "Llama", {"inputs": {"pixels": torch.zeros(1)}},
         "inputs: LlamaForCausalLM does not run"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)  # fmt: skip
def test_an_option_that_does_not_fit_is_refused_and_nothing_is_changed(
    error, name, options, complaint
):
    model = ARCHITECTURES[name].build()
    model.train()
    before = state(model)
    with pytest.raises(error, match=complaint):
        convert(model, **options)
    assert state(model) == before
    assert not attention_modules(model)


def test_a_module_of_no_library_is_refused():
    with pytest.raises(
        TypeError, match=r"must be a model or a config of transformers, got .*Linear"
    ):
        convert(nn.Linear(2, 2))


@pytest.mark.parametrize(
    "bias",
    [
        np.float32(-3),
        Constant(np.float32(-3)),
        NegLogLength(np.int64(8), offset=np.float32(0.5)),
        NegLogVisible(np.int32(2)),
        PerHead(np.float32(-3), learned=np.bool_(True)),
        PerHead(Constant(np.float16(-3))),
    ],
    ids=repr,
)
def test_numbers_of_numpy_are_numbers_to_a_config(bias, tmp_path):
    gpt2 = ARCHITECTURES["GPT-2"]
    model = convert(gpt2.build(), bias=bias, layer_scale=np.float32(0.5)).eval()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    batch = gpt2.batch()
    torch.testing.assert_close(answer(again, batch), answer(model, batch), rtol=0, atol=0)
    set_bias(model, bias)
    model.config.to_json_string()


@pytest.mark.parametrize(
    "error, bias, complaint",
    [
        (ValueError, 10**400, "got a number of 1329 bits"),
        (TypeError, "log", "got the string 'log'"),
        (ValueError, Constant(Parameter(-3.0)), "Constant holds a Parameter of shape"),
        (ValueError, Learned(-3.0, 3), "Learned has 3 heads, GPT2Attention has 4"),
    ],
    ids=["huge", "text", "parameter", "heads"],
)
def test_a_module_takes_no_bias_that_could_not_work(error, bias, complaint):
    model = convert(ARCHITECTURES["GPT-2"].build(), bias=-2.0)
    module = next(iter(attention_modules(model).values()))
    with pytest.raises(error, match=f"^bias:? .*{complaint}"):
        replace_bias(module, bias)
    assert module.sigmoid_bias == -2.0


def test_a_second_conversion_is_refused():
    model = convert(ARCHITECTURES["GPT-2"].build())
    with pytest.raises(ValueError, match="was converted before"):
        convert(model)


def test_set_bias_needs_a_converted_model():
    with pytest.raises(ValueError, match="no attention module of this GPT2LMHeadModel"):
        set_bias(ARCHITECTURES["GPT-2"].build(), -3.0)


@pytest.mark.parametrize("init", [RowLSE(), "log"], ids=["row", "text"])
def test_a_bias_per_head_starts_from_no_row(init):
    with pytest.raises(TypeError, match="init must be a number"):
        PerHead(init)


def test_without_a_bias_the_length_is_that_of_the_config():
    model = convert(ARCHITECTURES["GPT-2"].build())
    biases = {module.sigmoid_bias for module in attention_modules(model).values()}
    assert biases == {NegLogLength(37)}


def test_a_counted_forward_keeps_mode_and_weights():
    register()
    model = ARCHITECTURES["BART"].build().train()
    before = state(model)
    shapes = {each.name: each.shape[:3] for each in find_attention_modules(model)}
    assert state(model) == before
    assert shapes["model.encoder.layers.1.self_attn"] == (4, 4, 6)
    assert shapes["model.decoder.layers.0.encoder_attn"] == (3, 3, 8)
    assert all(each.shape.dim == model.config.d_model for each in find_attention_modules(model))


def _norm(x, kind):
    if kind == "rms":
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("name", ["Llama", "GPT-2", "BERT", "ModernBERT", "T5", "Swin"])
def test_qk_norm_acts_on_each_head_before_any_rotation(name, kind):
    """Scaling the projections of queries and keys no longer matters; that of values does."""
    architecture = ARCHITECTURES[name]
    model = convert(architecture.build(), bias=-2.0, qk_norm=kind)
    plain = convert(architecture.build(), bias=-2.0)
    with torch.no_grad():
        before = answer(model, architecture.batch())
        unnormed = answer(plain, architecture.batch())
        for each in (model, plain):
            for module in attention_modules(each).values():
                _scale_queries_and_keys(module, 3.0)
        torch.testing.assert_close(
            answer(model, architecture.batch()), before, atol=1e-3, rtol=1e-3
        )
        assert (answer(plain, architecture.batch()) - unnormed).abs().max() > 1e-2


def _scale_queries_and_keys(module, factor):
    for first, second in (("q_proj", "k_proj"), ("query", "key"), ("q", "k")):
        if hasattr(module, first):
            for projection in (getattr(module, first), getattr(module, second)):
                for parameter in projection.parameters():
                    parameter.mul_(factor)
            return
    fused = module.c_attn if hasattr(module, "c_attn") else module.Wqkv
    for parameter in fused.parameters():
        # GPT-2 keeps the weights of its Conv1D the other way round.
        outputs = parameter.movedim(-1, 0) if hasattr(module, "c_attn") else parameter
        outputs[: 2 * outputs.shape[0] // 3].mul_(factor)


def test_qk_norm_of_a_head_is_the_norm_of_its_channels():
    model = convert(ARCHITECTURES["Llama"].build(), qk_norm="layer")
    module = model.model.layers[0].self_attn
    x = torch.randn(2, 3, 24)
    plain = nn.functional.linear(x, module.q_proj.weight).unflatten(-1, (4, 6))
    actual = module.q_proj(x).unflatten(-1, (4, 6))
    torch.testing.assert_close(actual, _norm(plain, "layer"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "BERT", "ViT", "T5", "Whisper", "DeepSeek-V3"])
def test_layer_scale_and_norm_act_on_what_attention_adds(name):
    """At a scale of nearly nothing, attention adds nothing: the bias no longer matters."""
    architecture = ARCHITECTURES[name]
    outputs = {}
    for scale in (None, 1e-9):
        for bias in (-1.0, -4.0):
            model = convert(architecture.build(), bias=bias, layer_scale=scale, norm="hybrid")
            with torch.no_grad():
                outputs[scale, bias] = answer(model, architecture.batch())
    torch.testing.assert_close(outputs[1e-9, -1.0], outputs[1e-9, -4.0], atol=1e-5, rtol=1e-5)
    assert (outputs[None, -1.0] - outputs[None, -4.0]).abs().max() > 1e-2


def test_the_branch_is_scale_times_norm_of_the_projection():
    model = convert(ARCHITECTURES["Llama"].build(), layer_scale=0.3, norm="hybrid")
    module = model.model.layers[0].self_attn
    x = torch.randn(2, 3, 24)
    expected = 0.3 * _norm(nn.functional.linear(x, module.o_proj.weight), "rms")
    torch.testing.assert_close(module.o_proj(x), expected, atol=1e-5, rtol=1e-5)
