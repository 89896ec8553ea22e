"""No array is allocated for the gradient of a bias or mask that needs none, to any order.

Sizes: Q queries, K keys; the terms added to the logits are Q x K, all others far smaller.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sigmoid_attention import sigmoid_attention

Q, K, D = 129, 257, 4
TERMS = {
    "mask": {"attn_mask": torch.zeros(Q, K), "bias": -2.0},
    "bool-mask": {"attn_mask": torch.ones(Q, K, dtype=torch.bool), "bias": -2.0},
    "bias": {"bias": torch.zeros(1, 1, Q, K)},
    "slopes": {"bias": torch.zeros(1, 1, Q, K), "alibi_slopes": torch.tensor([0.1])},
}
OPERATORS = ("tiled_backward", "tiled_double_backward", "cpu_backward", "cpu_double_backward")


class Results(TorchDispatchMode):
    """The most elements that a result of the operators' derivatives has."""

    def __init__(self):
        super().__init__()
        self.most: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("sigmoid_attention::")
        if name in OPERATORS:
            self.most[name] = max(x.numel() for x in results)
        return results


def inputs() -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    sizes = ((1, 1, Q, D), (1, 1, K, D), (1, 1, K, D))
    return [torch.randn(size, generator=chance, requires_grad=True) for size in sizes]


def gradients(impl: str, terms: dict, learned: list[torch.Tensor]):
    """First and second derivatives for query, key, value and what learns beside them."""
    tensors = inputs()
    out = sigmoid_attention(*tensors, impl=impl, skip_tolerance=0.0, **terms)
    first = torch.autograd.grad(out.square().sum(), (*tensors, *learned), create_graph=True)
    total = torch.stack([grad.square().sum() for grad in first]).sum()
    return *first, *torch.autograd.grad(total, (*tensors, *learned))


def assert_near(actual, expected):
    for left, right in zip(actual, expected, strict=True):
        assert (left - right).abs().max() <= 1e-4 * right.abs().max()


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS.keys())
@pytest.mark.parametrize("impl", ["tiled", "cpu"])
def test_terms_that_do_not_learn_cost_no_gradient(impl, terms):
    with Results() as results:
        actual = gradients(impl, terms, [])
    assert len(results.most) == 2 and max(results.most.values()) <= K * D
    assert_near(actual, gradients("reference", terms, []))


@pytest.mark.parametrize("name", ["bias", "alibi_slopes", "attn_mask"])
@pytest.mark.parametrize("impl", ["tiled", "cpu"])
def test_a_trained_term_beside_terms_without_gradients(impl, name):
    terms = {
        "bias": torch.full((1, 1, Q, K), -2.0),
        "attn_mask": torch.zeros(Q, K),
        "alibi_slopes": torch.tensor([0.1]),
    }
    learned = [terms[name].requires_grad_()]
    assert_near(gradients(impl, terms, learned), gradients("reference", terms, learned))
