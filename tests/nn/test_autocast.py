"""Layers under autocast: linear parts in its dtype, the operator in the dtype of its inputs.

A layer under autocast gives the same bits as the same layer in that dtype without autocast.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sigmoid_attention.nn import (
    PRESETS,
    ALiBi,
    Attention,
    DecoderLM,
    Experts,
    MoE,
    RoPE,
    Router,
    SigmoidMultiheadAttention,
    generate,
    softmax_attention,
)

HALVES = (torch.bfloat16, torch.float16)
both_halves = pytest.mark.parametrize("half", HALVES, ids=["bf16", "fp16"])
activations = pytest.mark.parametrize("activation", ["sigmoid", "softmax"])


def autocast(half: torch.dtype, on: bool = True) -> torch.autocast:
    return torch.autocast("cpu", half, enabled=on)


def assert_same_bits(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for left, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


SETTINGS = {
    "plain": {},
    "causal": {"is_causal": True},
    "window-and-slopes": {
        "window_size": (4, 1),
        "alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0]),
    },
    "float-mask": {"attn_mask": torch.linspace(-3, 0, 49).view(7, 7)},
    "mask-of-keys": {"attn_mask": torch.linspace(-3, 0, 7)},
    "boolean-mask": {"attn_mask": torch.ones(7, 7).tril(2) > 0},
    "learned-mask": {"attn_mask": torch.linspace(-3, 0, 49).view(7, 7).requires_grad_()},
    "softcap": {"softcap": 2.0},
    "dropout": {"dropout_p": 0.4},
    "other-value-dim": {"value_dim": 5},
}
PASSES = ((True, False), (True, True), (False, True))


@both_halves
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_softmax_attention(settings, half):
    """The same bits as without autocast, in the precision of its inputs, forward and backward."""
    settings = dict(settings)
    value_dim = settings.pop("value_dim", 8)
    leaves = [3 * torch.randn(2, 4, 7, dim) for dim in (8, 8, value_dim)]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def both(forward: bool, backward: bool) -> list[Tensor]:
        torch.manual_seed(3)
        with autocast(half, forward):
            out = softmax_attention(*leaves, **settings)
        assert isinstance(out, Tensor)
        with autocast(half, backward):
            return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    expected = both(False, False)
    for forward, backward in PASSES:
        assert_same_bits(both(forward, backward), expected)


def test_softmax_attention_casts_mixed_inputs():
    query, key, value = torch.randn(3, 2, 4, 7, 8).unbind(0)
    with autocast(torch.bfloat16):
        actual = softmax_attention(query, key.half(), value.bfloat16(), softcap=9.0)
    cast = [x.bfloat16() for x in (query, key.half(), value)]
    assert_same_bits([actual], [softmax_attention(*cast, softcap=9.0)])


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid-rope-norm": lambda: Attention(
        16, 4, max_seq_len=8, num_kv_heads=2, position=RoPE(), qk_norm="rms"
    ),
    "sigmoid-alibi-window": lambda: Attention(
        16, 4, max_seq_len=8, position=ALiBi(), window_size=(3, 0), linear_bias=True
    ),
    "sigmoid-tiled": lambda: Attention(16, 4, max_seq_len=8, impl="tiled"),
    "sigmoid-definition": lambda: Attention(16, 4, max_seq_len=8, impl="reference"),
    "softmax-softcap": lambda: Attention(
        16, 4, max_seq_len=8, activation="softmax", softcap=3.0, position=RoPE()
    ),
}


@both_halves
@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS.keys())
def test_attention_to_second_order(build, half):
    layer, x = build(), 2 * torch.randn(2, 7, 16)

    def orders(layer: nn.Module, x: Tensor) -> list[Tensor]:
        x = x.requires_grad_()
        out = layer(x)
        (first,) = torch.autograd.grad(out.float().square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.float().square().sum(), x)
        return [out, first.to(half), second.to(half)]

    expected = orders(copy.deepcopy(layer).to(half), x.to(half))
    with autocast(half):
        assert_same_bits(orders(layer, x), expected)


@both_halves
def test_multihead_attention(half):
    layer = SigmoidMultiheadAttention(16, 4, batch_first=True, sigmoid_bias=-2.0)
    x, padding = torch.randn(2, 7, 16), torch.zeros(2, 7)
    padding[1, 5:] = -1.5
    low = copy.deepcopy(layer).to(half)
    expected = low(*(x.to(half),) * 3, key_padding_mask=padding)
    with autocast(half):
        assert_same_bits(layer(x, x, x, key_padding_mask=padding), expected)


@activations
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16], ids=str)
def test_caches_change_nothing(activation, dtype):
    """A cache holds what autocast makes, or holds it as well in a wider dtype."""
    layer, x = Attention(16, 4, max_seq_len=8, activation=activation), torch.randn(2, 7, 16)
    with autocast(torch.bfloat16):
        cache = layer.new_cache(2, 9, dtype=dtype)
        parts = [layer(x[:, :4], cache=cache), layer(x[:, 4:5], cache=cache)]
        parts.append(layer(x[:, 5:], cache=cache))
        assert_same_bits([torch.cat(parts, 1)], [layer(x)])
    assert cache.keys.dtype == (torch.bfloat16 if dtype is None else dtype)
    later = layer.new_cache(2, 9)
    layer(x, cache=later)
    assert later.keys.dtype == torch.float32


@activations
@pytest.mark.parametrize("position", ["rope", "alibi", "cape"])
def test_generation(activation, position):
    config = replace(PRESETS["tiny"], activation=activation, position=position)
    model, text = DecoderLM(config).eval(), torch.randint(257, (2, 7))
    with autocast(torch.bfloat16), torch.no_grad():
        actual = generate(model, text, max_new_tokens=5)
        for _ in range(5):
            text = torch.cat([text, model(text)[:, -1:].argmax(-1)], 1)
    assert torch.equal(actual, text)


@pytest.mark.parametrize("top_k", [2, None], ids=["two", "all"])
def test_mixtures_of_experts_choose_in_fp32(top_k):
    layer, x = MoE(Router(16, experts=4, top_k=top_k), Experts(4, 16, 24)), torch.randn(3, 5, 16)
    expected = layer.router(x)
    with autocast(torch.bfloat16):
        assert_same_bits(layer.router(x), expected)
        actual = layer(x)
    each_ETC = layer.experts.bfloat16().each(x.view(15, 16).bfloat16()).float()
    weights = torch.zeros(15, 4).scatter(
        1, expected.experts.view(15, -1), expected.weights.view(15, -1)
    )
    target = (weights.mT[..., None] * each_ETC).sum(0).view(3, 5, 16)
    torch.testing.assert_close(actual, target, rtol=1e-5, atol=1e-6)


def test_double_precision_stays():
    """As autocast leaves it in torch's own layers."""
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    layers = [
        *(MoE(Router(16, experts=4, top_k=k), Experts(4, 16, 24)) for k in (2, None)),
        *(build() for build in LAYERS.values()),
    ]
    for layer in layers:
        expected = layer.double()(x)
        with autocast(torch.bfloat16):
            assert_same_bits([layer(x)], [expected])


