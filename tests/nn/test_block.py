"""Norm placements, LayerScale and dropout on the residual branches."""

import pytest
import torch

from sigmoid_attention.nn import Attention, Block, Residual, RMSNorm, SwiGLU


def block(**settings):
    return Block(Attention(12, 3, max_seq_len=8, qk_norm="rms"), SwiGLU(12, 20), **settings)


def norm(x):
    return RMSNorm(x.shape[-1])(x)


@pytest.mark.parametrize(
    "placement, branch",
    [
        ("pre", lambda x, f: x + f(norm(x))),
        ("post", lambda x, f: norm(x + f(x))),
        ("hybrid", lambda x, f: x + norm(f(norm(x)))),
    ],
)
def test_placements_are_their_formulas(placement, branch):
    layer, x = block(norm_placement=placement), torch.randn(2, 5, 12)
    expected = branch(branch(x, layer.attention), layer.feed_forward)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("placement, norms", [("pre", 1), ("post", 1), ("hybrid", 2)])
def test_only_the_norms_of_the_placement_have_gains(placement, norms):
    gains = [p for p in Residual(12, placement).parameters()]
    assert len(gains) == norms


def test_layer_scale_makes_a_new_block_nearly_the_identity():
    layer, x = block(norm_placement="hybrid", layer_scale=1e-4), torch.randn(2, 5, 12)
    difference = (layer(x) - x).abs().max().item()
    assert 0 < difference < 2e-3


def test_hybrid_norm_forgets_the_size_of_the_branch():
    residual, x = Residual(12, "hybrid", norm_eps=1e-12), torch.randn(2, 5, 12)
    torch.testing.assert_close(residual(x, lambda y: 1e-3 * y), residual(x, lambda y: y))


def test_branch_dropout_acts_in_training_only():
    layer, x = block(dropout_p=0.5), torch.randn(1, 5, 12)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_another_placement_is_refused():
    with pytest.raises(ValueError, match=r"norm_placement must be one of .*got 'sandwich'"):
        block(norm_placement="sandwich")


@pytest.mark.parametrize(
    "settings, match",
    [
        (dict(dropout_p=1.5), "dropout_p must be at least 0 and below 1, got 1.5"),
    ],
    ids=str,
)
def test_wrong_values_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        block(**settings)


@pytest.mark.parametrize(
    "settings, match",
    [
        (dict(norm_placement=["pre"]), r"norm_placement must be one of .*got \['pre'\]"),
        (dict(layer_scale="1"), "layer_scale must be a number, got the string '1'"),
        (dict(dropout_p=None), "dropout_p must be a number, got None"),
    ],
    ids=str,
)
def test_wrong_types_are_refused(settings, match):
    with pytest.raises(TypeError, match=match):
        block(**settings)
