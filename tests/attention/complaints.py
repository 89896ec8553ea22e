"""Tables of bad input: every complaint is one sentence that names the argument, what it got, what
it wants.

Each row is what is wrong with an otherwise good call, the name that the sentence must begin with,
and what it must mention.
"""

import math

import pytest
import torch
from torch import Tensor

from sigmoid_attention.attention import HeadValues, Learned, NegLogEffectiveLength, RowLSE


def ones(*sizes: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.ones(sizes, dtype=dtype, device=device)


def longs(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def complaint(function, arguments: dict) -> str:
    with pytest.raises(ValueError) as caught:
        function(**arguments)
    return str(caught.value)


def assert_sentence(sentence: str, name: str, mentions: tuple[str, ...]) -> None:
    assert sentence.startswith(f"{name}: "), sentence
    assert "\n" not in sentence
    for mention in mentions:
        assert mention in sentence, f"{mention!r} is not in {sentence!r}"


def table(rows: dict):
    return pytest.mark.parametrize("wrong, name, mentions", rows.values(), ids=rows.keys())


# Wrong in the same words for dense, packed and cached calls of batch 2 with 4 heads.
SETTINGS = {
    "softcap-zero": ({"softcap": 0.0}, "softcap", ("positive", "0.0")),
    "softcap-negative": ({"softcap": -2.5}, "softcap", ("positive", "-2.5")),
    "softcap-infinite": ({"softcap": math.inf}, "softcap", ("finite", "inf")),
    "softcap-nan": ({"softcap": math.nan}, "softcap", ("positive", "nan")),
    "scale-infinite": ({"scale": math.inf}, "scale", ("finite", "inf")),
    "scale-nan": ({"scale": math.nan}, "scale", ("finite", "nan")),
    "window-number": ({"window_size": 3}, "window_size", ("(left, right)", "3")),
    "window-of-three": ({"window_size": (1, 2, 3)}, "window_size", ("(left, right)", "(1, 2, 3)")),
    "window-below-minus-one": ({"window_size": (-2, 0)}, "window_size", ("-1", "(-2, 0)")),
    "tolerance-negative": ({"skip_tolerance": -0.5}, "skip_tolerance", ("rounding", "-0.5")),
    "tolerance-nan": ({"skip_tolerance": math.nan}, "skip_tolerance", ("rounding", "nan")),
    "tolerance-infinite": ({"skip_tolerance": math.inf}, "skip_tolerance", ("rounding", "inf")),
    "tolerance-word": ({"skip_tolerance": "none"}, "skip_tolerance", ('"rounding"', "'none'")),
    "tolerance-none": ({"skip_tolerance": None}, "skip_tolerance", ("rounding", "None")),
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
    "bias-word": ({"bias": "-log n"}, "bias", ("number, a tensor or a bias policy", "str")),
    "bias-class": ({"bias": RowLSE}, "bias", ("number, a tensor or a bias policy", "type")),
    "bias-vector-of-heads": ({"bias": ones(4)}, "bias", ("vector of 4", "(heads, 1, 1)")),
    "bias-integer": (
        {"bias": torch.zeros(4, 1, 1, dtype=torch.int64)},
        "bias",
        ("floating", "torch.int64"),
    ),
    "bias-elsewhere": ({"bias": ones(4, 1, 1, device="meta")}, "bias", ("device", "meta", "cpu")),
    "bias-learned-of-other-heads": ({"bias": Learned(0.0, heads=3)}, "bias", ("3 heads", "4")),
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
