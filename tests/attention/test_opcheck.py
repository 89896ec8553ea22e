"""Each operator passes torch.library.opcheck: schema, fake results and gradients.

Graphs are built from the fake results, so a stride that differs there causes wrong outputs later.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from sigmoid_attention.attention import (
    sigmoid_attention,
    sigmoid_decode,
    sigmoid_varlen_attention,
)
from sigmoid_attention.attention.impl.cpu.ops import available
from tests.support.attention.mass import joined

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


class Seen(TorchDispatchMode):
    """The arguments of this library's operators, each the first time that it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "sigmoid_attention":
            self.calls.setdefault(function, args)
        return function(*args, **(kwargs or {}))


def leaf(*sizes: int) -> Tensor:
    return torch.randn(sizes).requires_grad_()


def by_token(batch: int, heads: int, length: int, dim: int) -> Tensor:
    """As layers have it: (batch, tokens, heads, dim), turned."""
    return torch.randn(batch, length, heads, dim).transpose(1, 2).requires_grad_()


HIDING = torch.randn(9, 9).masked_fill(torch.eye(9) > 0, -math.inf)
TERMS = {
    "number": {"bias": -2.0},
    "bias-by-head": {"bias": leaf(4, 1, 1)},
    "bias-by-row": {"bias": leaf(2, 1, 9, 1)},
    "bias-by-key": {"bias": leaf(1, 1, 1, 9)},
    "bias-by-pair": {"bias": leaf(4, 9, 9)},
    "bias-of-one-number": {"bias": torch.tensor(-2.0, requires_grad=True)},
    "bias-with-turned-strides": {"bias": by_token(2, 9, 4, 9).transpose(1, 2)},
    "bias-in-double": {"bias": leaf(4, 1, 1).double()},
    "mask-of-flags": {"bias": -1.0, "attn_mask": torch.rand(2, 1, 1, 9) > 0.3},
    "mask-that-learns": {"bias": -1.0, "attn_mask": HIDING.clone().requires_grad_()},
    "mask-by-key-and-bias-by-row": {"bias": leaf(9, 1), "attn_mask": leaf(9)},
    "slopes": {"bias": -1.0, "alibi_slopes": leaf(4), "softcap": 2.0, "is_causal": True},
    "slopes-by-batch": {"bias": -1.0, "alibi_slopes": leaf(2, 4), "window_size": (3, 1)},
}


Operator = Callable[..., Tensor]


def dense(impl: str, terms: dict, operator: Operator = sigmoid_attention) -> Tensor:
    query, key, value = by_token(2, 4, 9, 8), by_token(2, 2, 9, 8), by_token(2, 2, 9, 5)
    return operator(query, key, value, **terms, enable_gqa=True, impl=impl)


def packed(operator: Operator = sigmoid_varlen_attention, **terms) -> Tensor:
    ends, query = torch.tensor([0, 5, 5, 9], dtype=torch.int32), leaf(9, 4, 8)
    return operator(query, leaf(9, 4, 8), leaf(9, 4, 5), ends, ends, 7, 9, **terms)


def cached(**terms) -> Tensor:
    cache = by_token(2, 4, 9, 8), by_token(2, 4, 9, 5)
    return sigmoid_decode(
        by_token(2, 4, 2, 8), *cache, seqused_k=torch.tensor([9, 3]), is_causal=True, **terms
    )


def paged() -> Tensor:
    pages, table = torch.randn(2, 6, 4, 4, 8), torch.tensor([[1, 0, 5], [2, 3, 9]])
    return sigmoid_decode(
        by_token(2, 4, 2, 8),
        *pages,
        seqused_k=torch.tensor([11, 7]),
        block_table=table,
        bias=-1.0,
        is_causal=True,
    )


def empty() -> Tensor:
    query, key = by_token(2, 4, 0, 8), by_token(2, 4, 9, 8)
    return sigmoid_attention(query, key, key, bias=leaf(1, 1, 1, 9), alibi_slopes=leaf(4))


CALLS = {
    **{f"cpu-{name}": lambda terms=terms: dense("cpu", terms) for name, terms in TERMS.items()},
    **{f"tiled-{name}": lambda terms=terms: dense("tiled", terms) for name, terms in TERMS.items()},
    "packed": lambda: packed(bias=-1.0),
    "packed-terms": lambda: packed(bias=leaf(3, 4, 7, 9), alibi_slopes=leaf(3, 4)),
    "packed-bias-by-row": lambda: packed(bias=leaf(3, 1, 7, 1), softcap=2.0),
    "cached": lambda: cached(bias=-1.0),
    "cached-terms": lambda: cached(bias=leaf(2, 4, 2, 9), alibi_slopes=leaf(4)),
    "paged": paged,
    "no-queries": empty,
    "mass": lambda: dense("cpu", TERMS["slopes"], joined(sigmoid_attention)),
    "mass-bias-by-pair": lambda: dense("cpu", TERMS["bias-by-pair"], joined(sigmoid_attention)),
    "packed-mass": lambda: packed(joined(sigmoid_varlen_attention), bias=leaf(3, 1, 7, 1)),
}


def called(call) -> dict:
    """The operators that a call, its gradients and theirs need, and their arguments."""
    with Seen() as seen:
        out = call()
        inputs = [x for x in leaves(out.grad_fn) if x.requires_grad]
        grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        torch.autograd.grad(sum(grad.square().sum() for grad in grads), inputs)
    return seen.calls


pytestmark = pytest.mark.skipif(not available(), reason="there is no CPU kernel on this machine")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_operators_are_what_they_say(call):
    found = called(call)
    assert len(found) >= 3
    for operator, arguments in found.items():
        opcheck(operator, arguments, test_utils=CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["cpu-slopes", "tiled-bias-by-pair", "packed-terms", "no-queries", "mass"]
)
def test_compiled_operators_have_the_same_results_and_gradients(name):
    for operator, arguments in called(CALLS[name]).items():
        # Of the gradients' gradients there are none.
        learns = "double_backward" not in str(operator)
        fresh = [
            x.detach().requires_grad_(learns and x.requires_grad) if isinstance(x, Tensor) else x
            for x in arguments
        ]
        opcheck(operator, tuple(fresh), test_utils="test_aot_dispatch_dynamic")


def leaves(node) -> list[Tensor]:
    """The tensors that a gradient arrives at."""
    found, todo, met = [], [node], set()
    while todo:
        node = todo.pop()
        if node is None or node in met:
            continue
        met.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo += [following for following, _ in node.next_functions]
    return found
