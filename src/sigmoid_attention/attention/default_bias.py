"""The default bias of a call: minus the logarithm of its number of keys."""

import sys
import warnings

import torch

from sigmoid_attention.attention.bias import NegLogLength

# The number of keys of the first call without a bias, and whether a different number of keys has
# already caused the warning.
_first_keys: int | None = None
_warned = False


def default_bias(keys: int, name: str = "bias") -> NegLogLength | float:
    """``NegLogLength(keys)``; warns once per process when calls have different lengths.

    With this bias the output for the same tokens depends on the length of the call, so a model
    differs from its training at another length. ``name`` is the name of the caller's argument.
    """
    global _first_keys, _warned
    if keys == 0:
        return 0.0
    if torch.compiler.is_compiling():
        # A compiled graph serves all lengths, and must not depend on the state of the warning.
        return NegLogLength(keys)
    if not _warned and isinstance(keys, int):
        _first_keys = _first_keys or keys
        if keys != _first_keys:
            _warned = True
            warnings.warn(
                f"{name}: None means -log(number of keys), and calls came with {_first_keys} and "
                f"{keys} keys, so that the same tokens get other answers; give the training length "
                f"instead, e.g. {name}=NegLogLength(1024)",
                stacklevel=_callers_level(),
            )
    return NegLogLength(keys)


def _callers_level() -> int:
    """The ``stacklevel`` for `default_bias` that points to the caller outside this library."""
    frame, level = sys._getframe(2), 2
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("sigmoid_attention."):
        frame, level = frame.f_back, level + 1
    return level
