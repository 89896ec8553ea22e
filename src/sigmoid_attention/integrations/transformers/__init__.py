"""Sigmoid attention in the models of transformers, from version 5.17.

`register` adds ``attn_implementation="sigmoid"``; `convert` converts a model to it.
"""

from sigmoid_attention.integrations.importing import remedy

try:
    from sigmoid_attention.integrations.transformers.biases import PerHead
    from sigmoid_attention.integrations.transformers.convert import (
        attention_modules,
        convert,
        replace_bias,
        set_bias,
    )
    from sigmoid_attention.integrations.transformers.forward import sigmoid_attention_forward
    from sigmoid_attention.integrations.transformers.probe import find_attention_modules
    from sigmoid_attention.integrations.transformers.registration import register
except (ImportError, RuntimeError) as error:
    raise ImportError(remedy("transformers", "5.17 or newer (tested to 5.24)", error)) from error

__all__ = [
    "PerHead",
    "attention_modules",
    "convert",
    "find_attention_modules",
    "register",
    "replace_bias",
    "set_bias",
    "sigmoid_attention_forward",
]
