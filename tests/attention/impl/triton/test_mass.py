"""The row's mass from the Triton kernels, against the definition in float64.

The mass is the output for a value of ones. So the expected mass is a further column of the output,
for a value with a column of ones, and its gradient a further column of the output's gradient.
"""

from collections.abc import Iterable
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.nn.functional import pad

from sigmoid_attention.attention import (
    sigmoid_attention,
    sigmoid_attention_with_mass,
    sigmoid_decode,
    sigmoid_varlen_attention,
)
from sigmoid_attention.attention.impl.triton import decode_ops
from tests.attention.impl.triton.test_decode import CALLS, PARTS, USED
from tests.attention.impl.triton.test_sequences import (
    LENGTHS_K,
    LENGTHS_Q,
    PACKED,
    PADDING,
    ends,
    without_padding,
)
from tests.attention.test_opcheck import CHECKS, Seen
from tests.support.attention.mass import joined
from tests.support.cpu.budgets import normal
from tests.support.cpu.cache import Cache
from tests.support.cpu.oracle import (
    ROUNDINGS,
    Named,
    assert_close_in_norm,
    assert_within_rounding,
    differentiated,
    exactly,
    in_float64,
    sizes,
)
from tests.support.cpu.second_order import twice
from tests.support.triton.calls import BLOCKS, FEATURES, SLOPES, qkv
from tests.support.triton.interpreter import Blocks

# Of the names of this file's cases.
SAMPLE = (
    "slopes", "head-dim-40-value-dim-24", "all-at-once", "causal-H4-G2-Q33-K40",
    "five-queries-H16-G2-D20-E31",
)  # fmt: skip
BF16 = pytest.param(torch.bfloat16, marks=pytest.mark.slow, id="bf16")
FP16 = pytest.param(torch.float16, id="fp16")


def each(names: Iterable[str]) -> pytest.MarkDecorator:
    """A sample, and the other names under the marker ``slow``."""
    return pytest.mark.parametrize(
        "name", [pytest.param(x, marks=[pytest.mark.slow] * (x not in SAMPLE)) for x in names]
    )


def dense(*tensors, **arguments) -> Tensor:
    return joined(sigmoid_attention)(*tensors, **arguments, impl="triton")


def packed(*tensors, **arguments) -> Tensor:
    """As on a GPU, where the lengths are not validated."""
    with mock.patch(
        "sigmoid_attention.attention.index_tensors.values_are_readable", lambda *_: False
    ):
        return joined(sigmoid_varlen_attention)(*tensors, **arguments, impl="triton")


def cached(*tensors, **arguments) -> Tensor:
    """As on a GPU, where the lengths are not validated."""
    with mock.patch("sigmoid_attention.attention.decode.values_are_readable", lambda *_: False):
        return joined(sigmoid_decode)(*tensors, **arguments, impl="triton")


def with_ones(positional: tuple) -> tuple:
    query, key, value, *others = positional
    return (query, key, pad(value, (0, 1), value=1.0), *others)


def without_ones(named: Named) -> Named:
    return named | {"value": named["value"][..., :-1]}


def mass_of(named: Named) -> Named:
    return {"mass": named["out"][..., -1]}


def check(interpreted, positional, blocks=BLOCKS, *, in_order=False, **arguments) -> None:
    arguments = {"bias": -2.0, "enable_gqa": True} | arguments
    actual = interpreted(differentiated, blocks, dense, positional, arguments, in_order=in_order)
    wide = with_ones(positional)
    exact, size = exactly(sigmoid_attention, wide, arguments), sizes(wide, arguments)
    dtype = positional[0].dtype
    assert actual["out"].dtype == torch.float32
    assert_within_rounding(actual, without_ones(exact), without_ones(size), dtype)
    assert_within_rounding(mass_of(actual), mass_of(exact), mass_of(size), torch.float32)


@each(FEATURES)
def test_mass_and_gradients_in_fp32(interpreted, name):
    positional, arguments = FEATURES[name]
    check(interpreted, positional, **arguments)


@each(
    (
        "slopes",
        "three-heads-a-key-head-two-batches",
        "everything",
        "window",
        "bias-of-rows",
        "bias-of-pairs-shared",
    )
)
def test_gradients_in_a_fixed_order(interpreted, name):
    positional, arguments = FEATURES[name]
    check(interpreted, positional, in_order=True, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["window", "causal-more-queries"])
def test_keys_and_values_by_descriptors(interpreted, name):
    positional, arguments = FEATURES[name]
    check(interpreted, positional, Blocks(described=True), **arguments)


