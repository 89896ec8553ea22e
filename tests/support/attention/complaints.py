"""Tables of bad input: every error is one sentence with the argument, its value and the
accepted values.

Each row is the change of an otherwise valid call, the name at the start of the error, and the words
that it must contain. Wrong types and wrong values have tables of their own.
"""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sigmoid_attention.attention import (
    BiasPolicy,
    Constant,
    HeadValues,
    Learned,
    NegLogEffectiveLength,
    RowLSE,
)


def ones(*sizes: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.ones(sizes, dtype=dtype, device=device)


def longs(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def sparse_rows() -> Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.ones(9, 9).to_sparse_csr()


def nested() -> Tensor:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)


# What is no tensor of torch, and how the sentence describes it.
NO_TENSORS = {
    "none": (None, "None"),
    "number": (9, "9"),
    "word": ("all", "'all'"),
    "list": ([[True, False]], "[[True, False]]"),
    "numpy": (np.ones((9, 9), np.float32), "numpy.ndarray"),
}
NOT_DENSE = {
    "sparse": (torch.ones(9, 9).to_sparse(), "torch.sparse_coo"),
    "rows-sparse": (sparse_rows(), "torch.sparse_csr"),
    "nested": (nested(), "nested"),
}


def no_tensors(*names: str, but: tuple[str, ...] = ()) -> dict:
    """A row for each of these arguments and each kind of object that is no tensor."""
    kinds = {kind: row for kind, row in NO_TENSORS.items() if kind not in but}
    return _rows(names, kinds)


def not_dense(*names: str) -> dict:
    """A row for each of these arguments and each kind of tensor that is not dense."""
    return _rows(names, NOT_DENSE)


def _rows(names: tuple[str, ...], kinds: dict) -> dict:
    return {
        f"{name}-{kind}": ({name: value}, name, (mention,))
        for name in names
        for kind, (value, mention) in kinds.items()
    }


def complaint(error: type[Exception], function, arguments: dict) -> str:
    with pytest.raises(error) as raised:
        function(**arguments)
    return str(raised.value)


def assert_sentence(sentence: str, name: str, mentions: tuple[str, ...]) -> None:
    assert sentence.startswith((f"{name} ", f"{name}: ")), sentence
    assert "\n" not in sentence
    for mention in mentions:
        assert mention in sentence, f"{mention!r} is not in {sentence!r}"


def table(*, types: dict, values: dict, columns: str = "wrong, name, mentions"):
    """A case for each row: a wrong type raises TypeError, a wrong value ValueError."""
    rows = {case: (TypeError, *row) for case, row in types.items()}
    rows |= {case: (ValueError, *row) for case, row in values.items()}
    return pytest.mark.parametrize(f"error, {columns}", rows.values(), ids=rows.keys())


class Silent(BiasPolicy):
    def resolve(self, rows):
        return None


# Wrong in the same words for dense, packed and cached calls of batch 2 with 4 heads.
WRONG_TYPES = no_tensors("alibi_slopes", but=("none",)) | {
    "softcap-word": ({"softcap": "5"}, "softcap", ("a number", "the string '5'")),
    "softcap-switch": ({"softcap": True}, "softcap", ("a number", "True")),
    "softcap-that-learns": (
        {"softcap": nn.Parameter(torch.tensor(5.0))},
        "softcap",
        ("a Parameter", "could not learn"),
    ),
    "scale-that-learns": (
        {"scale": nn.Parameter(torch.tensor(0.3))},
        "scale",
        ("a Parameter", "could not learn", "multiply query"),
    ),
    "scale-tensor": ({"scale": torch.tensor(0.3)}, "scale", ("a tensor", "multiply query")),
    "scale-word": ({"scale": "0.3"}, "scale", ("finite number", "the string '0.3'")),
    "scale-list": ({"scale": [0.3]}, "scale", ("finite number", "[0.3]")),
    "causal-word": ({"is_causal": "no"}, "is_causal", ("True or False", "'no'")),
    "causal-none": ({"is_causal": None}, "is_causal", ("True or False", "None")),
    "gqa-word": ({"enable_gqa": "no"}, "enable_gqa", ("True or False", "'no'")),
    "impl-list": ({"impl": ["cpu"]}, "impl", ("auto", "['cpu']")),
    "impl-none": ({"impl": None}, "impl", ("auto", "None")),
    "impl-array": ({"impl": np.array(["cpu", "auto"])}, "impl", ("auto", "numpy.ndarray")),
    "window-none": ({"window_size": None}, "window_size", ("(left, right)", "None")),
    "window-of-none": ({"window_size": (None, None)}, "window_size", ("-1", "(None, None)")),
    "window-float": ({"window_size": (2.0, 0)}, "window_size", ("whole", "(2.0, 0)")),
    "window-nan": ({"window_size": (math.nan, 0)}, "window_size", ("whole", "(nan, 0)")),
    "window-word": ({"window_size": "11"}, "window_size", ("whole", "'11'")),
    "window-float-tensors": (
        {"window_size": (torch.tensor(2.5), 0)},
        "window_size",
        ("whole", "tensor(2.5"),
    ),
    "window-number": ({"window_size": 3}, "window_size", ("(left, right)", "3")),
    "tolerance-switch": ({"skip_tolerance": True}, "skip_tolerance", ("rounding", "True")),
    "tolerance-tensor": (
        {"skip_tolerance": torch.tensor(0.1)},
        "skip_tolerance",
        ("rounding", "a tensor"),
    ),
    "tolerance-none": ({"skip_tolerance": None}, "skip_tolerance", ("rounding", "None")),
    "bias-switch": ({"bias": True}, "bias", ("number", "True")),
    "bias-list": ({"bias": [-1.0]}, "bias", ("number, a tensor or a bias policy", "[-1.0]")),
    "bias-numpy": ({"bias": np.zeros((4, 1, 1))}, "bias", ("number, a tensor", "numpy.ndarray")),
    "bias-values-that-are-none": ({"bias": HeadValues([-1.0] * 4)}, "bias", ("tensor", "[-1.0")),
    "bias-policy-without-an-answer": (
        {"bias": Silent()},
        "bias",
        ("Silent.resolve", "number or a tensor", "None"),
    ),
    "bias-word": ({"bias": "-log n"}, "bias", ("number, a tensor or a bias policy", "str")),
    "bias-class": ({"bias": RowLSE}, "bias", ("number, a tensor or a bias policy", "type")),
}
WRONG_VALUES = not_dense("alibi_slopes") | {
    "softcap-zero": ({"softcap": 0.0}, "softcap", ("positive", "0.0")),
    "softcap-negative": ({"softcap": -2.5}, "softcap", ("positive", "-2.5")),
    "softcap-infinite": ({"softcap": math.inf}, "softcap", ("finite", "inf")),
    "softcap-nan": ({"softcap": math.nan}, "softcap", ("positive", "nan")),
    "scale-infinite": ({"scale": math.inf}, "scale", ("finite", "inf")),
    "scale-nan": ({"scale": math.nan}, "scale", ("finite", "nan")),
    "softcap-zero-in-fp32": ({"softcap": 1e-300}, "softcap", ("positive", "1e-300")),
    "softcap-infinite-in-fp32": ({"softcap": 1e300}, "softcap", ("finite", "1e+300")),
    "scale-huge": ({"scale": 10**400}, "scale", ("finite number", "1329 bits")),
    "scale-infinite-in-fp32": ({"scale": -1e300}, "scale", ("finite", "-1e+300")),
    "window-of-three": ({"window_size": (1, 2, 3)}, "window_size", ("(left, right)", "(1, 2, 3)")),
    "window-below-minus-one": ({"window_size": (-2, 0)}, "window_size", ("-1", "(-2, 0)")),
    "tolerance-negative": ({"skip_tolerance": -0.5}, "skip_tolerance", ("rounding", "-0.5")),
    "tolerance-nan": ({"skip_tolerance": math.nan}, "skip_tolerance", ("rounding", "nan")),
    "tolerance-infinite": ({"skip_tolerance": math.inf}, "skip_tolerance", ("rounding", "inf")),
    "tolerance-word": ({"skip_tolerance": "none"}, "skip_tolerance", ('"rounding"', "'none'")),
    "impl-unknown": ({"impl": "flash"}, "impl", ("auto", "reference", "tiled", "'flash'")),
    "slopes-integer": (
        {"alibi_slopes": torch.ones(4, dtype=torch.int64)},
        "alibi_slopes",
        ("floating", "torch.int64"),
    ),
    "slopes-of-other-heads": (
        {"alibi_slopes": ones(3)},
        "alibi_slopes",
        ("(4,)", "(2, 4)", "(3,)"),
    ),
    "slopes-of-other-batch": (
        {"alibi_slopes": ones(3, 4)},
        "alibi_slopes",
        ("(4,)", "(2, 4)", "(3, 4)"),
    ),
    "slopes-elsewhere": (
        {"alibi_slopes": ones(4, device="meta")},
        "alibi_slopes",
        ("device", "meta", "cpu"),
    ),
    "bias-nan": ({"bias": math.nan}, "bias", ("finite", "nan")),
    "bias-infinite": ({"bias": -math.inf}, "bias", ("finite", "-inf")),
    "bias-huge": ({"bias": 10**400}, "bias", ("finite", "1329 bits")),
    "bias-infinite-in-fp32": ({"bias": 1e300}, "bias", ("finite", "1e+300")),
    "bias-sparse": ({"bias": torch.zeros(7, 7).to_sparse()}, "bias", ("dense", "sparse_coo")),
    "bias-nested": ({"bias": nested()}, "bias", ("dense", "nested")),
    "bias-constant-of-integers": (
        {"bias": Constant(torch.tensor(-1))},
        "bias",
        ("floating", "torch.int64"),
    ),
    "bias-vector-of-other-heads": ({"bias": ones(3)}, "bias", ("(4,)", "(3,)", "(1, 1, 1, keys)")),
    "bias-integer": (
        {"bias": torch.zeros(4, 1, 1, dtype=torch.int64)},
        "bias",
        ("floating", "torch.int64"),
    ),
    "bias-elsewhere": ({"bias": ones(4, 1, 1, device="meta")}, "bias", ("device", "meta", "cpu")),
    "bias-learned-of-other-heads": ({"bias": Learned(0.0, num_heads=3)}, "bias", ("3 heads", "4")),
    "bias-values-of-other-heads": (
        {"bias": HeadValues(torch.zeros(3))},
        "bias",
        ("HeadValues", "3 heads", "4"),
    ),
    "bias-effective-of-other-heads": (
        {"bias": NegLogEffectiveLength((0.5, 0.1), 8)},
        "bias",
        ("2 slopes", "4 heads"),
    ),
}
