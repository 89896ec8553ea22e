"""Bad arguments of sigmoid_attention and of the bias policies."""

import math

import numpy as np
import torch

from sigmoid_attention.attention import (
    Constant,
    Learned,
    NegLogEffectiveLength,
    NegLogLength,
    NegLogVisible,
    RowLSE,
    sigmoid_attention,
)
from tests.support.attention.complaints import (
    WRONG_TYPES,
    WRONG_VALUES,
    assert_sentence,
    complaint,
    no_tensors,
    not_dense,
    ones,
    table,
)

GOOD = {
    "query": ones(2, 4, 5, 3),
    "key": ones(2, 4, 7, 3),
    "value": ones(2, 4, 7, 6),
    "bias": -1.0,
}
SHAPE = "(2, 4, 5, 7)"
OTHERS = {name: GOOD[name] for name in ("query", "key", "value")}

TYPES = (
    WRONG_TYPES
    | no_tensors("query", "key", "value")
    | no_tensors("attn_mask", but=("none",))
    | {
        "dropout-word": ({"dropout_p": "0.1"}, "dropout_p", ("a number", "'0.1'")),
        "dropout-nothing": ({"dropout_p": {}}, "dropout_p", ("a number", "dict")),
        "dropout-tensor": ({"dropout_p": torch.tensor(0.1)}, "dropout_p", ("a number", "a tensor")),
    }
)
VALUES = (
    WRONG_VALUES
    | not_dense("query", "key", "value", "attn_mask")
    | {
        "query-quantized": (
            {"query": torch.zeros(2, 4, 5, 3, dtype=torch.float8_e4m3fn)},
            "query",
            ("fp16", "float8"),
        ),
        "mask-complex": (
            {"attn_mask": ones(5, 7).cfloat()},
            "attn_mask",
            ("floating", "complex64"),
        ),
        "query-integer": ({"query": ones(2, 4, 5, 3).long()}, "query", ("fp16", "torch.int64")),
        "query-complex": (
            {"query": ones(2, 4, 5, 3).cfloat()},
            "query",
            ("fp16", "torch.complex64"),
        ),
        "query-of-three-dims": ({"query": ones(4, 5, 3)}, "query", ("(batch, heads,", "(4, 5, 3)")),
        "key-of-three-dims": ({"key": ones(4, 7, 3)}, "key", ("(batch, heads,", "(4, 7, 3)")),
        "value-of-five-dims": (
            {"value": ones(1, 2, 4, 7, 3)},
            "value",
            ("(batch, heads,", "(1, 2, 4,"),
        ),
        "key-dtype": (
            {"key": ones(2, 4, 7, 3).double()},
            "key",
            ("dtype", "torch.float64", "torch.float32"),
        ),
        "value-dtype": (
            {"value": ones(2, 4, 7, 6).half()},
            "value",
            ("dtype", "torch.float16", "torch.float32"),
        ),
        "key-elsewhere": (
            {"key": ones(2, 4, 7, 3, device="meta")},
            "key",
            ("device", "meta", "cpu"),
        ),
        "value-elsewhere": (
            {"value": ones(2, 4, 7, 6, device="meta")},
            "value",
            ("device", "meta", "cpu"),
        ),
        "key-batch": ({"key": ones(3, 4, 7, 3)}, "key", ("batch", "(3, 4, 7, 3)", "(2, 4, 5, 3)")),
        "key-head-dim": (
            {"key": ones(2, 4, 7, 5)},
            "key",
            ("head dim", "(2, 4, 7, 5)", "(2, 4, 5, 3)"),
        ),
        "value-length": (
            {"value": ones(2, 4, 8, 6)},
            "value",
            ("length", "(2, 4, 8, 6)", "(2, 4, 7, 3)"),
        ),
        "value-heads": (
            {"value": ones(2, 2, 7, 6)},
            "value",
            ("heads", "(2, 2, 7, 6)", "(2, 4, 7, 3)"),
        ),
        "value-batch": (
            {"value": ones(1, 4, 7, 6)},
            "value",
            ("batch", "(1, 4, 7, 6)", "(2, 4, 7, 3)"),
        ),
        "fewer-key-heads-without-gqa": (
            {"key": ones(2, 2, 7, 3), "value": ones(2, 2, 7, 6)},
            "key",
            ("2 heads", "4 query heads", "enable_gqa=True"),
        ),
        "key-heads-that-do-not-divide": (
            {"key": ones(2, 3, 7, 3), "value": ones(2, 3, 7, 6), "enable_gqa": True},
            "key",
            ("3 heads", "do not divide", "4 query heads"),
        ),
        "more-key-heads-than-heads": (
            {"key": ones(2, 8, 7, 3), "value": ones(2, 8, 7, 6), "enable_gqa": True},
            "key",
            ("8 heads", "do not divide", "4 query heads"),
        ),
        "no-key-heads": (
            {"key": ones(2, 0, 7, 3), "value": ones(2, 0, 7, 6), "enable_gqa": True},
            "key",
            ("0 heads", "do not divide", "4 query heads"),
        ),
        "no-head-dim": (
            {"query": ones(2, 4, 5, 0), "key": ones(2, 4, 7, 0)},
            "query",
            ("head dim", "positive", "0"),
        ),
        "dropout-of-all": ({"dropout_p": 1.0}, "dropout_p", ("below 1", "1.0")),
        "dropout-negative": ({"dropout_p": -0.1}, "dropout_p", ("at least 0", "-0.1")),
        "dropout-nan": ({"dropout_p": math.nan}, "dropout_p", ("below 1", "nan")),
        "mask-integer": (
            {"attn_mask": torch.ones(5, 7, dtype=torch.int64)},
            "attn_mask",
            ("boolean", "True = attend", "floating", "torch.int64"),
        ),
        "mask-of-other-keys": (
            {"attn_mask": torch.ones(5, 8).bool()},
            "attn_mask",
            ("broadcast", SHAPE, "(5, 8)"),
        ),
        "mask-of-five-dims": (
            {"attn_mask": ones(1, 2, 4, 5, 7)},
            "attn_mask",
            ("broadcast", SHAPE, "(1, 2, 4, 5, 7)"),
        ),
        "mask-turned": ({"attn_mask": ones(7, 5)}, "attn_mask", ("broadcast", SHAPE, "(7, 5)")),
        "mask-elsewhere": (
            {"attn_mask": ones(5, 7, device="meta")},
            "attn_mask",
            ("device", "meta", "cpu"),
        ),
        "bias-of-other-shape": ({"bias": ones(4, 5, 8)}, "bias", ("broadcast", SHAPE, "(4, 5, 8)")),
        "bias-of-five-dims": ({"bias": ones(1, 1, 1, 1, 7)}, "bias", ("broadcast", SHAPE)),
        "no-bias-Q5-K7": (
            {"bias": None},
            "bias",
            ("None", "5 queries, 7 keys", "NegLogLength(1024)"),
        ),
        "no-bias-with-a-mask": (
            {"bias": None, "query": ones(2, 4, 7, 3), "attn_mask": ones(7, 7)},
            "bias",
            ("None", "a mask", "NegLogLength(1024)"),
        ),
    }
)


