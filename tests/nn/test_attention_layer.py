"""The attention layer: its output, the common parts of sigmoid and softmax, and errors."""

import math

import pytest
import torch
from torch import nn

from sigmoid_attention.attention import (
    Learned,
    NegLogEffectiveLength,
    NegLogLength,
    NegLogVisible,
)
from sigmoid_attention.nn import ALiBi, Attention, RoPE, SinCos, alibi_slopes


def by_definition(layer, x, bias):
    """Causal attention with ALiBi slopes and no other setting, head by head."""
    B, N, _ = x.shape
    H, G = layer.num_heads, layer.num_kv_heads
    query = (x @ layer.query.weight.T).view(B, N, H, -1)
    key = (x @ layer.key.weight.T).view(B, N, G, -1)
    value = (x @ layer.value.weight.T).view(B, N, G, -1)
    distance = torch.arange(N)[:, None] - torch.arange(N)
    heads = []
    for h in range(H):
        g = h // (H // G)
        logits = query[:, :, h] @ key[:, :, g].mT / math.sqrt(query.shape[-1])
        logits = logits - alibi_slopes(H)[h] * distance
        hidden = distance < 0
        if layer.activation == "softmax":
            weights = logits.masked_fill(hidden, -math.inf).softmax(-1)
        else:
            weights = torch.sigmoid(logits + bias).masked_fill(hidden, 0.0)
        heads.append(weights @ value[:, :, g])
    return torch.cat(heads, -1) @ layer.output.weight.T


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("N, dim, H, G", [(1, 4, 1, 1), (7, 12, 3, 1), (9, 16, 4, 2)])
def test_it_is_its_definition(activation, N, dim, H, G):
    layer = Attention(
        dim, H, num_kv_heads=G, max_seq_len=32, activation=activation, position=ALiBi()
    ).double()
    x = torch.randn(2, N, dim, dtype=torch.float64)
    torch.testing.assert_close(
        layer(x), by_definition(layer, x, -math.log(32)), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("qk_norm", [None, "rms", "layer"])
@pytest.mark.parametrize("position", [None, RoPE(), ALiBi()], ids=str)
def test_both_arms_have_the_same_parameters(qk_norm, position):
    arms = [
        Attention(24, 4, max_seq_len=8, activation=arm, qk_norm=qk_norm, position=position)
        for arm in ("sigmoid", "softmax")
    ]
    shapes = [{k: v.shape for k, v in arm.state_dict().items()} for arm in arms]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "settings, n",
    [
        ({}, 64),
        ({"window_size": (15, 0)}, 16),
        ({"window_size": (99, 0)}, 64),
        ({"window_size": (3, 4)}, 4),
        ({"window_size": (3, 4), "is_causal": False}, 8),
        ({"window_size": (-1, 4), "is_causal": False}, 64),
    ],
    ids=str,
)
def test_default_bias_counts_the_most_keys_a_trained_query_sees(settings, n):
    assert Attention(8, 2, max_seq_len=64, **settings).bias == NegLogLength(n)