HALF = {
    "causal-H4-G2-Q33-K40": (qkv(33, 40, heads=4, key_heads=2), {"is_causal": True}),
    "window-slopes-Q40-K33-D24": (
        qkv(40, 33, dim=24),
        {"window_size": (9, 3), "alibi_slopes": SLOPES},
    ),
    "flags-softcap-Q20-K37": (
        qkv(20, 37),
        {"attn_mask": normal(2, 20, 37) > -0.5, "softcap": 2.0},
    ),
}


@each(HALF)
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_half_precision_rounds_the_output_and_not_the_mass(interpreted, name, dtype):
    """The tolerance "rounding" would skip keys that only the output rounds away."""
    positional, arguments = HALF[name]
    positional = tuple(tensor.to(dtype) for tensor in positional)
    check(interpreted, positional, skip_tolerance=0.0, **arguments)


def gradients_of_the_mass(positional: tuple, arguments: dict, factor: float) -> list[Tensor]:
    """Of the mass alone, for a gradient that is an expanded number."""
    leaves = [tensor.detach().requires_grad_() for tensor in positional]
    _, mass = sigmoid_attention_with_mass(*leaves, **arguments)
    return list(torch.autograd.grad(mass, leaves[:2], torch.tensor(factor).expand_as(mass)))


@pytest.mark.parametrize("factor", [1e6, 1e-6])
@pytest.mark.parametrize("in_order", [False, True], ids=["added", "in-order"])
def test_any_gradient_of_the_mass_fits_fp16(interpreted, factor, in_order):
    positional = tuple(tensor.half() for tensor in qkv(20, 33))
    arguments = {"bias": 0.0, "scale": 1e-3 if factor > 1 else 10.0, "enable_gqa": True}
    actual = interpreted(
        gradients_of_the_mass, BLOCKS, positional, arguments | {"impl": "triton"}, factor,
        in_order=in_order,
    )  # fmt: skip
    wide = tuple(tensor.double() for tensor in positional)
    exact = gradients_of_the_mass(wide, arguments | {"impl": "reference"}, factor)
    for found, expected in zip(actual, exact, strict=True):
        # What fp16 cannot hold is rounded to its smallest number.
        budget = 2e-3 * expected.abs().max() + 2.0**-24
        assert (found.double() - expected).abs().max() <= budget


def forward_mass(positional: tuple, arguments: dict) -> Tensor:
    with torch.no_grad():
        return sigmoid_attention_with_mass(*positional, **arguments, impl="triton")[1]


EMPTY = {
    "queries-before-all-keys": (qkv(43, 19), {"is_causal": True}, slice(0, 24)),
    "no-keys": (qkv(20, 0), {}, slice(0, 20)),
    "no-queries": (qkv(0, 20), {}, slice(0, 0)),
    "hidden-keys": (qkv(20, 33), {"attn_mask": torch.arange(20)[:, None] >= 7}, slice(0, 7)),
    "value-dim-0": (qkv(20, 33, value_dim=0), {"window_size": (3, 3)}, slice(0, 0)),
}


@pytest.mark.parametrize("name", EMPTY)
def test_rows_without_keys_have_no_mass(interpreted, name):
    positional, arguments, empty = EMPTY[name]
    arguments = {"bias": 3.0, "enable_gqa": True} | arguments
    mass = interpreted(forward_mass, BLOCKS, positional, arguments)
    assert not mass[:, :, empty].any()
    exact = sigmoid_attention(*with_ones(positional), **arguments, impl="reference")[..., -1]
    torch.testing.assert_close(mass, exact)


# Sequences --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, in_order",
    [
        ("window-slopes", False),
        pytest.param("window-slopes", True, marks=pytest.mark.slow),
        pytest.param("causal", True, marks=pytest.mark.slow),
        pytest.param("bias-of-rows-slopes-of-each", False, marks=pytest.mark.slow),
        pytest.param("bias-of-pairs", False, marks=pytest.mark.slow),
    ],
)
def test_packed_sequences_before_padding(interpreted, name, in_order):
    tokens_q, tokens_k = sum(LENGTHS_Q) + PADDING, sum(LENGTHS_K) + PADDING
    shapes = (tokens_q, 2, 16), (tokens_k, 1, 16), (tokens_k, 1, 24)
    tensors = [normal(*shape).float() for shape in shapes]
    positional = (*tensors, ends(LENGTHS_Q), ends(LENGTHS_K), 34, 21)
    arguments = {"bias": -2.0, "enable_gqa": True} | PACKED[name]
    actual = interpreted(
        differentiated, Blocks(16, 16, 16), packed, positional, arguments, in_order=in_order
    )
    exact = without_ones(exactly(without_padding, with_ones(positional), arguments))
    assert not any(actual[rows][-PADDING:].any() for rows in ("out", "query", "key", "value"))
    assert_close_in_norm(actual, exact, torch.float32)


