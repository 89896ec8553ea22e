"""Centred keys: the formula, long inputs, hidden keys, determinism, and refused arguments.

The fuzz of the operator (tests/support/attention) and the tests of compilation, export, transforms,
autocast and memory cover the policy `CentredKeys` too.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from sigmoid_attention.attention import (
    BiasPolicy,
    CentredKeys,
    HeadValues,
    Learned,
    NegLogVisible,
    RowLSE,
    explain,
    key_means,
    sigmoid_attention,
    sigmoid_decode,
    sigmoid_varlen_attention,
)
from tests.support.attention.centred import centred_by_hand, visibility
from tests.support.attention.complaints import assert_sentence, complaint

WINDOWS = {"causal": (-1, 0), "window": (37, 5), "all": (-1, -1)}
each_window = pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS.keys())


def qkv(keys: int, *, queries: int | None = None, heads: int = 2, dtype=torch.float32):
    chance = torch.Generator().manual_seed(keys)
    return [
        torch.randn(2, heads, length, 4, generator=chance, dtype=torch.float64).to(dtype)
        for length in (queries or keys, keys, keys)
    ]


class MeanLogits(BiasPolicy):
    """Keeps the product of each query with the mean of its keys; the bias is a number."""

    def resolve(self, rows):
        self.product = rows.mean_logits()
        return -2.0


@each_window
@pytest.mark.parametrize("impl", ["reference", "tiled", "auto"])
@pytest.mark.parametrize(
    "dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 5e-3)], ids=str
)
def test_the_formula_Q61_K67(dtype, bound, impl, window):
    tensors, strength = qkv(67, queries=61, dtype=dtype), torch.tensor([1.0, 0.75])
    options = {"bias": CentredKeys(-2.0, strength), "window_size": window, "impl": impl}
    expected = centred_by_hand(*tensors, visibility(61, 67, window), bias=-2.0, strength=strength)
    out = sigmoid_attention(*tensors, **options)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=bound, atol=bound)


@each_window
def test_a_constant_added_to_every_key_changes_nothing(window):
    query, key, value = qkv(67)
    options = {"bias": CentredKeys(-2.0), "window_size": window}
    out = sigmoid_attention(query, key, value, **options)
    shifted = sigmoid_attention(query, key + torch.randn(4), value, **options)
    torch.testing.assert_close(shifted, out, atol=1e-5, rtol=1e-4)


@each_window
def test_means_of_100_000_large_keys_have_the_precision_of_their_dtype(window):
    """The keys are 10,000 and noise of one: a difference of sums in fp32 would lose the noise."""
    keys, policy = 100_000, MeanLogits()
    chance = torch.Generator().manual_seed(0)
    key = 1e4 + torch.randn(1, 1, keys, 3, generator=chance)
    query = torch.randn(1, 1, keys, 3, generator=chance)
    explain(query, key, key, bias=policy, window_size=window)
    before = torch.nn.functional.pad(key.double().cumsum(-2), (0, 0, 1, 0))
    left, right = window
    place = torch.arange(keys)
    first = (place - left).clamp(min=0) if left >= 0 else place * 0
    stop = (place + right + 1).clamp(max=keys) if right >= 0 else place * 0 + keys
    mean = (before[:, :, stop] - before[:, :, first]) / (stop - first)[:, None]
    expected = (query.double() * mean).sum(-1, keepdim=True) / math.sqrt(3)
    largest = (query.double().abs() * mean).sum(-1, keepdim=True)
    error = (policy.product.double() - expected).abs() / largest
    assert error.max() < 4 * torch.finfo(torch.float32).eps


def calls(fill: float, bias: BiasPolicy, impl: str):
    """Calls in which key 4, or the keys from the seventh on, are hidden and hold ``fill``."""
    options = {"bias": bias, "impl": impl}
    query, key, value = qkv(9)
    shown = torch.ones(9, 9, dtype=torch.bool).tril()
    shown[:, 4] = False
    fourth, last = key.clone(), key.clone()
    fourth[:, :, 4], last[:, :, 7:] = fill, fill
    ends = torch.tensor([0, 7, 9])

    def packed(query, key, value):
        rows = [x[0].transpose(0, 1) for x in (query, key, value)]
        return sigmoid_varlen_attention(*rows, ends, ends, 7, 7, is_causal=True, **options)[:7]

    def cached(query, key, value):
        used = torch.tensor([7, 5])
        return sigmoid_decode(query, key, value, seqused_k=used, is_causal=True, **options)

    def masked(mask):
        return lambda q, k, v: sigmoid_attention(q, k, v, mask, **options)

    def windowed(query, key, value):
        return sigmoid_attention(query, key, value, window_size=(2, 0), **options)[:, :, :7]

    float_mask = torch.zeros(9, 9).masked_fill(~shown, -math.inf)
    return {
        "mask-of-keys": (masked(shown[-1:]), (query, fourth, value)),
        "mask-of-pairs": (masked(shown), (query, fourth, value)),
        "float-mask": (masked(float_mask), (query, fourth, value)),
        "window": (windowed, (query, last, value)),
        "packed": (packed, (query, last, value)),
        "cache-Q1": (cached, (query[:, :, :1], last, value)),
        "cache-Q7": (cached, (query[:, :, :7], last, value)),
    }


HIDDEN = calls(0.0, CentredKeys(-2.0), "auto").keys()


@pytest.mark.parametrize("fill", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_hidden_keys_that_are_not_finite_reach_no_output(impl, name, fill):
    def run(fill: float) -> Tensor:
        bias = CentredKeys(NegLogVisible(), torch.tensor([1.0, 0.5]))
        function, tensors = calls(fill, bias, impl)[name]
        return function(*tensors)

    out = run(fill)
    assert out.isfinite().all()
    torch.testing.assert_close(out, run(0.0), rtol=0, atol=0)


@pytest.mark.parametrize("fill", [math.nan, math.inf])
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_keys_that_are_not_finite_reach_no_gradient_of_a_mean(name, fill):
    def gradients(fill: float) -> tuple[Tensor, ...]:
        policy = MeanLogits()
        function, tensors = calls(fill, policy, "auto")[name]
        leaves = [tensor.requires_grad_() for tensor in tensors[:2]]
        function(*leaves, tensors[2])
        # The window hides the last keys from the first queries, the packing from the first row.
        rows = policy.product[:1] if name == "packed" else policy.product[:, :, :7]
        by_query, by_key = torch.autograd.grad(rows.square().sum(), leaves)
        return by_query[:, :, :7], by_key

    torch.testing.assert_close(gradients(fill), gradients(0.0))


def trained(function, tensors) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    out.square().sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


class NoFloatCumsum(TorchDispatchMode):
    """Refuses torch.cumsum of floats, as a GPU does under deterministic algorithms."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket is not torch.ops.aten.cumsum or args[0].dtype == torch.int64
        return func(*args, **(kwargs or {}))


