"""Sigmoid attention in the models of transformers, from version 5.17.

`register` makes ``attn_implementation="sigmoid"`` known, `convert` turns a model over to it.
"""

try:
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        "sigmoid_attention.integrations.transformers needs transformers: "
        "pip install 'sigmoid-attention[transformers]'"
    ) from error

from sigmoid_attention.integrations.transformers.biases import PerHead
from sigmoid_attention.integrations.transformers.convert import (
    attention_modules,
    convert,
    replace_bias,
    set_bias,
)
from sigmoid_attention.integrations.transformers.forward import sigmoid_attention_forward
from sigmoid_attention.integrations.transformers.linear import LinearBias
from sigmoid_attention.integrations.transformers.reach import reached_modules
from sigmoid_attention.integrations.transformers.registration import register

__all__ = [
    "LinearBias",
    "PerHead",
    "attention_modules",
    "convert",
    "reached_modules",
    "register",
    "replace_bias",
    "set_bias",
    "sigmoid_attention_forward",
]