@pytest.mark.parametrize(
    ("settings", "window"),
    [
        ({}, (7, -1)),
        ({"window_size": (3, -1)}, (3, -1)),
        ({"window_size": (99, 0)}, (7, 0)),
        ({"is_causal": False}, (7, 7)),
        ({"is_causal": False, "window_size": (-1, 2)}, (7, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_reach_of_the_training_is_a_window(settings, window, activation):
    torch.manual_seed(0)
    settings = {"activation": activation, "position": RoPE(), **settings}
    layer = Attention(8, 2, max_seq_len=8, reach="trained", **settings)
    assert layer.window_size == window
    free = Attention(8, 2, max_seq_len=8, **settings)
    limited = Attention(8, 2, max_seq_len=8, **{**settings, "window_size": window})
    for other in (free, limited):
        other.load_state_dict(layer.state_dict())
    assert free.bias == layer.bias
    x = torch.randn(2, 20, 8)
    assert torch.equal(layer(x), limited(x))
    assert torch.equal(layer(x[:, :8]), free(x[:, :8]))
    assert torch.equal(layer(x), free(x)) == (free.window_size == (3, -1))


def test_an_unknown_reach_is_refused():
    with pytest.raises(ValueError, match=r"^reach must be one of \(None, 'trained'\), got 'far'"):
        Attention(8, 2, max_seq_len=8, reach="far")


@pytest.mark.parametrize(
    "bias",
    [-3.0, NegLogVisible(), NegLogEffectiveLength(alibi_slopes(2), 16), Learned(-2.0, 2)],
    ids=["number", "visible", "effective", "learned"],
)
def test_every_bias_reaches_the_operator(bias):
    torch.manual_seed(0)
    layer = Attention(8, 2, max_seq_len=16, bias=bias, position=ALiBi())
    x = torch.randn(1, 5, 8)
    other = Attention(8, 2, max_seq_len=16, position=ALiBi())
    other.load_state_dict(layer.state_dict(), strict=False)
    assert (layer(x) - other(x)).abs().max() > 1e-3


def test_gradients_reach_the_learned_bias_and_the_norm_gains():
    bias = Learned(NegLogLength(16), num_heads=4)
    layer = Attention(16, 4, max_seq_len=16, bias=bias, qk_norm="rms", position=RoPE())
    layer(torch.randn(2, 6, 16)).pow(2).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert "bias.value" in dict(layer.named_parameters())


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_return_statistics_gives_the_statistics_and_the_same_answer(activation, causal):
    layer = Attention(8, 2, max_seq_len=8, activation=activation, is_causal=causal)
    x, mask = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    mask[0, :2] = False
    out, aux = layer(x, attn_mask=mask, return_statistics=True)
    torch.testing.assert_close(out, layer(x, attn_mask=mask))
    expected = [[0, 0, 1, 2, 3], [1, 2, 3, 4, 5]] if causal else [[3] * 5, [5] * 5]
    assert aux.visible[:, 0].tolist() == expected
    assert aux.mass.shape == aux.largest.shape == (2, 2, 5)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_dropout_acts_in_training_only(activation):
    layer = Attention(8, 2, max_seq_len=8, activation=activation, dropout_p=0.5)
    x = torch.randn(1, 6, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("qk_norm", ["rms", "layer"])
def test_it_runs_under_bf16_autocast(activation, qk_norm):
    layer = Attention(16, 2, max_seq_len=8, activation=activation, qk_norm=qk_norm, position=RoPE())
    x = torch.randn(1, 6, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), atol=0.03, rtol=0.05)


def test_padding_queries_give_no_nan_to_the_gradients():
    for activation in ("sigmoid", "softmax"):
        layer = Attention(8, 2, max_seq_len=8, activation=activation, position=ALiBi())
        mask = torch.tensor([[False, False, False, True]])
        layer(torch.randn(1, 4, 8), attn_mask=mask).sum().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"dim": 10}, r"dim must be a multiple of num_heads \(4\), got 10"),
        ({"num_heads": 0}, "num_heads must be positive, got 0"),
        ({"max_seq_len": 0}, "max_seq_len must be positive, got 0"),
        ({"num_kv_heads": 3}, r"num_kv_heads must divide num_heads \(4\), got 3"),
        ({"num_kv_heads": -1}, "num_kv_heads must be positive, got -1"),
        ({"activation": "relu"}, "activation must be one of .*got 'relu'"),
        ({"qk_norm": "batch"}, "qk_norm must be"),
        ({"head_dim": 3, "position": RoPE()}, "RoPE: dim must be even, .*got 3"),
        ({"dim": 10**400}, "dim must be positive, got a number of 1329 bits"),
        ({"head_dim": -3}, "head_dim must be positive, got -3"),
        ({"bias": math.nan}, "bias must be a finite number or a bias policy, got nan"),
        ({"bias": Learned(-1.0, num_heads=3)}, "bias: Learned has 3 heads, the layer has 4"),
        ({"bias": NegLogEffectiveLength((0.5,), 8)}, "bias: NegLogEffectiveLength has 1 slopes"),
        ({"dropout_p": 1.0}, "dropout_p must be a number, at least 0 and below 1, got 1.0"),
        ({"norm_eps": 0.0}, "norm_eps must be positive, got 0.0"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_wrong_values_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        Attention(**{"dim": 8, "num_heads": 4, "max_seq_len": 8, **settings})


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"position": SinCos(8)}, "SinCos, which belongs to the embeddings of a model"),
        ({"position": "rope+alibi"}, "RoPEWithALiBi.., got the string 'rope.alibi'"),
        ({"dim": "8"}, "dim must be a whole number, got the string '8'"),
        ({"dim": None}, "dim must be a whole number, got None"),
        ({"num_heads": 2.0}, "num_heads must be a whole number, got 2.0"),
        ({"num_heads": True}, "num_heads must be a whole number, got True"),
        ({"max_seq_len": math.inf}, "max_seq_len must be a whole number, got inf"),
        ({"num_kv_heads": [2]}, r"num_kv_heads must be a whole number, got \[2\]"),
        ({"head_dim": 2.5}, "head_dim must be a whole number, got 2.5"),
        ({"bias": "-log n"}, "bias must be a finite number or a bias policy, got the string"),
        ({"bias": torch.zeros(4)}, "bias:? .* could not learn here; Learned"),
        ({"qk_norm": ["rms"]}, "qk_norm must be"),
        ({"is_causal": "no"}, "is_causal must be True or False, got the string 'no'"),
        ({"window_size": (2.0, 0)}, r"window_size:? .* got \(2.0, 0\)"),
        ({"window_size": None}, "window_size:? .* got None"),
        ({"softcap": nn.Parameter(torch.ones(()))}, "softcap:? .* a Parameter .* could not learn"),
        ({"softcap": "5"}, "softcap:? .* got the string '5'"),
        ({"dropout_p": None}, "dropout_p must be a number, at least 0 and below 1, got None"),
        ({"linear_bias": None}, "linear_bias must be True or False, got None"),
        ({"linear_bias": "yes"}, "linear_bias must be True or False, got the string 'yes'"),
        ({"activation": ["sigmoid"]}, r"activation must be one of .*got \['sigmoid'\]"),
        ({"impl": ["cpu"]}, "impl must be auto or one of"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_wrong_types_are_refused(settings, match):
    with pytest.raises(TypeError, match=match):
        Attention(**{"dim": 8, "num_heads": 4, "max_seq_len": 8, **settings})


def test_bad_inputs_are_named():
    layer = Attention(8, 2, max_seq_len=8, is_causal=False)
    with pytest.raises(ValueError, match=r"x must be \(batch, tokens, 8\), got \(2, 3, 7\)"):
        layer(torch.zeros(2, 3, 7))
    with pytest.raises(ValueError, match="attn_mask must be boolean"):
        layer(torch.zeros(2, 3, 8), attn_mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match="only causal attention"):
        layer(torch.zeros(2, 3, 8), cache=layer.new_cache(2, 4))


@pytest.mark.parametrize(
    "settings, shown",
    [
        ({}, ["activation=sigmoid", "bias=NegLogLength(n=16", "position=none", "is_causal=True"]),
        ({"position": RoPE(), "bias": -3.0}, ["position=RoPE(base=10000.0)", "bias=-3.0"]),
        ({"activation": "softmax", "position": ALiBi()}, ["=softmax", "position=ALiBi()"]),
        (
            {"num_kv_heads": 1, "window_size": (4, 0)},
            ["num_kv_heads=1", "window_size=(4, 0)", "n=5"],
        ),
        ({"bias": Learned(-2.0, 2)}, ["activation=sigmoid", "(bias): Learned("]),
    ],
    ids=["default", "rope", "softmax", "grouped and windowed", "learned"],
)
def test_repr_shows_the_settings(settings, shown):
    text = repr(Attention(8, 2, max_seq_len=16, **settings))
    assert not [part for part in shown if part not in text], text