@each_window
@pytest.mark.parametrize("keys", [9, 700], ids="K{}".format)
def test_deterministic_algorithms_give_the_same_without_a_cumsum_of_floats(keys, window):
    def function(query, key, value, strength):
        bias = CentredKeys(-2.0, strength)
        return sigmoid_attention(query, key, value, bias=bias, window_size=window)

    tensors = [*qkv(keys), torch.tensor([1.0, 0.5])]
    expected = trained(function, tensors)
    torch.use_deterministic_algorithms(True)
    try:
        with NoFloatCumsum():
            actual = trained(function, tensors)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@each_window
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
def test_activation_checkpointing_gives_the_same_bits(reentrant, window):
    def function(query, key, value, strength):
        bias = CentredKeys(NegLogVisible(), strength)
        return sigmoid_attention(query, key, value, bias=bias, window_size=window)

    def again(*tensors):
        return checkpoint(function, *tensors, use_reentrant=reentrant)

    tensors = [*qkv(13), torch.tensor([1.0, 0.5])]
    torch.testing.assert_close(trained(again, tensors), trained(function, tensors), rtol=0, atol=0)


def test_expanded_and_strided_tensors():
    query, key, value = qkv(13)
    wide = torch.randn(2, 13, 2, 8)[..., ::2].transpose(1, 2)
    options = {"bias": CentredKeys(-2.0), "window_size": (3, 0)}
    for tensors in ((wide, key[:1].expand(2, -1, -1, -1), value), (query, wide, wide)):
        expected = sigmoid_attention(*(x.contiguous() for x in tensors), **options)
        torch.testing.assert_close(sigmoid_attention(*tensors, **options), expected)