@pytest.mark.parametrize(
    "page_size", [pytest.param(0, marks=pytest.mark.slow), 7], ids=["contiguous", "pages-7"]
)
def test_a_cache_with_gradients(interpreted, page_size):
    call = CALLS["window-left-three-queries"].but(queries=19, key_heads=1, group=2, slopes="H")
    tensors, arguments = Cache((50, 30, 7), page_size, "heads", call).build(torch.float32)
    actual = interpreted(differentiated, BLOCKS, cached, tensors, arguments)
    exact = exactly(sigmoid_decode, with_ones(tensors), arguments)
    assert_close_in_norm(actual, without_ones(exact), torch.float32)


def decoded(tensors: tuple[Tensor, ...], arguments: dict, parts: int) -> Tensor:
    """By the decoding kernel, in so many parts, of blocks of 16 keys."""
    with (
        torch.no_grad(),
        mock.patch.object(decode_ops, "key_parts", lambda *_: parts),
        mock.patch.object(decode_ops, "block_keys", lambda *_: 16),
        mock.patch("sigmoid_attention.attention.impl.triton.ops.attend_with_mass", None),
    ):
        return cached(*tensors, **arguments)


def check_decoded(interpreted, cache: Cache, dtype: torch.dtype, parts: int = PARTS) -> None:
    tensors, arguments = cache.build(dtype)
    arguments["skip_tolerance"] = 0.0
    actual = interpreted(decoded, Blocks(), tensors, arguments, parts)
    assert actual.dtype == torch.float32
    query, key, value = (tensor.double() for tensor in with_ones(tensors))
    wide = {name: in_float64(argument) for name, argument in arguments.items()}
    exact = sigmoid_decode(query, key, value, **wide, impl="reference")
    size = sigmoid_decode(query, key, value.abs(), **wide, impl="reference")
    # The mass, the last column, is not rounded.
    for columns, kind in ((slice(0, -1), dtype), (slice(-1, None), torch.float32)):
        budget = 2 * ROUNDINGS[kind] * torch.finfo(kind).eps / 2 * size[..., columns]
        error = (actual - exact).abs()[..., columns]
        assert (error <= budget + torch.finfo(kind).smallest_normal).all()
    assert not actual[tuple(cache.used).index(0)].any()


@each(CALLS)
@pytest.mark.parametrize("page_size", [0, 7], ids=["contiguous", "pages-7"])
def test_decoding_beside_unwritten_memory(interpreted, name, page_size):
    check_decoded(interpreted, Cache(USED, page_size, "tokens", CALLS[name]), torch.float32)


@each(("five-queries-H16-G2-D20-E31", "all-terms"))
@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.slow), 20], ids=["S1", "S20"])
def test_decoding_in_half_precision_by_any_number_of_parts(interpreted, name, dtype, parts):
    check_decoded(interpreted, Cache(USED, 16, "heads", CALLS[name]), dtype, parts)


# Derivatives of derivatives, and the operators --------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_second_derivatives(interpreted, dtype):
    positional = qkv(20, 24, dtype=dtype)
    arguments = {"bias": -1.0, "alibi_slopes": SLOPES, "softcap": 2.0, "enable_gqa": True}
    actual = interpreted(twice, BLOCKS, dense, positional, arguments)
    wide = arguments | {"alibi_slopes": SLOPES.double(), "impl": "reference"}
    doubles = tuple(tensor.double() for tensor in positional)
    assert_close_in_norm(actual, twice(joined(sigmoid_attention), doubles, wide), dtype)


def checked_operators() -> list[str]:
    """The operators with a mass, each of which passes torch's own checks."""
    query, key, value = (x.half().requires_grad_() for x in qkv(9, 11))
    with Seen() as seen:
        out = dense(query, key, value, bias=-1.0, enable_gqa=True)
        grads = torch.autograd.grad(out.square().sum(), (query, key, value), create_graph=True)
        total = torch.stack([grad.float().square().sum() for grad in grads]).sum()
        torch.autograd.grad(total, (query, key))
        with torch.no_grad():
            cached(
                query, key, value, seqused_k=torch.tensor([9]), is_causal=True, bias=-1.0,
                enable_gqa=True,
            )  # fmt: skip
    calls = {str(operator): (operator, given) for operator, given in seen.calls.items()}
    # An operator without gradients fails one of the checks.
    checked = [name for name in calls if "double_backward" not in name]
    for name in checked:
        opcheck(*calls[name], test_utils=CHECKS)
    return checked


@pytest.mark.slow
def test_operators_pass_torchs_checks(interpreted):
    names = interpreted(checked_operators, BLOCKS)
    kinds = ("forward_with_mass", "backward", "decode_with_mass")
    assert set(names) == {f"sigmoid_attention.triton_{kind}.default" for kind in kinds}
