"""The bias of a call that names none: minus the log of the number of its own keys."""

import sys
import warnings

import torch

from sigmoid_attention.attention.bias import NegLogLength

# The number of keys in the first call without a bias, and whether another number was warned about.
_first_keys: int | None = None
_warned = False


def default_bias(keys: int, name: str = "bias") -> NegLogLength | float:
    """``NegLogLength(keys)``; warns once in a process when calls come with different lengths.

    A model that was trained at one length gives other answers at another one then, for the same
    tokens. ``name`` is that of the caller's argument.
    """
    global _first_keys, _warned
    if keys == 0:
        return 0.0
    if torch.compiler.is_compiling():
        # A graph stands for all lengths, and must not depend on what was warned about.
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
    """The level of `warnings.warn` in `default_bias` that names the line outside this library."""
    frame, level = sys._getframe(2), 2
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("sigmoid_attention."):
        frame, level = frame.f_back, level + 1
    return level
