"""Meta and fake tensors, which have no values, give shapes and dtypes in every implementation.

Each call is made three times: on the CPU, on the meta device, and in a fake tensor mode.
"""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, vmap

from sigmoid_attention.attention import (
    CentredKeys,
    Learned,
    NegLogEffectiveLength,
    NegLogLength,
    NegLogVisible,
    RowLSE,
    attention_statistics,
    sigmoid_attention,
    sigmoid_decode,
    sigmoid_varlen_attention,
)
from sigmoid_attention.attention.impl.cpu import ops as cpu_operator

MODES = {"meta": lambda: torch.device("meta"), "fake": FakeTensorMode}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
IMPLEMENTATIONS = ("auto", "reference", "tiled", "cpu")


def assert_same_shapes(mode: Callable, function: Callable[[], Sequence[Tensor]]) -> None:
    with mode():
        actual = function()
    for fake, real in zip(actual, function(), strict=True):
        assert fake.is_meta or type(fake) is not Tensor
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


def qkv(dtype: torch.dtype = torch.float32, learns: bool = False) -> list[Tensor]:
    shapes = ((2, 4, 7, 8), (2, 2, 9, 8), (2, 2, 9, 5))
    return [torch.randn(shape, dtype=dtype, requires_grad=learns) for shape in shapes]


SETTINGS: dict[str, Callable[[], dict]] = {
    "plain": lambda: {},
    "settings": lambda: {
        "is_causal": True,
        "window_size": (3, -1),
        "softcap": 2.0,
        "alibi_slopes": torch.ones(4),
        "attn_mask": torch.zeros(2, 1, 7, 9),
    },
    "boolean-mask": lambda: {"attn_mask": torch.ones(7, 9, dtype=torch.bool)},
    "length": lambda: {"bias": NegLogLength(64)},
    "visible": lambda: {"bias": NegLogVisible(), "is_causal": True},
    "visible-mask": lambda: {"bias": NegLogVisible(), "attn_mask": torch.zeros(7, 9)},
    "effective": lambda: {"bias": NegLogEffectiveLength((0.5, 0.25, 0.0, 0.0), n=64)},
    "learned": lambda: {"bias": Learned(-2.0, num_heads=4)},
    "row-lse": lambda: {"bias": RowLSE()},
    "centred": lambda: {"bias": CentredKeys(-2.0, torch.ones(4)), "is_causal": True},
    "centred-window": lambda: {"bias": CentredKeys(-2.0), "window_size": (3, 1)},
    "centred-mask": lambda: {"bias": CentredKeys(-2.0), "attn_mask": torch.zeros(7, 9)},
}


def here(impl: str) -> None:
    if impl == "cpu" and not cpu_operator.available():
        pytest.skip("no CPU kernel here")


@modes
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_operator(impl, settings, mode):
    here(impl)
    arguments = {"bias": -2.0, "enable_gqa": True, "impl": impl}
    for dtype in (torch.float32, torch.bfloat16):
        assert_same_shapes(
            mode, lambda d=dtype: [sigmoid_attention(*qkv(d), **arguments | settings())]
        )


@modes
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_derivatives(impl, mode):
    here(impl)

    def both() -> list[Tensor]:
        leaves = qkv(learns=True)
        out = sigmoid_attention(*leaves, bias=-2.0, enable_gqa=True, impl=impl)
        first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        total = torch.stack([each.square().sum() for each in first]).sum()
        return [*first, *torch.autograd.grad(total, leaves)]

    assert_same_shapes(mode, both)


@modes
def test_statistics_dropout_and_transforms(mode):
    def several() -> list[Tensor]:
        query, key, value = qkv()
        others = {"bias": -2.0, "enable_gqa": True}
        out = sigmoid_attention(query, key, value, dropout_p=0.5, **others)
        aux = attention_statistics(query, key, value, **others)

        def row(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            parts = (query[None], key[None], value[None])
            return sigmoid_attention(*parts, **others).sum()

        return [out, *aux, vmap(grad(row))(query, key, value)]

    assert_same_shapes(mode, several)


@modes
@pytest.mark.parametrize("paged", [False, True], ids=["contiguous", "paged"])
@pytest.mark.parametrize("impl", ["auto", "reference", "cpu"])
def test_decoding(impl, paged, mode):
    here(impl)

    def several() -> list[Tensor]:
        query, used = torch.randn(2, 4, 1, 8), torch.tensor([9, 4])
        keys = torch.randn(6, 4, 2, 8) if paged else torch.randn(2, 2, 12, 8)
        table = torch.zeros(2, 3, dtype=torch.int64) if paged else None
        answers = [
            sigmoid_decode(
                query, keys, keys, seqused_k=used, block_table=table, bias=bias, enable_gqa=True,
                impl=impl, is_causal=True)
            for bias in (-2.0, NegLogVisible(), RowLSE(), CentredKeys(-2.0))
        ]  # fmt: skip
        return [answer for answer in answers if isinstance(answer, Tensor)]

    assert_same_shapes(mode, several)


@modes
@pytest.mark.parametrize("impl", ["auto", "reference", "cpu"])
def test_packed_sequences(impl, mode):
    here(impl)

    def several() -> list[Tensor]:
        query, key, value = (torch.randn(12, heads, 8, requires_grad=True) for heads in (4, 2, 2))
        ends = torch.tensor([0, 5, 12])
        out = [
            sigmoid_varlen_attention(
                query, key, value, ends, ends, 7, 7, bias=bias, enable_gqa=True, impl=impl
            )
            for bias in (-2.0, NegLogVisible(), RowLSE(), CentredKeys(-2.0))
        ]
        total = torch.stack([answer.sum() for answer in out if isinstance(answer, Tensor)]).sum()
        return [*torch.autograd.grad(total, (query, key, value)), total]

    assert_same_shapes(mode, several)


def test_flex():
    """In a fake mode, of which nothing is kept; FlexAttention itself refuses meta tensors."""
    arguments = {"bias": -2.0, "enable_gqa": True, "window_size": (3, 2), "impl": "flex"}
    before = sigmoid_attention(*(tensors := qkv()), **arguments)
    assert_same_shapes(FakeTensorMode, lambda: [sigmoid_attention(*qkv(), **arguments)])
    torch.testing.assert_close(sigmoid_attention(*tensors, **arguments), before)
    with torch.device("meta"), pytest.raises(NotImplementedError, match="meta"):
        sigmoid_attention(*qkv(), **arguments)


def test_two_modes_do_not_meet():
    """What is kept from one call to the next is real."""
    bias = NegLogEffectiveLength((0.125, 0.25, 0.5, 1.0), n=32)
    for _, mode in itertools.product(range(2), MODES.values()):
        with mode():
            sigmoid_attention(*qkv(), bias=bias, enable_gqa=True)
        assert type(sigmoid_attention(*qkv(), bias=bias, enable_gqa=True)) is Tensor
