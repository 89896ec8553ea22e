"""timm's layers with a sigmoid under hooks and wrappers of modules, and in other dtypes."""

import accelerate
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from sigmoid_attention import Learned, NegLogLength
from sigmoid_attention.integrations.timm import (
    SigmoidAttention,
    SigmoidAttentionRope,
    SigmoidEvaAttention,
)

LAYERS = {
    "Attention": lambda bias: SigmoidAttention(
        12, num_heads=3, norm_layer=nn.LayerNorm, qkv_bias=True, qk_norm=True, sigmoid_bias=bias
    ),
    "AttentionRope": lambda bias: SigmoidAttentionRope(
        12, num_heads=3, norm_layer=nn.LayerNorm, sigmoid_bias=bias
    ),
    "AttentionRope-apart": lambda bias: SigmoidAttentionRope(
        12, num_heads=3, norm_layer=nn.LayerNorm, qkv_fused=False, sigmoid_bias=bias
    ),
    "EvaAttention": lambda bias: SigmoidEvaAttention(
        12, num_heads=3, norm_layer=nn.LayerNorm, sigmoid_bias=bias
    ),
    "EvaAttention-without": lambda bias: SigmoidEvaAttention(
        12, num_heads=3, norm_layer=nn.LayerNorm, qkv_bias=False, sigmoid_bias=bias
    ),
    "EvaAttention-apart": lambda bias: SigmoidEvaAttention(
        12,
        num_heads=3,
        norm_layer=nn.LayerNorm,
        qkv_fused=False,
        scale_norm=True,
        sigmoid_bias=bias,
    ),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def built(make):
    return make(Learned(NegLogLength(1000), 3)).eval(), torch.randn(2, 7, 12)


@each_layer
def test_hooks_of_all_that_hold_parameters_are_called(make):
    layer, x = built(make)
    holders = [part for part in layer.modules() if part._parameters]
    called = []
    for part in holders:
        part.register_forward_hook(lambda part, *_: called.append(part))
    layer(x)
    assert set(called) >= {
        part for part in holders if any(p is not None for p in part.parameters())
    }


@each_layer
def test_offloaded_as_in_place(make):
    layer, x = built(make)
    with torch.no_grad():
        expected = layer(x)
        accelerate.cpu_offload(layer, execution_device=torch.device("cpu"))
        assert torch.equal(layer(x), expected)


@each_layer
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_dynamically(make):
    layer, x = built(make)
    expected = layer(x)
    quantised = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)
    assert (quantised(x) - expected).norm() < 0.2 * expected.norm()


@each_layer
def test_gradients_for_each_sample(make):
    layer, x = built(make)
    parameters = dict(layer.double().named_parameters())

    def loss(parameters, row):
        return functional_call(layer, parameters, (row[None],)).square().sum()

    grads = vmap(grad(loss), (None, 0))(parameters, x.double())
    for row, image in enumerate(x.double()):
        layer.zero_grad()
        loss(parameters, image).backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(grads[name][row], parameter.grad)


@each_layer
def test_a_cast_changes_no_bit_of_the_bias(make):
    layer, x = built(make)
    before = layer.sigmoid_bias.value.detach().clone()
    layer.bfloat16()
    assert layer.sigmoid_bias.value.dtype == torch.float32
    assert torch.equal(layer.sigmoid_bias.value, before)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
