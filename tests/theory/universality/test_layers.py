"""The networks are members of T^{4,1,4}, made of the library's own attention layer."""

import pytest
import torch

from sigmoid_attention import sigmoid_attention
from sigmoid_attention.nn import Attention
from sigmoid_attention.theory.universality import HeavisideAttention
from sigmoid_attention.theory.universality.layers import ReLUFeedForward
from tests.support.theory.constructions import construction


@pytest.mark.parametrize("sizes", [(3, 1, 4), (2, 2, 3)], ids=["n3-d1", "n2-d2"])
def test_every_layer_has_four_heads_of_width_one_or_four_hidden_units(sizes):
    n, d, _ = sizes
    network = construction("mix", *sizes).hard.with_steepness(50.0)
    kinds = [type(layer) for layer in network.layers]
    assert set(kinds) == {Attention, ReLUFeedForward}
    for layer in network.layers:
        shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
        if isinstance(layer, Attention):
            assert (layer.num_heads, layer.head_dim, layer.max_seq_len) == (4, 1, n)
            assert (layer.bias, layer.is_causal, layer.activation) == (0.0, False, "sigmoid")
            assert shapes["query.weight"] == (4, d)
            assert shapes["output.weight"] == (d, 4)
        else:
            assert (shapes["up"], shapes["down"]) == ((4, d), (d, 4))
        assert all(p.dtype == torch.float64 for p in layer.parameters())


def test_the_network_is_a_sum_of_its_layers_and_the_operator_gives_the_attention():
    """x + layer(x) by hand, with the public operator in place of the layer."""
    network = construction("mix", 3, 1, 4).hard.with_steepness(7.0)
    x = torch.rand(2, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answer = network(x)
        for layer in network.layers:
            if isinstance(layer, Attention):
                q, k, v = (
                    part(x).transpose(1, 2)[..., None]
                    for part in (layer.query, layer.key, layer.value)
                )
                heads = sigmoid_attention(q, k, v, bias=0.0, scale=1.0, impl="reference")
                x = x + layer.output(heads[..., 0].transpose(1, 2))
            else:
                hidden = torch.relu(x @ layer.up.T + layer.up_bias)
                x = x + hidden @ layer.down.T + layer.down_bias
    torch.testing.assert_close(answer, x, rtol=0, atol=1e-9)


def test_heaviside_is_the_limit_of_steep_sigmoids():
    hard = construction("edge", 3, 1, 4).hard
    layer = next(part for part in hard.layers if isinstance(part, HeavisideAttention))
    # Off the grid too, but not on a threshold.
    x = 4 * torch.rand(64, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = layer(x)
        errors = []
        for steepness in (1e2, 1e4, 1e12):
            steep = type(hard)([layer]).with_steepness(steepness).layers[0]
            errors.append(float((steep(x) - expected).abs().mean()))
    assert errors[0] > errors[1] > errors[2] == 0


def test_building_leaves_the_callers_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    construction.__wrapped__("max", 2, 1, 2)
    assert torch.equal(torch.rand(3), expected)
