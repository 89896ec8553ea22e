"""Sigmoid attention: attention functions, layers, training and experiments.

>>> import torch
>>> from sigmoid_attention import NegLogLength, sigmoid_attention
>>> q, k, v = torch.randn(3, 2, 4, 16, 32).unbind(0)
>>> sigmoid_attention(q, k, v, bias=NegLogLength(16), is_causal=True).shape
torch.Size([2, 4, 16, 32])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sigmoid_attention.attention import (
        AttentionStatistics,
        BiasPolicy,
        CentredKeys,
        Constant,
        Explanation,
        HeadValues,
        Implementation,
        Learned,
        LearnedCentring,
        NegLogEffectiveLength,
        NegLogLength,
        NegLogVisible,
        RowLSE,
        SkipTolerance,
        attention_statistics,
        explain,
        sigmoid_attention,
        sigmoid_attention_with_mass,
        sigmoid_decode,
        sigmoid_decode_with_mass,
        sigmoid_varlen_attention,
        sigmoid_varlen_attention_with_mass,
    )

__version__ = "0.1.0"

__all__ = [
    "AttentionStatistics",
    "BiasPolicy",
    "CentredKeys",
    "Constant",
    "Explanation",
    "HeadValues",
    "Implementation",
    "Learned",
    "LearnedCentring",
    "NegLogEffectiveLength",
    "NegLogLength",
    "NegLogVisible",
    "RowLSE",
    "SkipTolerance",
    "attention_statistics",
    "explain",
    "sigmoid_attention",
    "sigmoid_attention_with_mass",
    "sigmoid_decode",
    "sigmoid_decode_with_mass",
    "sigmoid_varlen_attention",
    "sigmoid_varlen_attention_with_mass",
]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import. The command line's help does not need it, and the command line
    # sets how torch's threads wait before torch is imported.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sigmoid_attention import attention

    globals()[name] = getattr(attention, name)
    return globals()[name]
