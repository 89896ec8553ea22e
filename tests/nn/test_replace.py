"""Replacement of torch's attention in a model: preserved state, and errors before any change."""

import pytest
import torch
from torch import nn

from sigmoid_attention import Learned, NegLogLength
from sigmoid_attention.nn import replace_multihead_attention

BIAS = -1.75
E, H = 12, 4


def encoder():
    layer = nn.TransformerEncoderLayer(E, H, 16, 0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def test_parameters_hooks_and_modes_stay():
    model = encoder().train()
    model.layers[1].eval()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    seen = []
    model.layers[0].self_attn.register_forward_hook(lambda *_: seen.append(1))
    assert replace_multihead_attention(model, BIAS) is model
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert model.layers[0].self_attn.training
    assert not model.layers[1].self_attn.training
    model(torch.randn(1, 3, E))
    assert seen == [1]


def test_each_module_has_its_own_learned_bias():
    model = replace_multihead_attention(encoder(), Learned(-2.0, num_heads=H))
    first, second = (layer.self_attn.sigmoid_bias.value for layer in model.layers)
    assert first is not second
    assert sorted(name for name, _ in model.named_parameters() if "sigmoid" in name) == [
        "layers.0.self_attn.sigmoid_bias.value", "layers.1.self_attn.sigmoid_bias.value",
    ]  # fmt: skip


def test_a_function_gives_each_module_its_bias_by_name():
    model = nn.Transformer(E, H, 1, 1, 16, batch_first=True)
    replace_multihead_attention(
        model, lambda name: NegLogLength(64 if "encoder" in name or "multihead" in name else 8)
    )
    assert model.encoder.layers[0].self_attn.sigmoid_bias == NegLogLength(64)
    assert model.decoder.layers[0].self_attn.sigmoid_bias == NegLogLength(8)
    assert model.decoder.layers[0].multihead_attn.sigmoid_bias == NegLogLength(64)


def test_a_derived_class_is_refused_and_nothing_is_changed():
    class Own(nn.MultiheadAttention):
        pass

    model = nn.ModuleList([nn.MultiheadAttention(E, H), Own(E, H)])
    with pytest.raises(ValueError, match=r"^model: 1 is a Own, "):
        replace_multihead_attention(model, BIAS)
    assert type(model[0]) is nn.MultiheadAttention


def test_a_bad_bias_changes_nothing():
    model = encoder()
    with pytest.raises(TypeError, match=r"^sigmoid_bias:? .* got None"):
        replace_multihead_attention(model, lambda name: None if "1" in name else BIAS)
    assert type(model.layers[0].self_attn) is nn.MultiheadAttention


@pytest.mark.parametrize("wrong", [{"sigmoid_bias": Learned(-1.0, num_heads=7)}, {"impl": "fast"}])
def test_a_refused_argument_changes_nothing(wrong):
    model = encoder()
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}:? "):
        replace_multihead_attention(model, **{"sigmoid_bias": BIAS} | wrong)
    assert type(model.layers[0].self_attn) is nn.MultiheadAttention


def test_a_missing_bias_is_refused():
    with pytest.raises(ValueError, match=r"^sigmoid_bias:? .* e\.g\. sigmoid_bias=NegLogLength"):
        replace_multihead_attention(encoder())


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match=r"^model: Linear has no nn\.MultiheadAttention"):
        replace_multihead_attention(nn.Linear(2, 2), BIAS)