def test_the_loss_is_in_fp32():
    model, tokens = DecoderLM(PRESETS["tiny"]), torch.randint(257, (2, 7))
    with autocast(torch.bfloat16):
        assert model(tokens).dtype == torch.bfloat16
        assert model.loss(tokens, tokens).dtype == torch.float32


def test_nested_sequences():
    layer = SigmoidMultiheadAttention(16, 4, batch_first=True, sigmoid_bias=-2.0)
    rows = [torch.randn(length, 16) for length in (3, 6)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged)
    with autocast(torch.bfloat16):
        actual = layer(nested, nested, nested, need_weights=False)[0]
        alone = [layer(*(row[None],) * 3, need_weights=False)[0][0] for row in rows]
    for left, right in itertools.zip_longest(actual.unbind(), alone):
        torch.testing.assert_close(left, right, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("affinity", ["linear", "euclidean", "fully_quadratic"])
def test_a_routers_gradients_keep_their_digits_where_all_passes_run_under_autocast(affinity):
    torch.manual_seed(0)
    router = Router(8, 4, affinity=affinity)
    x = torch.randn(3, 5, 8)

    def gradients(enabled: bool) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = router(x).weights.square().sum()
            return torch.autograd.grad(loss, list(router.parameters()))

    torch.testing.assert_close(gradients(True), gradients(False), rtol=1e-5, atol=1e-6)