@each_window
@pytest.mark.parametrize("impl", ["reference", "tiled", "auto"])
@pytest.mark.parametrize(
    "sizes",
    [(0, 5, 5), (2, 0, 5), (2, 5, 0), (0, 0, 0)],
    ids=lambda BQK: "B{}-Q{}-K{}".format(*BQK),
)
def test_empty_calls_give_zeros_and_gradients(sizes, impl, window):
    batch, queries, keys = sizes
    tensors = [torch.randn(batch, 2, n, 4) for n in (queries, keys, keys)]
    strength = torch.tensor([1.0, 0.5])

    def function(query, key, value, strength):
        bias = CentredKeys(-2.0, strength)
        return sigmoid_attention(query, key, value, bias=bias, window_size=window, impl=impl)

    out, *gradients = trained(function, [*tensors, strength])
    assert out.shape == (batch, 2, queries, 4)
    assert not any(tensor.any() for tensor in (out, *gradients))


def test_repeated_calls_read_the_tensors_of_each_call():
    """The call cache keeps no call whose bias depends on the tensors."""
    query, key, value = qkv(13)
    used = torch.tensor([13, 13])
    for step in range(4):
        bias = CentredKeys(-2.0, torch.full((2,), step / 2))
        key = key + 1
        visible = visibility(13, 13, (-1, 0))
        expected = centred_by_hand(query, key, value, visible, bias=-2.0, strength=bias.strength)
        out = sigmoid_attention(query, key, value, bias=bias, is_causal=True)
        torch.testing.assert_close(out, expected.float(), rtol=1e-4, atol=1e-5)
        out = sigmoid_decode(
            query[:, :, -1:], key, value, seqused_k=used, bias=bias, is_causal=True
        )
        torch.testing.assert_close(out, expected[:, :, -1:].float(), rtol=1e-4, atol=1e-5)


@each_window
def test_means_of_the_caller_replace_those_of_the_keys(window):
    query, key, value = qkv(13, dtype=torch.float64)
    weights = visibility(13, 13, window).double()
    means = weights @ key / weights.sum(-1, keepdim=True)
    out, *gradients = trained(
        lambda q, k, v, means: sigmoid_attention(
            q, k, v, bias=CentredKeys(-2.0, 0.5, means), window_size=window
        ),
        (query, key, value, means),
    )
    expected = sigmoid_attention(query, key, value, bias=CentredKeys(-2.0, 0.5), window_size=window)
    torch.testing.assert_close(out, expected)
    assert gradients[3].any()


def test_means_of_the_caller_for_packed_sequences():
    query, key, value = (x[0].transpose(0, 1) for x in qkv(9, dtype=torch.float64))
    ends = torch.tensor([0, 4, 9])
    means = torch.cat([part.cumsum(0) for part in key.split((4, 5))])
    means = means / torch.tensor([1, 2, 3, 4, 1, 2, 3, 4, 5])[:, None, None]

    def out(bias: BiasPolicy) -> Tensor:
        return sigmoid_varlen_attention(
            query, key, value, ends, ends, 5, 5, bias=bias, is_causal=True
        )

    means_1GTD = means.transpose(0, 1)[None]
    torch.testing.assert_close(out(CentredKeys(-2.0, 0.5, means_1GTD)), out(CentredKeys(-2.0, 0.5)))


@pytest.mark.parametrize("shape", [(2,), (2, 2, 13, 13)], ids=["H", "BHQK"])
def test_the_bias_may_be_any_tensor_that_the_operator_takes(shape):
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(3)) - 2
    query, key, value = qkv(13)
    out = sigmoid_attention(query, key, value, bias=CentredKeys(bias, 0.5))
    mean = (query * key.mean(-2, keepdim=True)).sum(-1, keepdim=True) / 2
    whole = bias.view(-1, 1, 1) if bias.dim() == 1 else bias
    expected = sigmoid_attention(query, key, value, bias=whole - 0.5 * mean)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


