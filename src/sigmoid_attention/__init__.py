"""Sigmoid attention: the operator, layers that train with it, and a laboratory.

>>> import torch
>>> from sigmoid_attention import NegLogLength, sigmoid_attention
>>> q, k, v = torch.randn(3, 2, 4, 16, 32).unbind(0)
>>> sigmoid_attention(q, k, v, bias=NegLogLength(16), is_causal=True).shape
torch.Size([2, 4, 16, 32])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sigmoid_attention.attention import (
        AttentionAux,
        BiasPolicy,
        Constant,
        Learned,
        NegLogEffectiveLength,
        NegLogLength,
        NegLogVisible,
        RowLSE,
        sigmoid_attention,
        sigmoid_decode,
        sigmoid_varlen_attention,
    )

__version__ = "0.1.0"

__all__ = [
    "AttentionAux",
    "BiasPolicy",
    "Constant",
    "Learned",
    "NegLogEffectiveLength",
    "NegLogLength",
    "NegLogVisible",
    "RowLSE",
    "sigmoid_attention",
    "sigmoid_decode",
    "sigmoid_varlen_attention",
]


def __getattr__(name: str) -> Any:
    # torch takes seconds to load. Whoever asks the command line for help should not wait for it,
    # and the command line sets how torch's threads wait before it is there.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sigmoid_attention import attention

    globals()[name] = getattr(attention, name)
    return globals()[name]
