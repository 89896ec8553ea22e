"""The fused operator against the reference in float64: every feature, forward and all gradients.

Sizes lie around the kernel's own: 192 queries a block (or 96, or 48), 128 keys, panels of 64, 16
or 8 of them, rows in groups of 6.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.attention.calls import BIAS_SHAPES, Call, masks
from tests.support.cpu.calls import (
    FAR_WINDOWS,
    LAYOUTS,
    PLAIN,
    assert_right,
    cut,
    each_dtype,
    fused,
    laid_out,
)
from tests.support.cpu.oracle import (
    differentiated,
    real_arguments,
)
from tests.support.examples import examples

pytestmark = pytest.mark.usefixtures("kernel")

QUERIES = (1, 5, 6, 7, 48, 49, 95, 97, 191, 192, 193, 385)
KEYS = (1, 7, 15, 17, 63, 65, 127, 128, 129, 193, 257)
DIMS = (1, 2, 7, 16, 17, 33, 64, 65, 70)


@st.composite
def large_calls(draw) -> Call:
    """Any combination of arguments, at sizes of several blocks."""
    biases = ("-2.5", "visible", "effective", *(f"tensor {letters}" for letters in BIAS_SHAPES))
    return Call(
        batch=draw(st.integers(1, 2)),
        key_heads=draw(st.integers(1, 2)),
        group=draw(st.sampled_from((1, 3))),
        queries=draw(st.sampled_from(QUERIES)),
        keys=draw(st.sampled_from(KEYS)),
        head_dim=draw(st.sampled_from(DIMS)),
        value_dim=draw(st.sampled_from(DIMS)),
        bias=draw(st.sampled_from(biases)),
        mask=draw(masks()),
        slopes=draw(st.sampled_from((None, "H", "BH"))),
        is_causal=draw(st.booleans()),
        window_size=draw(st.sampled_from(FAR_WINDOWS)),
        softcap=draw(st.sampled_from((None, 0.7, 5.0))),
        scale=draw(st.sampled_from((None, -0.1))),
        seed=draw(st.integers(0, 2**16)),
    )


@each_dtype
@settings(max_examples=examples(30))
@given(
    call=large_calls(),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    blocks=st.sampled_from((192, 96, 48)),
    splits=st.integers(1, 3),
    terms=st.sampled_from((None, torch.float32, torch.float64)),
)
def test_equals_the_reference(dtype, call: Call, layouts, blocks, splits, terms):
    tensors, arguments = call.build(dtype)
    tensors = tuple(map(laid_out, tensors, layouts))
    if terms is not None:
        arguments |= {name: term.to(terms) for name, term in real_arguments(arguments).items()}
    with cut(blocks, splits):
        assert_right(tensors, arguments, dtype)


FEATURES = {
    "plain-Q385-K257-D33-E20": PLAIN,
    "causal-Q257-K257": PLAIN.but(queries=257, is_causal=True),
    "causal-Q385-K129-rows-without-keys": PLAIN.but(keys=129, is_causal=True),
    "causal-Q7-K257": PLAIN.but(queries=7, is_causal=True),
    "window-65-6": PLAIN.but(window_size=(65, 6)),
    "window-0-0": PLAIN.but(window_size=(0, 0)),
    "causal-window-130": PLAIN.but(window_size=(130, -1), is_causal=True),
    "shared-keys-H6-G2": PLAIN.but(group=3),
    "shared-keys-H6-G2-causal-slopes": PLAIN.but(group=3, slopes="H", is_causal=True),
    "softcap": PLAIN.but(softcap=0.9),
    "negative-scale-softcap": PLAIN.but(scale=-0.2, softcap=0.9),
    "no-scale": PLAIN.but(scale=0.0),
    "one-dim-D1-E1": PLAIN.but(head_dim=1, value_dim=1),
    "wide-D130-E200": PLAIN.but(head_dim=130, value_dim=200, queries=65),
    "slopes-BH": PLAIN.but(batch=2, slopes="BH"),
    "visible-policy-causal": PLAIN.but(bias="visible", is_causal=True),
    **{f"bias-{shape or 'scalar'}": PLAIN.but(bias=f"tensor {shape}") for shape in BIAS_SHAPES},
    **{
        f"{kind}-mask-{shape or 'scalar'}": PLAIN.but(mask=f"{kind} {shape}")
        for kind in ("bool", "hiding")
        for shape in ("BHQK", "B11K", "1HQ1", "QK", "K", "")
    },
    "bias-and-mask-of-different-shapes": PLAIN.but(
        batch=2, group=2, bias="tensor H11", mask="float QK", slopes="H", softcap=2.0
    ),
    "everything": PLAIN.but(
        group=2, bias="tensor BHQ1", mask="hiding K", slopes="H", is_causal=True, softcap=0.7,
        window_size=(200, -1),
    ),
}  # fmt: skip


@each_dtype
@pytest.mark.parametrize("call", FEATURES.values(), ids=FEATURES.keys())
def test_every_feature_equals_the_reference(dtype, call):
    tensors, arguments = call.build(dtype)
    with cut(96, 2):
        assert_right(tensors, arguments, dtype)


def leave_nans_behind(dtype: torch.dtype) -> None:
    """In the working memory that the kernel keeps: a call of which every number is a NaN."""
    tensors, arguments = PLAIN.but(bias="tensor BHQK", softcap=1.0, head_dim=70, keys=640).build(
        dtype
    )
    tensors = tuple(torch.full_like(tensor, math.nan) for tensor in tensors)
    differentiated(fused, tensors, arguments | {"bias": arguments["bias"] * math.nan})


@each_dtype
@pytest.mark.parametrize("call", FEATURES.values(), ids=FEATURES.keys())
def test_memory_of_an_earlier_call_is_not_read(dtype, call):
    # No earlier block of queries fills what this one leaves empty.
    tensors, arguments = call.but(queries=95).build(dtype)
    with cut(192, 2):
        before = differentiated(fused, tensors, arguments)
        leave_nans_behind(dtype)
        after = differentiated(fused, tensors, arguments)
    for name, expected in before.items():
        assert torch.equal(after[name], expected), name


@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_is_read_where_it_lies(dtype, layout):
    tensors, arguments = PLAIN.but(batch=2, queries=130).build(dtype)
    assert_right(tuple(laid_out(tensor, layout) for tensor in tensors), arguments, dtype)


@pytest.mark.parametrize("kind", ["bool", "hiding"])
def test_terms_are_read_where_they_lie(kind):
    """Broadcast by a stride of zero, transposed, and from an odd place on."""
    call = PLAIN.but(
        batch=2, queries=257, keys=130, bias="tensor QK", mask=f"{kind} QK", slopes="H"
    )
    tensors, arguments = call.build(torch.float32)
    mask, bias, slopes = (arguments[name] for name in ("attn_mask", "bias", "alibi_slopes"))
    arguments["attn_mask"] = mask.mT.contiguous().mT.expand(2, 2, 257, 130)
    arguments["bias"] = laid_out(bias[None, None], "offset")
    arguments["alibi_slopes"] = torch.stack([slopes, slopes], 1).flatten()[::2]
    assert_right(tensors, arguments, torch.float32)


@each_dtype
def test_a_gradient_that_repeats_in_memory_is_read_as_written_out(dtype):
    tensors, arguments = PLAIN.build(dtype)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    by_stride = torch.autograd.grad(fused(*leaves, **arguments).sum(), leaves)
    out = fused(*leaves, **arguments)
    written_out = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert all(torch.equal(*pair) for pair in zip(by_stride, written_out, strict=True))
