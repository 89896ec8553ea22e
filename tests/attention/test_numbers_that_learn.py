"""A tensor in place of a number gets a gradient in every implementation, or is refused in all."""

import pytest
import torch
from torch import nn

from sigmoid_attention.attention import (
    Constant,
    NegLogLength,
    sigmoid_attention,
    sigmoid_decode,
    sigmoid_varlen_attention,
)

IMPLEMENTATIONS = ("auto", "cpu", "tiled", "reference")


def text():
    chance = torch.Generator().manual_seed(5)
    return torch.randn(3, 1, 2, 9, 8, generator=chance).unbind(0)


def gradient(bias, number, **arguments) -> float:
    number.grad = None
    sigmoid_attention(*text(), bias=bias, **arguments).square().sum().backward()
    return number.grad.item()


POLICIES = {
    "constant": (Constant, 0.0),
    "offset-of-the-length": (lambda number: NegLogLength(8, offset=number), 2.0794415),
}
each_policy = pytest.mark.parametrize("policy, lower", POLICIES.values(), ids=POLICIES.keys())


@each_policy
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_policy_of_a_tensor_learns(policy, lower, impl):
    number = nn.Parameter(torch.tensor(-1.5))
    tensor = nn.Parameter(torch.tensor(-1.5 - lower))
    actual = gradient(policy(number), number, impl=impl)
    assert actual == pytest.approx(gradient(tensor, tensor, impl="reference"), rel=1e-4)
    assert actual != 0


@each_policy
def test_it_learns_in_a_compiled_graph(policy, lower):
    number = nn.Parameter(torch.tensor(-1.5))
    expected = gradient(policy(number), number)

    @torch.compile(fullgraph=True, backend="eager")
    def attended(query, key, value, number):
        return sigmoid_attention(query, key, value, bias=policy(number))

    number.grad = None
    attended(*text(), number).square().sum().backward()
    assert number.grad.item() == pytest.approx(expected, rel=1e-4)


@each_policy
def test_it_learns_in_packed_and_cached_calls(policy, lower):
    query, key, value = text()
    packed, ends = [x[0].transpose(0, 1) for x in (query, key, value)], torch.tensor([0, 4, 9])
    number = nn.Parameter(torch.tensor(-1.5))
    for out in (
        sigmoid_varlen_attention(*packed, ends, ends, 5, 5, bias=policy(number)),
        sigmoid_decode(
            query, key, value, seqused_k=torch.tensor([9]), bias=policy(number), is_causal=True
        ),
    ):
        number.grad = None
        out.square().sum().backward()
        assert number.grad.item() != 0


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("learns", [True, False])
def test_a_tensor_as_scale_or_softcap_is_refused(impl, learns):
    number = torch.tensor(2.0, requires_grad=learns)
    for name in ("scale", "softcap"):
        with pytest.raises(TypeError, match=rf"^{name}:? .* a tensor .* could not learn here; "):
            sigmoid_attention(*text(), bias=-1.0, impl=impl, **{name: number})


def test_a_scale_that_multiplies_the_query_learns():
    """What the refusal says to do."""
    query, key, value = text()
    scale = nn.Parameter(torch.tensor(0.7))
    out = sigmoid_attention(query * scale, key, value, bias=-1.0, scale=1)
    torch.testing.assert_close(out, sigmoid_attention(query, key, value, bias=-1.0, scale=0.7))
    out.sum().backward()
    assert scale.grad.item() != 0
