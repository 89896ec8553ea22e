"""Sigmoid attention: the operator, layers that train with it, and a laboratory.

>>> import torch
>>> from sigmoid_attention import sigmoid_attention
>>> q, k, v = torch.randn(3, 2, 4, 16, 32).unbind(0)
>>> sigmoid_attention(q, k, v, is_causal=True).shape
torch.Size([2, 4, 16, 32])
"""

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