@table(types=TYPES, values=VALUES)
def test_sigmoid_attention_refuses(error, wrong, name, mentions):
    assert sigmoid_attention(**GOOD).shape == (2, 4, 5, 6)
    assert_sentence(complaint(error, sigmoid_attention, GOOD | wrong), name, mentions)


POLICY_TYPES = {
    "length-word": (lambda: NegLogLength("a"), "NegLogLength", ("n ", "whole number", "'a'")),
    "length-none": (lambda: NegLogLength(None), "NegLogLength", ("n ", "whole number", "None")),
    "length-switch": (lambda: NegLogLength(True), "NegLogLength", ("n ", "whole", "True")),
    "length-tensor": (
        lambda: NegLogLength(torch.tensor(8)),
        "NegLogLength",
        ("n ", "whole number", "a tensor"),
    ),
    "offset-word": (lambda: NegLogLength(8, "0"), "NegLogLength", ("offset", "number", "'0'")),
    "constant-word": (lambda: Constant("0"), "Constant", ("number", "'0'")),
    "constant-array": (lambda: Constant(np.zeros(4)), "Constant", ("number", "numpy.ndarray")),
    "visible-at-least-half": (
        lambda: NegLogVisible(at_least=2.5),
        "NegLogVisible",
        ("at_least", "whole number", "2.5"),
    ),
    "visible-at-least-nan": (
        lambda: NegLogVisible(at_least=math.nan),
        "NegLogVisible",
        ("at_least", "1 or more", "nan"),
    ),
    "effective-slopes-word": (
        lambda: NegLogEffectiveLength("ab", 8),
        "NegLogEffectiveLength",
        ("slopes", "'ab'"),
    ),
    "effective-slopes-number": (
        lambda: NegLogEffectiveLength(0.5, 8),
        "NegLogEffectiveLength",
        ("slopes", "0.5"),
    ),
    "effective-offset-that-learns": (
        lambda: NegLogEffectiveLength((0.5,), 8, ones(1).requires_grad_()),
        "NegLogEffectiveLength",
        ("offset", "could not learn"),
    ),
    "learned-from-a-tensor": (
        lambda: Learned(Constant(ones(1)), num_heads=2),
        "Learned",
        ("init", "a tensor"),
    ),
    "learned-of-half-a-head": (lambda: Learned(0.0, 2.5), "Learned", ("num_heads", "whole", "2.5")),
    "learned-from-the-visible": (
        lambda: Learned(NegLogVisible(), num_heads=2),
        "Learned",
        ("init", "Constant", "NegLogVisible"),
    ),
    "learned-from-row-lse": (
        lambda: Learned(RowLSE(), num_heads=2),
        "Learned",
        ("init", "Constant", "RowLSE"),
    ),
    "learned-from-learned": (
        lambda: Learned(Learned(0.0, num_heads=2), num_heads=2),
        "Learned",
        ("init", "Constant", "Learned"),
    ),
}
POLICY_VALUES = {
    "length-zero": (lambda: NegLogLength(0), "NegLogLength", ("n ", "positive", "0")),
    "length-negative": (lambda: NegLogLength(-8), "NegLogLength", ("n ", "positive", "-8")),
    "length-nan": (lambda: NegLogLength(math.nan), "NegLogLength", ("n ", "positive", "nan")),
    "length-half": (lambda: NegLogLength(2.5), "NegLogLength", ("n ", "whole number", "2.5")),
    "length-infinite": (lambda: NegLogLength(math.inf), "NegLogLength", ("n ", "positive", "inf")),
    "offset-nan": (lambda: NegLogLength(8, math.nan), "NegLogLength", ("offset", "finite", "nan")),
    "constant-nan": (lambda: Constant(math.nan), "Constant", ("finite", "nan")),
    "constant-infinite": (lambda: Constant(-math.inf), "Constant", ("finite", "-inf")),
    "effective-slope-nan": (
        lambda: NegLogEffectiveLength((0.5, math.nan), 8),
        "NegLogEffectiveLength",
        ("slopes", "finite", "nan"),
    ),
    "effective-slopes-that-learn": (
        lambda: NegLogEffectiveLength(ones(2).requires_grad_(), 8),
        "NegLogEffectiveLength",
        ("slopes", "could not learn", "detach"),
    ),
    "learned-from-nan": (
        lambda: Learned(math.nan, num_heads=2),
        "Learned",
        ("init", "finite", "nan"),
    ),
    "visible-at-least-zero": (
        lambda: NegLogVisible(at_least=0),
        "NegLogVisible",
        ("at_least", "1 or more", "0"),
    ),
    "effective-length-zero": (
        lambda: NegLogEffectiveLength((0.5,), 0),
        "NegLogEffectiveLength",
        ("n ", "positive", "0"),
    ),
    "effective-slope-negative": (
        lambda: NegLogEffectiveLength((0.5, -0.25), 8),
        "NegLogEffectiveLength",
        ("slopes", "negative", "(0.5, -0.25)"),
    ),
    "effective-slopes-of-two-dims": (
        lambda: NegLogEffectiveLength(ones(2, 2), 8),
        "NegLogEffectiveLength",
        ("slopes", "(2, 2)"),
    ),
    "learned-from-other-heads": (
        lambda: Learned(NegLogEffectiveLength((0.5,), 8), num_heads=2),
        "Learned",
        ("1 slopes", "2 heads"),
    ),
}


@table(types=POLICY_TYPES, values=POLICY_VALUES, columns="make, name, mentions")
def test_policies_refuse(error, make, name, mentions):
    assert_sentence(complaint(error, make, {}), name, mentions)


def test_scalars_of_numpy_and_whole_floats_are_numbers():
    expected = sigmoid_attention(**OTHERS, scale=0.5, window_size=(2, -1), bias=NegLogLength(1024))
    scalars = {"scale": np.float32(0.5), "window_size": [np.int64(2), -1], "is_causal": np.False_}
    for n in (1024.0, np.int32(1024)):
        assert torch.equal(sigmoid_attention(**OTHERS, **scalars, bias=NegLogLength(n)), expected)


def test_a_remembered_call_does_not_let_bad_ones_pass():
    query = ones(2, 4, 7, 3)
    for _ in range(3):
        sigmoid_attention(query, query, query, bias=1.0, scale=1.0)
    for wrong in ({"bias": True}, {"dropout_p": {}}, {"query": query.numpy()}, {"impl": ["auto"]}):
        arguments = {"query": query, "key": query, "value": query, "bias": 1.0, "scale": 1.0}
        complaint(TypeError, sigmoid_attention, arguments | wrong)
