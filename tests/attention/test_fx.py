"""torch.fx takes a call of the operator for one node, as it does with torch's own attention."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from sigmoid_attention.attention import (
    Constant,
    HeadValues,
    Learned,
    NegLogEffectiveLength,
    NegLogLength,
    NegLogVisible,
    RowLSE,
    sigmoid_attention,
    sigmoid_decode,
    sigmoid_varlen_attention,
)
from tests.attention.test_compile import normal


class Causal(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.bias = bias

    def forward(self, query, key, value):
        return sigmoid_attention(query, key, value=value, bias=self.bias, is_causal=True)


class OfHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([-2.0, -3.0]))

    def forward(self, query, key, value):
        return sigmoid_attention(query, key, value, bias=HeadValues(self.value))


class Packed(nn.Module):
    def forward(self, query, key, value):
        ends = torch.tensor([0, 2, 5])
        return sigmoid_varlen_attention(
            query, key, value, ends, ends, 3, 3, bias=NegLogLength(8), is_causal=True
        )


class Cached(nn.Module):
    def forward(self, query, key, value):
        used = torch.full((2,), 4)
        return sigmoid_decode(query[:, :, :1], key, value, seqused_k=used, bias=-2.0)


BIASES = (
    Constant(-2.0),
    NegLogLength(64),
    NegLogVisible(),
    NegLogEffectiveLength((0.5, 0.0), 16),
    Learned(-2.0, heads=2),
    RowLSE(),
)
MODULES = {
    **{type(bias).__name__: Causal(bias) for bias in BIASES},
    "number": Causal(-2.0),
    "HeadValues": OfHeads(),
    "packed": Packed(),
    "cached": Cached(),
}


def inputs(name: str) -> list[Tensor]:
    shape = (5, 2, 8) if name == "packed" else (2, 2, 5, 8)
    return [normal(*shape, seed=seed) for seed in range(3)]


@pytest.mark.parametrize("name", MODULES)
def test_a_traced_module_computes_the_same_and_can_be_copied_and_stored(name):
    module, tensors = MODULES[name], inputs(name)
    traced = torch.fx.symbolic_trace(module)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert {call.__name__ for call in calls} & {
        "sigmoid_attention",
        "sigmoid_varlen_attention",
        "sigmoid_decode",
    }
    for each in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        torch.testing.assert_close(each(*tensors), module(*tensors), rtol=0, atol=0)


def test_a_tensor_subclass_keeps_its_class():
    class Named(Tensor):
        pass

    query, key, value = (tensor.as_subclass(Named) for tensor in inputs("number"))
    out = sigmoid_attention(query, key, value, bias=-2.0)
    assert type(out) is Named
    expected = sigmoid_attention(*inputs("number"), bias=-2.0)
    torch.testing.assert_close(out.as_subclass(Tensor), expected, rtol=0, atol=0)


def test_a_default_device_changes_nothing():
    with torch.device("cpu"):
        out = sigmoid_attention(*inputs("number"), bias=-2.0)
    torch.testing.assert_close(out, sigmoid_attention(*inputs("number"), bias=-2.0))
