"""Bounds of stacks of blocks, on sets of inputs and at one input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sigmoid_attention.nn import Block, DecoderLM, GELUFeedForward, ModelConfig, SwiGLU
from sigmoid_attention.theory.regularity import (
    Ball,
    composed,
    largest_gain,
    network_bound,
    network_bound_at,
)
from tests.support.examples import examples
from tests.support.theory.random_layers import DIM, inputs, layers, whole_jacobian


@st.composite
def stacks(draw):
    """Two blocks around drawn layers, with random gains, and tokens for them."""
    first, tokens, rng = draw(layers(most_tokens=4))
    placement = draw(st.sampled_from(("pre", "post", "hybrid")))
    gain = draw(st.sampled_from((None, 0.1)))
    kind = draw(st.sampled_from((SwiGLU, GELUFeedForward)))
    blocks = [
        Block(first, kind(DIM, 5), norm_placement=placement, layer_scale=gain).double()
        for _ in range(2)
    ]
    with torch.no_grad():
        for block in blocks:
            for name, weight in block.named_parameters():
                if not name.startswith("attention."):
                    drawn = torch.rand(weight.shape, generator=rng, dtype=torch.float64)
                    weight.copy_(weight * (0.5 + drawn))
    return blocks, tokens, rng


def through(blocks, x):
    for block in blocks:
        x = block(x)
    return x


@settings(max_examples=examples(200))
@given(stacks(), st.floats(0.1, 5.0), st.floats(0.0, 1.0))
def test_no_stack_is_steeper_than_the_product_of_its_bounds(drawn, radius, share):
    blocks, tokens, rng = drawn
    x = inputs(tokens, radius, rng, lower=share * radius)
    whole = network_bound(blocks, Ball(radius, share * radius), tokens)
    here = network_bound_at(blocks, x)
    jacobian = whole_jacobian(lambda x: through(blocks, x[None]), x)
    norm = float(torch.linalg.matrix_norm(jacobian, 2))
    assert norm <= composed(here) * (1 + 1e-9)
    assert composed(here) <= composed(whole) * (1 + 1e-9)
    with torch.no_grad():
        middle = blocks[0](x[None]).norm(dim=-1)
    # The set that the second block is bounded on holds what the first one makes of x.
    assert whole[2].least <= float(middle.min()) * (1 + 1e-9) + 1e-12
    assert float(middle.max()) <= whole[2].most * (1 + 1e-9)
    assert here[2].most == pytest.approx(float(middle.max()))


def test_each_branch_alone_is_within_its_own_bound():
    torch.manual_seed(0)
    config = ModelConfig.recipe(
        "recommended", vocab_size=5, dim=16, layers=2, num_heads=2, max_seq_len=6, position="rope"
    )
    blocks = DecoderLM(config).double().eval().blocks
    x = torch.randn(6, 16).double()
    bounds = network_bound_at(blocks, x)
    assert [bound.name for bound in bounds] == [
        "0.attention", "0.feed_forward", "1.attention", "1.feed_forward",
    ]  # fmt: skip

    def attend(x):
        return blocks[0].attention_residual(x[None], blocks[0].attention)[0]

    norm = largest_gain(attend, x, steps=96).value
    assert 0.05 * bounds[0].jacobian < norm <= bounds[0].jacobian


def test_a_part_without_a_bound_is_named():
    config = ModelConfig.recipe("paper", vocab_size=5, dim=16, layers=1, num_heads=2, max_seq_len=6)
    block = DecoderLM(config).blocks[0]
    block.feed_forward = torch.nn.Linear(16, 16)
    message = "0.feed_forward: Linear has no bound here; Attention, SwiGLU, GELUFeedForward have"
    with pytest.raises(ValueError, match=message):
        network_bound([block], Ball(1.0), 4)
    with pytest.raises(ValueError, match=message):
        network_bound_at([block], torch.ones(4, 16))
    with pytest.raises(TypeError, match="block 0: Linear is not a part with a bound"):
        network_bound([torch.nn.Linear(2, 2)], Ball(1.0), 4)
