"""Softmax calls are detected wherever they are computed, and attributed to the running module."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigmoid_attention.integrations.softmax_detection import trace_softmax
from sigmoid_attention.nn import replace_multihead_attention


class Inner(nn.Module):
    def __init__(self, compute):
        super().__init__()
        self.compute = compute

    def forward(self, x):
        return self.compute(x)


class Outer(nn.Module):
    def __init__(self, compute):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Sequential(nn.Identity(), Inner(compute))
        self.never = nn.Linear(8, 8)

    def forward(self, x):
        return self.second(self.first(x))


WAYS = {
    "function": lambda x: F.softmax(x, -1),
    "method": lambda x: x.softmax(-1),
    "fused": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]),
    "fused-masked": lambda x: F.scaled_dot_product_attention(
        x, x, x, attn_mask=torch.ones(3, 3, dtype=torch.bool)
    ),
}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_softmax_is_put_down_to_the_innermost_module(way, mode):
    model = Outer(way)
    with mode():
        trace = trace_softmax(model, lambda: model(torch.ones(2, 3, 8)))
    assert list(trace.softmaxes) == ["second.1"]
    assert {"first", "second", "second.0", "second.1"} <= trace.ran
    assert "never" not in trace.ran


def test_a_softmax_after_a_submodule_belongs_to_the_parent_module():
    class Owner(Outer):
        def forward(self, x):
            return super().forward(x).softmax(-1)

    model = nn.Sequential(Owner(torch.sigmoid))
    assert list(trace_softmax(model, lambda: model(torch.ones(2, 3, 8))).softmaxes) == ["0"]


def test_a_sigmoid_is_none():
    model = Outer(torch.sigmoid)
    assert trace_softmax(model, lambda: model(torch.ones(2, 3, 8))).softmaxes == {}


def test_torchs_own_layers():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    run = lambda: model(torch.ones(2, 3, 8))  # noqa: E731
    assert set(trace_softmax(model, run).softmaxes) == {"layers.0.self_attn", "layers.1.self_attn"}
    replace_multihead_attention(model, -1.0)
    assert trace_softmax(model, run).softmaxes == {}


def test_modes_and_hooks_are_afterwards_what_they_were():
    model = Outer(torch.sigmoid)
    model.second.eval()
    with pytest.raises(RuntimeError):
        trace_softmax(model, lambda: model(torch.ones(2, 3, 9)))
    assert model.training and model.first.training and not model.second[1].training
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
