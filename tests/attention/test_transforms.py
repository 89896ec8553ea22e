"""torch.func transforms of the operator: jvp, vmap, and nested transforms."""

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from sigmoid_attention.attention import (
    CentredKeys,
    NegLogVisible,
    RowLSE,
    attention_statistics,
    sigmoid_attention,
)
from tests.support.attention.calls import Call
from tests.support.attention.differentiable import CASES, differentiable, trained

SQUARE = CASES["plain-Q3-K3"].but(bias="-2.5")


@pytest.mark.parametrize(
    "name", ["causal-Q3-K3", "row-lse-policy-Q4-K2", "centred-causal-Q4-K2", "everything"]
)
def test_jvp_and_vjp_are_transposes(name):
    function, inputs = differentiable(CASES[name])
    chance = torch.Generator().manual_seed(1)
    along = tuple(torch.randn(t.shape, generator=chance, dtype=t.dtype) for t in inputs)
    out, pushed = jvp(function, inputs, along)
    _, pull = vjp(function, *inputs)
    against = torch.randn(out.shape, generator=chance, dtype=out.dtype)
    pulled = pull(against)
    across = sum((left * right).sum() for left, right in zip(pulled, along, strict=True))
    torch.testing.assert_close((pushed * against).sum(), across)


@pytest.mark.parametrize(
    "name", ["window-and-softcap-Q2-K3", "learned-policy-H4-G2", "centred-window-H4-G2-Q2-K3"]
)
def test_jacobians_of_both_modes_agree(name):
    function, inputs = differentiable(CASES[name])
    every = tuple(range(len(inputs)))
    forward, reverse = jacfwd(function, every)(*inputs), jacrev(function, every)(*inputs)
    for left, right in zip(forward, reverse, strict=True):
        torch.testing.assert_close(left, right)


def test_hessian_is_symmetric_and_not_zero():
    function, (query, key, value) = differentiable(SQUARE)
    second = hessian(lambda q: function(q, key, value).square().sum())(query)
    second = second.reshape(query.numel(), query.numel())
    torch.testing.assert_close(second, second.mT)
    assert second.abs().max() > 1e-3


BATCHED: dict[str, tuple[Call, tuple[str, ...]]] = {
    # what beside query, key and value has a row for each element of the mapped dimension
    "plain": (SQUARE.but(bias="none", is_causal=True), ()),
    "shared-settings": (SQUARE.but(bias="tensor H11", slopes="H", mask="bool QK"), ()),
    "own-bias": (SQUARE.but(bias="tensor BHQK", batch=2, keys=4), ("bias",)),
    "own-slopes": (SQUARE.but(slopes="BH", batch=2, group=3), ("alibi_slopes",)),
    "own-float-mask": (SQUARE.but(mask="hiding BHQK", keys=5), ("attn_mask",)),
    "own-mask-and-centred-policy": (
        SQUARE.but(mask="bool BHQK", bias="centred"),
        ("attn_mask",),
    ),
    "own-bool-mask": (SQUARE.but(mask="bool BHQK", keys=5), ("attn_mask",)),
    "own-mask-and-visible-policy": (SQUARE.but(mask="bool BHQK", bias="visible"), ("attn_mask",)),
    "own-mask-and-row-lse-policy": (SQUARE.but(mask="bool BHQK", bias="lse"), ("attn_mask",)),
}


@pytest.mark.parametrize("call, own", BATCHED.values(), ids=BATCHED.keys())
def test_vmap_equals_a_loop(call, own):
    batches = [call.but(seed=seed).build() for seed in range(3)]
    arguments = batches[0][1]
    tensors = [torch.stack(parts) for parts in zip(*(batch[0] for batch in batches), strict=True)]
    mapped = {name: torch.stack([batch[1][name] for batch in batches]) for name in own}

    def function(query: Tensor, key: Tensor, value: Tensor, others: dict[str, Tensor]):
        options = arguments | others
        out = sigmoid_attention(query, key, value, **options)
        return out, attention_statistics(query, key, value, **options)

    out, aux = vmap(function)(*tensors, mapped)
    for index in range(3):
        others = {name: stacked[index] for name, stacked in mapped.items()}
        expected, rows = function(*(tensor[index] for tensor in tensors), others)
        torch.testing.assert_close(out[index], expected)
        for actual, row in zip(aux, rows, strict=True):
            torch.testing.assert_close(actual[index], row)


def test_vmap_over_queries_alone_shares_the_keys():
    (query, key, value), arguments = SQUARE.build()
    queries = torch.stack([query, -query, 2 * query])
    out = vmap(lambda q: sigmoid_attention(q, key, value, **arguments))(queries)
    for index in range(3):
        torch.testing.assert_close(
            out[index], sigmoid_attention(queries[index], key, value, **arguments)
        )


def test_vmap_over_the_strengths_of_centring():
    (query, key, value), _ = SQUARE.build()
    strengths = torch.tensor([[1.0, 0.5], [0.0, -3.0]], dtype=torch.float64)

    def centred(strength: Tensor) -> Tensor:
        bias = CentredKeys(-1.0, strength)
        return sigmoid_attention(query, key, value, bias=bias, window_size=(1, 0))

    torch.testing.assert_close(vmap(centred)(strengths), torch.stack([*map(centred, strengths)]))


def test_vmap_over_a_trained_bias():
    (query, key, value), _ = SQUARE.build()
    values = torch.tensor([[-1.0, 2.0], [0.0, -3.0]], dtype=torch.float64)
    out = vmap(lambda b: sigmoid_attention(query, key, value, bias=trained(b)))(values)
    for index in range(2):
        expected = sigmoid_attention(query, key, value, bias=values[index, :, None, None])
        torch.testing.assert_close(out[index], expected)


@pytest.mark.parametrize("bias", [-1.0, NegLogVisible(), RowLSE(), CentredKeys(-1.0)], ids=repr)
def test_gradients_per_sample_equal_a_loop(bias):
    (query, key, value), _ = SQUARE.but(batch=4).build()

    def loss(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch = [tensor[None] for tensor in (query, key, value)]
        return sigmoid_attention(*batch, bias=bias, is_causal=True).square().sum()

    per_sample = vmap(grad(loss, argnums=(0, 1, 2)))(query, key, value)
    for sample in range(4):
        alone = grad(loss, argnums=(0, 1, 2))(query[sample], key[sample], value[sample])
        for left, right in zip(per_sample, alone, strict=True):
            torch.testing.assert_close(left[sample], right)
