"""The operator under autocast gives the same result as without it, in the dtype of its inputs.

Each call is made with and without autocast and must give the same bits. Autocast may be on during
the forward pass, the backward pass, the double backward pass, or any of them.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap

from sigmoid_attention.attention import (
    CentredKeys,
    Constant,
    HeadValues,
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
from sigmoid_attention.attention.autocast import compiled_product
from tests.support.attention.autocast import (
    FLOATS,
    assert_same_bits,
    autocast,
    both_halves,
    implementations,
    normal,
    qkv,
)

SLOPES = torch.tensor([0.25, 0.0, 0.03125, 0.5])


def settings(**others) -> dict:
    mask = normal(2, 1, 19, 23, seed=7).masked_fill(normal(2, 1, 19, 23, seed=8) > 1, -math.inf)
    return {
        "attn_mask": mask,
        "bias": normal(4, 1, 1, seed=9) - 3,
        "is_causal": True,
        "window_size": (9, -1),
        "alibi_slopes": SLOPES,
        "softcap": 3.0,
        "enable_gqa": True,
    } | others


def assert_same_under(half: torch.dtype, function: Callable[[], Sequence[Tensor]]) -> None:
    expected = function()
    with autocast(half):
        actual = function()
    assert_same_bits(actual, expected)


@both_halves
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@implementations("reference", "tiled", "cpu", "auto")
def test_outputs(impl, dtype, half):
    tensors = qkv(dtype)
    for others in ({}, {"bias": -2.0, "attn_mask": None}, {"bias": RowLSE(), "softcap": None}):
        assert_same_under(
            half, lambda more=others: [sigmoid_attention(*tensors, **settings(**more), impl=impl)]
        )


@both_halves
def test_flex(half):
    torch._dynamo.reset()  # It compiles at most eight kinds of calls.
    assert_same_under(half, lambda: [sigmoid_attention(*qkv(), **settings(), impl="flex")])


PASSES = list(itertools.product((True, False), repeat=3))[:-1]


@both_halves
@pytest.mark.parametrize("passes", PASSES, ids=lambda on: "".join("-+"[each] for each in on))
@implementations("reference", "tiled", "cpu", "auto")
def test_derivatives(impl, passes, half):
    """Of first and second order, for all inputs, with autocast on in each of the passes or not."""
    added = settings()
    names = ("attn_mask", "bias", "alibi_slopes")

    def derivatives(forward: bool, backward: bool, second: bool) -> list[Tensor]:
        leaves = [*qkv(), *(added[name].clone() for name in names)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        learned = added | dict(zip(names, leaves[3:], strict=True))
        with autocast(half, forward):
            out = sigmoid_attention(*leaves[:3], **learned, impl=impl)
        with autocast(half, backward):
            actual = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        total = torch.stack([each[each.isfinite()].square().sum() for each in actual]).sum()
        with autocast(half, second):
            return [out, *actual, *torch.autograd.grad(total, leaves)]

    assert_same_bits(derivatives(*passes), derivatives(False, False, False))


@both_halves
@implementations("reference", "auto")
def test_statistics_and_dropout(impl, half):
    tensors = [tensor.requires_grad_() for tensor in qkv()]

    def both() -> list[Tensor]:
        torch.manual_seed(1)
        out = sigmoid_attention(*tensors, **settings(bias=-2.0), dropout_p=0.3, impl=impl)
        aux = attention_statistics(*tensors, **settings(bias=-2.0))
        assert aux.mass.dtype == aux.largest.dtype == torch.float32
        loss = out.sum() + aux.mass.square().sum()
        return [out, *aux, *torch.autograd.grad(loss, tensors)]

    assert_same_under(half, both)


POLICIES = {
    "constant": Constant(-2.0),
    "length": NegLogLength(64),
    "visible": NegLogVisible(),
    "effective": NegLogEffectiveLength(SLOPES, n=64),
    "head-values": HeadValues(torch.linspace(-3, -2, 4)),
    "learned": Learned(-2.5, num_heads=4),
    "row-lse": RowLSE(),
    "centred": CentredKeys(Learned(-2.5, num_heads=4), torch.linspace(0.5, 1.25, 4)),
}


@pytest.mark.parametrize("bias", POLICIES.values(), ids=POLICIES.keys())
def test_policies(bias):
    tensors = [tensor.requires_grad_() for tensor in qkv()]

    def both() -> list[Tensor]:
        out = sigmoid_attention(*tensors, bias=bias, is_causal=True, enable_gqa=True)
        return [out, *torch.autograd.grad(out.square().sum(), tensors)]

    assert_same_under(torch.bfloat16, both)


@both_halves
@pytest.mark.parametrize("paged", [False, True], ids=["contiguous", "paged"])
@implementations("reference", "cpu", "auto")
def test_decoding(impl, paged, half):
    query, used = 2 * normal(2, 4, 3, 8), torch.tensor([23, 9])
    if paged:
        caches = [2 * normal(6, 8, 2, 8, seed=seed) for seed in (1, 2)]
        table = torch.tensor([[5, 0, 2], [1, 3, 3]])
    else:
        caches, table = qkv()[1:], None

    def answers() -> list[Tensor]:
        actual = [
            sigmoid_decode(
                query, *caches, seqused_k=used, block_table=table, bias=bias, enable_gqa=True,
                alibi_slopes=SLOPES, impl=impl, is_causal=True)
            for bias in (-2.0, RowLSE(), CentredKeys(-2.0))
        ]  # fmt: skip
        assert all(isinstance(each, Tensor) for each in actual)
        return actual  # pyright: ignore[reportReturnType]

    assert_same_under(half, answers)


@both_halves
@pytest.mark.parametrize("bias", [RowLSE(), CentredKeys(-2.0)], ids=["row-lse", "centred"])
@implementations("reference", "cpu", "auto")
def test_packed_sequences(impl, bias, half):
    query, key, value = (
        (2 * normal(30, heads, 8, seed=seed)).requires_grad_()
        for seed, heads in enumerate((4, 2, 2))
    )
    ends = torch.tensor([0, 11, 11, 30])

    def both() -> list[Tensor]:
        out = sigmoid_varlen_attention(
            query, key, value, ends, ends, 19, 19, bias=bias, enable_gqa=True, impl=impl
        )
        assert isinstance(out, Tensor)
        return [out, *torch.autograd.grad(out.square().sum(), (query, key, value))]

    assert_same_under(half, both)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
@implementations("reference", "tiled", "auto")
def test_terms_may_have_any_dtype(impl, dtype):
    """Bias, slopes and mask are added in fp32, for every precision of theirs."""
    added = settings()
    added |= {name: added[name].to(dtype) for name in ("attn_mask", "bias", "alibi_slopes")}
    assert_same_under(torch.bfloat16, lambda: [sigmoid_attention(*qkv(), **added, impl=impl)])


# Graphs and transforms ------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("backward", [False, True], ids=["backward-outside", "backward-inside"])
def test_compiled(backend, backward):
    """Without graph breaks; torch traces the backward pass where the forward pass is called."""
    torch._dynamo.reset()

    def function(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        tensors = query, key, value.to(query.dtype)
        options = {"bias": RowLSE(), "is_causal": True, "enable_gqa": True}
        out = sigmoid_attention(*tensors, **options)
        aux = attention_statistics(*tensors, **options)
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        fused = sigmoid_attention(*tensors, mask, bias=CentredKeys(-2.0), enable_gqa=True)
        return out, aux.mass.square() + fused.square().sum(-1)

    leaves = [tensor.requires_grad_() for tensor in qkv()]

    def both(function: Callable, forward: bool, backward: bool) -> list[Tensor]:
        with autocast(torch.bfloat16, forward):
            parts = function(*leaves)
        loss = parts[0].square().sum() + parts[1].sum()
        with autocast(torch.bfloat16, backward):
            return [*parts, *torch.autograd.grad(loss, leaves)]

    graph = torch.compile(function, fullgraph=True, backend=backend)
    expected = both(function, False, False)
    for left, right in zip(both(graph, True, backward), expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def _loss(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return sigmoid_attention(query, key, value, bias=RowLSE(), enable_gqa=True).square().sum()


def _each_row(*tensors: Tensor) -> Tensor:
    return _loss(*(tensor[None] for tensor in tensors))


TRANSFORMS = {
    "hessian": lambda *qkv: [hessian(_loss)(*qkv)],
    "jvp": lambda *qkv: jvp(_loss, qkv, qkv),
    "vmap-grad": lambda *qkv: [vmap(grad(_each_row))(*qkv)],
    "batched-gradients": lambda *qkv: [
        torch.autograd.functional.hessian(lambda q: _loss(q, *qkv[1:]), qkv[0], vectorize=True)
    ],
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_transforms(transform):
    tensors = qkv(queries=3, keys=4)
    assert_same_under(torch.bfloat16, lambda: transform(*tensors))


def test_opcheck_of_the_product():
    left, right = normal(2, 3, 5, 4), normal(2, 3, 4, 7)
    torch.library.opcheck(compiled_product, (left.requires_grad_(), right.requires_grad_()))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace`:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_and_exported():
    tensors = tuple(qkv())
    with autocast(torch.bfloat16):
        traced = torch.jit.trace(_loss, tensors)
        exported = torch.export.export(_Module(), tensors)
    expected = _loss(*tensors)
    torch.testing.assert_close(traced(*tensors), expected)
    torch.testing.assert_close(exported.module()(*tensors), expected)


class _Module(torch.nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _loss(query, key, value)
