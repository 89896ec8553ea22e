"""torch.fx traces models of our layers; a layer that checks sizes stays one node."""

import pytest
import torch
from torch import nn

from sigmoid_attention.nn import (
    CAPE,
    Attention,
    Block,
    DecoderLM,
    GELUFeedForward,
    LayerScale,
    LearnedPosition,
    ModelConfig,
    MoEConfig,
    QKNorm,
    RMSNorm,
    RoPE,
    RoPEWithALiBi,
    SigmoidMultiheadAttention,
    SinCos,
    SwiGLU,
    softmax_attention,
)

DIM, TOKENS = 16, 5


class Whole(nn.Module):
    """A user's module: a layer between two operations of torch."""

    def __init__(self, layer: nn.Module, arguments: int = 1):
        super().__init__()
        self.layer, self.arguments = layer, arguments

    def forward(self, x):
        out = self.layer(*[2 * x] * self.arguments)
        return out[0] + 1 if self.arguments > 1 else out + 1


class Placed(nn.Module):
    def __init__(self, position: nn.Module):
        super().__init__()
        self.position = position

    def forward(self, x):
        return self.position(x, torch.arange(TOKENS).expand(2, TOKENS))


class Softmax(nn.Module):
    def forward(self, x):
        heads = x.unflatten(2, (2, DIM // 2)).transpose(1, 2)
        return softmax_attention(heads, heads, heads, is_causal=True)


def first_block(**settings) -> Block:
    config = ModelConfig.recipe(
        "recommended", vocab_size=31, dim=DIM, layers=1, num_heads=2, max_seq_len=8, **settings
    )
    block = DecoderLM(config).blocks[0]
    assert isinstance(block, Block)
    return block


class Model(nn.Module):
    """A language model, whose first token a number decides."""

    def __init__(self, **settings):
        super().__init__()
        config = ModelConfig.recipe(
            "recommended", vocab_size=31, dim=DIM, layers=2, num_heads=2, max_seq_len=8, **settings
        )
        self.model = DecoderLM(config)

    def forward(self, x):
        return self.model((x[..., 0] > 0).long(), logits_to_keep=2)


OPTIONS = dict(
    centred_keys=True, state_bias=True, gate="head", value_residual=True, mass_exponent="learned"
)


class Residual(nn.Module):
    """Two blocks, of which the second reads the first one's values."""

    def __init__(self):
        super().__init__()
        settings = {"num_heads": 2, "max_seq_len": 8}
        self.first, self.second = (
            Block(Attention(DIM, **settings, value_residual=mixed), SwiGLU(DIM, 32))
            for mixed in (False, True)
        )

    def forward(self, x):
        x, value = self.first(x, return_value=True)
        return self.second(x, first_value=value)


LAYERS = {
    "Attention": lambda: Attention(DIM, num_heads=2, max_seq_len=8, position=RoPE(), qk_norm="rms"),
    "options": lambda: Attention(
        DIM, 2, max_seq_len=8, **{**OPTIONS, "value_residual": False}, position=RoPEWithALiBi()
    ),
    "softmax": lambda: Attention(DIM, num_heads=2, max_seq_len=8, activation="softmax"),
    "RMSNorm": lambda: RMSNorm(DIM),
    "LayerScale": lambda: LayerScale(DIM, 0.1),
    "GELUFeedForward": lambda: GELUFeedForward(DIM, 32),
    "SwiGLU": lambda: SwiGLU(DIM, 32),
    "Block": first_block,
    "Block with experts": lambda: first_block(moe=MoEConfig(experts=4, hidden=16, top_k=2)),
}
MODULES = {
    **{name: lambda make=make: Whole(make()) for name, make in LAYERS.items()},
    "SigmoidMultiheadAttention": lambda: Whole(
        SigmoidMultiheadAttention(DIM, 2, batch_first=True, sigmoid_bias=-2.0), 3
    ),
    "QKNorm": lambda: Whole(QKNorm("rms", DIM), 2),
    "SinCos": lambda: Placed(SinCos(DIM)),
    "LearnedPosition": lambda: Placed(LearnedPosition(DIM, 8)),
    "CAPE": lambda: Placed(CAPE(DIM)),
    "softmax_attention": Softmax,
    "values of the first layer": Residual,
    "DecoderLM with options": lambda: Model(**OPTIONS),
    "DecoderLM": Model,
}


@pytest.mark.parametrize("name", MODULES)
def test_a_traced_layer_computes_the_same(name):
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    x = torch.randn(2, TOKENS, DIM)
    traced = torch.fx.symbolic_trace(module)
    torch.testing.assert_close(traced(x), module(x), rtol=0, atol=0)
