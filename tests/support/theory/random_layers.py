"""Random attention layers and inputs from hypothesis, for tests of bounds."""

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sigmoid_attention.nn import ALiBi, Attention, RoPE

DIM, HEADS = 6, 2


@st.composite
def layers(draw, *, most_tokens: int = 5) -> tuple[Attention, int, torch.Generator]:
    """A layer in float64 with weights of any size, a number of tokens, and chance for the rest."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tokens = draw(st.integers(1, most_tokens))
    head_dim = draw(st.sampled_from((2, 4)))
    layer = Attention(
        DIM,
        HEADS,
        max_seq_len=tokens,
        head_dim=head_dim,
        num_kv_heads=draw(st.sampled_from((1, 2))),
        activation=draw(st.sampled_from(("sigmoid", "softmax"))),
        bias=draw(st.sampled_from((None, 0.0, 2.0, -3.0))),
        position=draw(st.sampled_from((None, RoPE(), ALiBi()))),
        qk_norm=draw(st.sampled_from((None, "rms", "layer"))),
        is_causal=draw(st.booleans()),
        window_size=draw(st.sampled_from(((-1, -1), (1, 1)))),
        softcap=draw(st.sampled_from((None, 1.5))),
        linear_bias=draw(st.booleans()),
        impl="reference",
    ).double()
    with torch.no_grad():
        for weight in layer.parameters():
            size = 10 ** draw(st.floats(-1.0, 0.7))
            weight.copy_(size * torch.randn(weight.shape, generator=rng, dtype=torch.float64))
    return layer.eval(), tokens, rng


def inputs(tokens: int, radius: float, rng: torch.Generator, lower: float = 0.0) -> Tensor:
    """Tokens (N, C) of every length between ``lower`` and ``radius``, the longest at the edge."""
    x = torch.randn(tokens, DIM, generator=rng, dtype=torch.float64)
    length = lower + (radius - lower) * torch.rand(tokens, 1, generator=rng, dtype=torch.float64)
    length[0] = radius
    return x / x.norm(dim=-1, keepdim=True) * length


def whole_jacobian(function, x: Tensor) -> Tensor:
    """d answer / d x by reverse mode, as one matrix."""
    with sdpa_kernel(SDPBackend.MATH):
        jacobian = torch.autograd.functional.jacobian(function, x, vectorize=True)
    return jacobian.reshape(-1, x.numel())
