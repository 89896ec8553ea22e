"""`SigmoidMultiheadAttention` and its replacement in models, with centred keys.

Shape letters: N batch, L queries, S keys, E embedding dim, H heads, D head dim.
"""

import pytest
import torch
from torch import nn

from sigmoid_attention import CentredKeys, Learned, LearnedCentring, NegLogLength
from sigmoid_attention.nn import SigmoidMultiheadAttention, replace_multihead_attention
from tests.support.attention.centred import centred_by_hand

# Torch says so whenever its encoder makes a nested tensor.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")

E, H = 12, 4
STRENGTH = torch.tensor([1.0, 0.5, 0.0, 1.25], dtype=torch.float64)


def layer(**settings) -> SigmoidMultiheadAttention:
    bias = LearnedCentring(-1.75, H)
    bias.strength.data.copy_(STRENGTH)
    return SigmoidMultiheadAttention(E, H, batch_first=True, sigmoid_bias=bias, **settings).double()


def by_hand(attention, query_NLE, key_NSE, visible):
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    heads = [
        nn.functional.linear(x, weight, bias).unflatten(-1, (H, -1)).transpose(1, 2)
        for x, weight, bias in zip((query_NLE, key_NSE, key_NSE), weights, biases, strict=True)
    ]
    out = centred_by_hand(*heads, visible, bias=-1.75, strength=STRENGTH)
    return attention.out_proj(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("need_weights", [False, True], ids=["output", "weights"])
@pytest.mark.parametrize("masks", ["none", "padding", "causal", "both"])
def test_the_formula_N2_L5_S5(masks, need_weights):
    attention, x = layer(), torch.randn(2, 5, E, dtype=torch.float64)
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * 5, [True] + [False] * 4])
    arguments, visible = {}, torch.ones(2, 1, 5, 5, dtype=torch.bool)
    if masks in ("causal", "both"):
        arguments |= {"attn_mask": hidden, "is_causal": True}
        visible = visible & ~hidden
    if masks in ("padding", "both"):
        arguments["key_padding_mask"] = padding
        visible = visible & ~padding[:, None, None]
    out, weights = attention(x, x, x, need_weights=need_weights, **arguments)
    torch.testing.assert_close(out, by_hand(attention, x, x, visible), rtol=1e-10, atol=1e-12)
    assert (weights is not None) == need_weights
    out.square().sum().backward()
    assert attention.sigmoid_bias.strength.grad.all()


def test_cross_attention_L3_S5():
    attention = layer()
    query, key = (torch.randn(2, n, E, dtype=torch.float64) for n in (3, 5))
    out, _ = attention(query, key, key)
    visible = torch.ones(3, 5, dtype=torch.bool)
    torch.testing.assert_close(out, by_hand(attention, query, key, visible))


def test_nested_sequences_have_means_of_their_own():
    attention = layer()
    parts = [torch.randn(n, E, dtype=torch.float64) for n in (3, 5)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    out, _ = attention(nested, nested, nested, need_weights=False)
    for row, part in zip(out.unbind(), parts, strict=True):
        expected = attention(part, part, part, need_weights=False)[0]
        torch.testing.assert_close(row, expected)


def test_an_encoder_of_torch_has_strengths_for_each_layer():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 16, 0.0, batch_first=True), 2)
    replace_multihead_attention(encoder, LearnedCentring(Learned(NegLogLength(8), H), H))
    first, second = (layer.self_attn.sigmoid_bias.strength for layer in encoder.layers)
    assert first is not second
    x = torch.randn(2, 7, E)
    expected = encoder(x)
    expected.square().sum().backward()
    assert first.grad.any() and second.grad.any()
    # In evaluation mode torch's fast path would compute a softmax.
    torch.testing.assert_close(encoder.eval()(x), expected)


def test_an_unnamed_strength_and_an_unnamed_bias_are_refused_before_any_change():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 16, batch_first=True), 2)
    for bias in (CentredKeys(-2.0, torch.ones(H)), CentredKeys(Learned(-2.0, H))):
        with pytest.raises(ValueError, match=r"^sigmoid_bias: CentredKeys holds a .* no parameter"):
            replace_multihead_attention(encoder, bias)
    assert type(encoder.layers[0].self_attn) is nn.MultiheadAttention
