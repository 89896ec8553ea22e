"""The operator O = sigmoid(scale Q K^T + bias) V: one meaning, several implementations."""

from sigmoid_attention.attention.api import sigmoid_attention
from sigmoid_attention.attention.bias import (
    BiasPolicy,
    Constant,
    HeadValues,
    Learned,
    NegLogEffectiveLength,
    NegLogLength,
    NegLogVisible,
    RowLSE,
)
from sigmoid_attention.attention.decode import sigmoid_decode
from sigmoid_attention.attention.impl.reference import AttentionAux
from sigmoid_attention.attention.varlen import sigmoid_varlen_attention

__all__ = [
    "AttentionAux",
    "BiasPolicy",
    "Constant",
    "HeadValues",
    "Learned",
    "NegLogEffectiveLength",
    "NegLogLength",
    "NegLogVisible",
    "RowLSE",
    "sigmoid_attention",
    "sigmoid_decode",
    "sigmoid_varlen_attention",
]
