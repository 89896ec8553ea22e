"""torch.fx traces a call of the operator as one node, as it does with torch's own attention."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from sigmoid_attention.attention import (
    CentredKeys,
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
from sigmoid_attention.integrations import flash_attn, flash_sigmoid, triton_sigmoid
from tests.support.attention.compiled import normal


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


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([-2.0, -3.0]))
        self.strength = nn.Parameter(torch.tensor([0.5, 1.0]))

    def forward(self, query, key, value):
        bias = CentredKeys(HeadValues(self.value), self.strength)
        return sigmoid_attention(query, key, value, bias=bias, is_causal=True)


class Packed(nn.Module):
    def forward(self, query, key, value):
        ends = torch.tensor([0, 2, 5])
        return sigmoid_varlen_attention(
            query, key, value, ends, ends, 3, 3, bias=NegLogLength(8), is_causal=True
        )


class Cached(nn.Module):
    def forward(self, query, key, value):
        used = torch.full((2,), 4)
        return sigmoid_decode(
            query[:, :, :1], key, value, seqused_k=used, bias=-2.0, is_causal=True
        )


BIASES = (
    Constant(-2.0),
    NegLogLength(64),
    NegLogVisible(),
    NegLogEffectiveLength((0.5, 0.0), 16),
    Learned(-2.0, num_heads=2),
    RowLSE(),
    CentredKeys(NegLogVisible(), torch.tensor([0.5, 1.0])),
)
MODULES = {
    **{type(bias).__name__: Causal(bias) for bias in BIASES},
    "number": Causal(-2.0),
    "HeadValues": OfHeads(),
    "centred-of-parameters": Centred(),
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


def names_of_others():
    """Calls of (B, S, H, D) under the names of other libraries, by name."""
    ends = torch.tensor([0, 2, 5])

    def packed(function):
        return lambda q, k, v: function(torch.stack((q, k, v), 2), sigmoid_bias=-2.0)

    def key_value_packed(function):
        return lambda q, k, v: function(q, torch.stack((k, v), 2), sigmoid_bias=-2.0)

    def sequences(q, k, v):
        return flash_attn.flash_attn_varlen_func(
            q[0], k[0], v[0], ends, ends, 3, 3, sigmoid_bias=-2.0
        )

    def sequences_of_packed(q, k, v):
        qkv = torch.stack((q[0], k[0], v[0]), 1)
        return flash_attn.flash_attn_varlen_qkvpacked_func(qkv, ends, 3, sigmoid_bias=-2.0)

    def sequences_of_key_value_packed(q, k, v):
        kv = torch.stack((k[0], v[0]), 1)
        return flash_attn.flash_attn_varlen_kvpacked_func(
            q[0], kv, ends, ends, 3, 3, sigmoid_bias=-2.0
        )

    def cached(q, k, v):
        k_cache, v_cache = k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1)
        out = flash_attn.flash_attn_with_kvcache(
            q, k_cache, v_cache, k, v, cache_seqlens=3, sigmoid_bias=-2.0
        )
        return out + k_cache[:, 3:8]

    def padded(q, k, v):
        lengths = torch.tensor([4, 5])
        return triton_sigmoid.sigmoid_attention_padded(q, k, v, lengths, sigmoid_bias=-2.0)

    yield "varlen", sequences
    yield "varlen-qkvpacked", sequences_of_packed
    yield "varlen-kvpacked", sequences_of_key_value_packed
    yield "kvcache", cached
    yield "padded", padded
    for module in (flash_attn, flash_sigmoid):
        name = module.__name__.rpartition(".")[2]
        dense = partial(module.flash_attn_func, sigmoid_bias=-2.0)
        yield name, lambda q, k, v, dense=dense: dense(q, k, v)
        yield f"{name}-qkvpacked", packed(module.flash_attn_qkvpacked_func)
        yield f"{name}-kvpacked", key_value_packed(module.flash_attn_kvpacked_func)
    yield "triton", lambda q, k, v: triton_sigmoid.sigmoid_attention(q, k, v, sigmoid_bias=-2.0)


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in names_of_others()])
def test_a_call_by_the_name_of_another_library_is_traced(call):
    class Called(nn.Module):
        def forward(self, q, k, v):
            return call(q, k, v)

    tensors = [normal(2, 5, 2, 8, seed=seed) for seed in range(3)]
    traced = torch.fx.symbolic_trace(Called())
    for each in (traced, pickle.loads(pickle.dumps(traced))):
        torch.testing.assert_close(each(*tensors), call(*tensors), rtol=0, atol=0)


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
