"""SwiGLU and GELU feed-forward layers."""

import pytest
import torch

from sigmoid_attention.nn import GELUFeedForward, SwiGLU
from sigmoid_attention.nn.feed_forward import swiglu_hidden


def test_swiglu_is_its_formula():
    layer, x = SwiGLU(5, 7), torch.randn(2, 3, 5)
    gate = x @ layer.gate.weight.T
    expected = (gate * torch.sigmoid(gate) * (x @ layer.up.weight.T)) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected)


def test_gelu_is_its_formula():
    layer, x = GELUFeedForward(5, 7), torch.randn(2, 3, 5)
    up = x @ layer.up.weight.T
    expected = (up * (1 + torch.erf(up / 2**0.5)) / 2) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("dim, hidden", [(96, 256), (97, 512), (768, 2048), (4096, 11008)])
def test_swiglu_width_is_eight_thirds_rounded_up(dim, hidden):
    assert swiglu_hidden(dim) == hidden


@pytest.mark.parametrize("layer", [SwiGLU, GELUFeedForward])
def test_no_linear_biases(layer):
    assert all(parameter.dim() == 2 for parameter in layer(4, 6).parameters())


@pytest.mark.parametrize("layer", [SwiGLU, GELUFeedForward])
@pytest.mark.parametrize(
    "dim, hidden, error, match",
    [
        (0, 6, ValueError, "dim must be positive, got 0"),
        (4.0, 6, TypeError, "dim must be a whole number, got 4.0"),
        (4, None, TypeError, "hidden must be a whole number, got None"),
        (4, -6, ValueError, "hidden must be positive, got -6"),
    ],
)
def test_sizes_are_positive_whole_numbers(layer, dim, hidden, error, match):
    with pytest.raises(error, match=match):
        layer(dim, hidden)
    with pytest.raises(TypeError, match="dim must be a whole number, got 96"):
        swiglu_hidden(96.5)
