"""The attention matrix that ``weights`` returns is the one that the layer applies."""

import pytest
import torch

from sigmoid_attention.nn import ALiBi, Attention, RoPE

SETTINGS = {
    "plain": {},
    "rope, norm, groups": {"position": RoPE(), "qk_norm": "rms", "num_kv_heads": 1},
    "alibi, window, softcap": {"position": ALiBi(), "window_size": (3, 0), "softcap": 4.0},
}


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_weights_times_values_is_the_layers_answer(activation, settings):
    torch.manual_seed(0)
    layer = Attention(12, num_heads=3, max_seq_len=7, activation=activation, **settings)
    x = torch.randn(2, 7, 12)
    weights_BHNN = layer.weights(x)
    value = layer.value(x).unflatten(-1, (layer.num_kv_heads, -1)).transpose(1, 2)
    value = value.repeat_interleave(layer.num_heads // layer.num_kv_heads, 1)
    out = layer.output((weights_BHNN @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, layer(x))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_weights_have_the_mass_of_the_operators_statistics(activation):
    torch.manual_seed(0)
    layer = Attention(12, num_heads=3, max_seq_len=7, activation=activation)
    x = torch.randn(2, 5, 12)
    weights_BHNN = layer.weights(x)
    _, aux = layer(x, return_statistics=True)
    torch.testing.assert_close(weights_BHNN.sum(-1), aux.mass)
    torch.testing.assert_close(weights_BHNN.amax(-1), aux.largest)
    assert not weights_BHNN.triu(1).any(), "causal"
