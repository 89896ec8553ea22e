"""Layers give shapes and dtypes without values, on the meta device and in a fake tensor mode."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sigmoid_attention.nn import (
    CAPE,
    PRESETS,
    ALiBi,
    Attention,
    DecoderLM,
    Experts,
    LayerScale,
    LearnedPosition,
    MoE,
    RMSNorm,
    RoPE,
    RoPEWithALiBi,
    Router,
    SigmoidMultiheadAttention,
    SinCos,
)
from sigmoid_attention.nn.norm import QKNorm

MODES = {"meta": lambda: torch.device("meta"), "fake": FakeTensorMode}


def sequence() -> Tensor:
    return torch.randn(2, 5, 16)


def heads() -> Tensor:
    return torch.randn(2, 4, 5, 8)


def attention(**settings) -> Iterable[Tensor]:
    """One pass, under padding, with statistics, in steps, and the gradient."""
    layer, x = Attention(16, 4, max_seq_len=8, **settings), sequence().requires_grad_()
    padding = torch.ones(2, 5, dtype=torch.bool)
    out, aux = layer(x, return_statistics=True)
    yield from (out, *aux, layer(x, attn_mask=padding))
    yield from torch.autograd.grad(layer(x).square().sum(), x)
    cache = layer.new_cache(2, 8)
    yield from (layer(x[:, :3], cache=cache), layer(x[:, 3:], cache=cache), layer.weights(x))


def multihead(**settings) -> Iterable[Tensor]:
    layer, x = SigmoidMultiheadAttention(16, 4, sigmoid_bias=-2.0, **settings), sequence()
    yield from layer(x, x, x, key_padding_mask=torch.zeros(5, 2, dtype=torch.bool))
    yield layer(x, x, x, need_weights=False)[0]


def decoder(**settings) -> Iterable[Tensor]:
    model = DecoderLM(replace(PRESETS["tiny"], **settings))
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    cache = model.new_cache(2, 8)
    yield from (model(tokens), model.loss(tokens, tokens))
    yield from (model(tokens, cache=cache), model(tokens[:, :1], cache=cache))


def experts(**settings) -> Iterable[Tensor]:
    layer = MoE(Router(16, experts=4, **settings), Experts(4, 16, 24))
    x = sequence().requires_grad_()
    yield from (*layer.router(x), layer(x))
    yield from torch.autograd.grad(layer(x).square().sum(), x)


def positions() -> Iterable[Tensor]:
    places = torch.arange(5)[None]
    yield from RoPE().rotate(heads(), heads(), places)
    yield ALiBi().slopes(6, places.device)
    for position in (SinCos(16), CAPE(16).train(), LearnedPosition(16, max_length=9)):
        yield position(sequence(), places)


def norms() -> Iterable[Tensor]:
    yield from QKNorm("rms", 8)(heads(), heads())
    yield from (RMSNorm(16)(sequence()), LayerScale(16)(sequence()))


OPTIONS: dict = dict(centred_keys=True, state_bias=True, gate="element", mass_exponent="learned")
COMPUTED: dict[str, Callable[[], Iterable[Tensor]]] = {
    "positions": positions,
    "norms": norms,
    "sigmoid-rope": partial(attention, position=RoPE(), num_kv_heads=2, qk_norm="rms"),
    "sigmoid-alibi-window": partial(attention, position=ALiBi(), window_size=(2, 0)),
    "sigmoid-softcap-dropout": partial(attention, softcap=3.0, dropout_p=0.1),
    "sigmoid-reference": partial(attention, impl="reference"),
    "sigmoid-options": partial(attention, **OPTIONS, position=RoPEWithALiBi()),
    "sigmoid-options-window": partial(attention, **OPTIONS, window_size=(2, 0), num_kv_heads=2),
    "softmax-rope": partial(attention, activation="softmax", position=RoPE(), num_kv_heads=2),
    "softmax-alibi": partial(attention, activation="softmax", position=ALiBi(), dropout_p=0.1),
    "multihead": multihead,
    "multihead-more-keys": partial(multihead, add_bias_kv=True, add_zero_attn=True),
    "decoder-rope": partial(decoder, position="rope"),
    "decoder-options": partial(decoder, **OPTIONS, value_residual=True, position="rope+alibi"),
    "decoder-cape": partial(decoder, position="cape"),
    "decoder-learned-softmax": partial(decoder, position="learned", activation="softmax"),
    "experts-chosen": partial(experts, top_k=2, normalize=True, balance_rate=1e-3),
    "experts-all": partial(experts, top_k=None),
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED.keys())
def test_shapes_and_dtypes(compute, mode):
    with mode():
        actual = list(compute())
    for one, real in zip(actual, compute(), strict=True):
        assert one.is_meta or type(one) is not Tensor
        assert (one.shape, one.dtype) == (real.shape, real.dtype)
