"""Errors of the Triton kernels name the unsupported argument; ``auto`` still computes the call."""

import pytest
import torch

from sigmoid_attention.attention import dispatch, sigmoid_attention
from sigmoid_attention.attention.impl.triton import activation, configs, ops


def qkv(dtype=torch.float32, dim=8, value_dim=8):
    query, value = torch.ones(1, 2, 3, dim, dtype=dtype), torch.ones(1, 2, 3, value_dim)
    return query, query, value.to(dtype)


def test_a_device_without_the_kernels_is_named():
    with pytest.raises(NotImplementedError, match="query: is on cpu, the Triton kernels need"):
        sigmoid_attention(*qkv(), impl="triton")


@pytest.fixture
def fit(monkeypatch):
    """As if every device could run the kernels."""
    monkeypatch.setattr(ops, "_unfit", lambda device: None)


@pytest.mark.parametrize(
    "tensors, arguments, named",
    [
        (qkv(torch.float64), {}, "query:? .* no torch.float64"),
        (qkv(torch.float16, dim=264), {}, "query:? .* head dims up to 256 .* got 264"),
        (qkv(torch.bfloat16, value_dim=257), {}, "value:? .* head dims up to 256 .* got 257"),
        (qkv(torch.float32, dim=136), {}, "query:? .* head dims up to 128 .* got 136"),
        (qkv(), {"dropout_p": 0.5}, "dropout_p"),
    ],
    ids=["fp64", "head-dim", "value-dim", "head-dim-in-fp32", "dropout"],
)
def test_what_is_not_offered_is_named(fit, tensors, arguments, named):
    with pytest.raises(NotImplementedError, match=named):
        sigmoid_attention(*tensors, impl="triton", **arguments)


def test_forward_mode_is_named(fit):
    with torch.autograd.forward_ad.dual_level():
        query, key, value = qkv()
        query = torch.autograd.forward_ad.make_dual(query, torch.ones_like(query))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            sigmoid_attention(query, key, value, impl="triton")


def test_auto_falls_back(monkeypatch):
    """On a GPU whose kernels refuse, the definition answers."""
    tried = []

    def refuse(problem):
        tried.append(problem)
        raise NotImplementedError("query: a reason")

    for name in ("cpu", "triton"):
        monkeypatch.setitem(dispatch.BACKENDS, name, dispatch.Backend(refuse, refuse))
    tensors = [x.requires_grad_() for x in qkv()]  # which no prepared call takes
    out = sigmoid_attention(*tensors)
    assert tried and torch.equal(out, sigmoid_attention(*tensors, impl="reference"))


def test_an_unknown_activation_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"activation:? .* got 'relu'"):
        activation.use("relu")  # pyright: ignore[reportArgumentType]
    monkeypatch.setenv("SIGMOID_ATTENTION_ACTIVATION", "relu")
    with pytest.raises(ValueError, match=r"SIGMOID_ATTENTION_ACTIVATION must be .* got 'relu'"):
        activation.tanh_is_used()


DEVICES = {
    "H200": configs.Device("NVIDIA H200", (9, 0), 227 * 1024),
    "B200": configs.Device("NVIDIA B200", (10, 0), 227 * 1024),
    "A100": configs.Device("NVIDIA A100", (8, 0), 163 * 1024),
    "L40S": configs.Device("NVIDIA L40S", (8, 9), 99 * 1024),
    "unknown": configs.Device("something newer", (12, 3), 99 * 1024),
}


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES.keys())
@pytest.mark.parametrize("dtype", ops.DTYPES, ids=str)
@pytest.mark.parametrize("dim", [16, 64, 128, 256])
def test_every_device_has_a_configuration_whose_blocks_divide_a_unit(device, dtype, dim):
    chosen = configs.choose(device, dtype, min(dim, configs.widest(device, dtype)), 16)
    assert chosen.backward.block_k == chosen.backward_with_sums.block_k
    for config in (
        chosen.forward,
        chosen.backward,
        chosen.backward_with_sums,
        chosen.backward_queries,
    ):
        assert chosen.span % config.block_q == chosen.span % config.block_k == 0
        assert min(config.block_q, config.block_k) >= 16
