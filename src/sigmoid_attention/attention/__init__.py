"""Sigmoid attention, O = sigmoid(scale Q K^T + bias) V: one definition, several implementations."""

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
from sigmoid_attention.attention.centred_keys import CentredKeys, LearnedCentring
from sigmoid_attention.attention.decode import sigmoid_decode
from sigmoid_attention.attention.dispatch import Explanation, Implementation
from sigmoid_attention.attention.impl.reference import AttentionStatistics
from sigmoid_attention.attention.inspection import attention_statistics, explain
from sigmoid_attention.attention.mass import (
    sigmoid_attention_with_mass,
    sigmoid_decode_with_mass,
    sigmoid_varlen_attention_with_mass,
)
from sigmoid_attention.attention.validation import SkipTolerance
from sigmoid_attention.attention.varlen import sigmoid_varlen_attention

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