REFUSED = {
    "strength-of-other-heads": (
        CentredKeys(-2.0, torch.ones(3)), ValueError, "CentredKeys: strength", ("(2,)", "(3,)"),
    ),
    "strength-of-two-dims": (
        CentredKeys(-2.0, torch.ones(2, 1)), ValueError, "CentredKeys: strength", ("(2,)", "(2, 1)")
    ),
    "strength-of-integers": (
        CentredKeys(-2.0, torch.ones(2).long()),
        ValueError,
        "CentredKeys: strength",
        ("floating", "int64"),
    ),
    "strength-elsewhere": (
        CentredKeys(-2.0, torch.ones(2, device="meta")),
        ValueError,
        "CentredKeys: strength",
        ("device", "meta", "cpu"),
    ),
    "means-of-other-length": (
        CentredKeys(-2.0, 1.0, torch.ones(2, 2, 8, 4)),
        ValueError,
        "key_means",
        ("(2, 2, 9, 4)", "(2, 2, 8, 4)"),
    ),
    "means-of-integers": (
        CentredKeys(-2.0, 1.0, torch.ones(2, 2, 9, 4).long()),
        ValueError,
        "key_means",
        ("floating", "int64"),
    ),
    "means-elsewhere": (
        CentredKeys(-2.0, 1.0, torch.ones(2, 2, 9, 4, device="meta")),
        ValueError,
        "key_means",
        ("device", "meta", "cpu"),
    ),
    "bias-of-other-heads": (CentredKeys(torch.ones(3)), ValueError, "bias", ("(2,)", "(3,)")),
    "bias-of-other-shape": (
        CentredKeys(torch.ones(9, 8)), ValueError, "bias", ("broadcast", "(9, 8)"),
    ),
    "policy-of-other-heads": (
        CentredKeys(HeadValues(torch.ones(3))), ValueError, "bias", ("3 heads", "query 2"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("bias, error, name, mentions", REFUSED.values(), ids=REFUSED.keys())
def test_a_call_refuses_what_does_not_fit_it(bias, error, name, mentions):
    query, key, value = qkv(9)
    wrong = {"query": query, "key": key, "value": value, "bias": bias}
    assert_sentence(complaint(error, sigmoid_attention, wrong), name, mentions)


@pytest.mark.parametrize(
    ("arguments", "error", "name", "mentions"),
    [
        ({"bias": "-2"}, TypeError, "CentredKeys: bias", ("number", "'-2'")),
        ({"bias": None}, TypeError, "CentredKeys: bias", ("number", "None")),
        ({"bias": math.nan}, ValueError, "CentredKeys: bias", ("finite", "nan")),
        ({"bias": RowLSE()}, ValueError, "CentredKeys: bias", ("RowLSE",)),
        ({"bias": CentredKeys(-2.0)}, ValueError, "CentredKeys: bias", ("CentredKeys",)),
        ({"bias": -2.0, "strength": "1"}, TypeError, "CentredKeys: strength", ("number", "'1'")),
        ({"bias": -2.0, "strength": math.inf}, ValueError, "CentredKeys: strength", ("inf",)),
        ({"bias": -2.0, "strength": None}, TypeError, "CentredKeys: strength", ("None",)),
        ({"bias": -2.0, "key_means": [1.0]}, TypeError, "CentredKeys: key_means", ("tensor",)),
    ],
    ids=str,
)
def test_the_policy_refuses(arguments, error, name, mentions):
    assert_sentence(complaint(error, CentredKeys, arguments), name, mentions)


def test_a_learned_bias_inside_learns_and_is_called_once():
    calls_of_the_module = []
    learned = Learned(-2.0, num_heads=2)
    learned.register_forward_hook(lambda *_: calls_of_the_module.append(1))
    query, key, value = qkv(9)
    sigmoid_attention(query, key, value, bias=CentredKeys(learned)).sum().backward()
    assert learned.value.grad.all() and len(calls_of_the_module) == 1


def test_blocks_of_prefix_sums_are_prefix_sums():
    for rows in (0, 1, 255, 256, 257, 700):
        x = torch.randn(2, 3, rows, 5, dtype=torch.float64)
        torch.testing.assert_close(key_means._sums_in_order(x), x.cumsum(-2))
