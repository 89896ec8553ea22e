"""The options of an attention layer that make its sigmoid a better match of a softmax.

Each of them is a module or a bias policy of its own; this file checks them and builds the bias.
"""

import functools
import itertools
import warnings
from typing import Any

import torch

from sigmoid_attention.attention import BiasPolicy, Learned, LearnedCentring, validation
from sigmoid_attention.attention.bias import head_values
from sigmoid_attention.nn.mass_exponent import LEARNED, MassExponent
from sigmoid_attention.nn.sizes import finite_number, switch
from sigmoid_attention.nn.state_bias import StateBias

# What each option would do to a softmax.
WITHOUT_EFFECT = {
    "centred_keys": "adds one number to all logits of a row",
    "state_bias": "adds one number to all logits of a row",
    "mass_exponent": "divides by a power of one, the sum of a row's weights",
}


def sigmoid_parts(
    bias: float | BiasPolicy,
    dim: int,
    num_heads: int,
    activation: str,
    centred_keys: bool,
    state_bias: bool,
    mass_exponent: float | str | None,
) -> tuple[float | BiasPolicy | None, MassExponent | None]:
    """The bias of a layer and the division by its mass; None for both under a softmax.

    Raises ``TypeError`` and ``ValueError`` for options that do not fit, also with a softmax.
    """
    centred_keys = switch("centred_keys", centred_keys)
    state_bias = switch("state_bias", state_bias)
    mass_exponent = checked_mass_exponent(mass_exponent)
    if activation == "softmax":
        chosen = (centred_keys, state_bias, mass_exponent is not None)
        for option in itertools.compress(WITHOUT_EFFECT, chosen):
            _warn_without_effect(option)
        return None, None
    bias = validation.layer_bias(bias, num_heads)
    if state_bias:
        bias = _state_bias(bias, dim, num_heads)
    if centred_keys:
        bias = LearnedCentring(bias, num_heads)
    return bias, None if mass_exponent is None else MassExponent(mass_exponent, num_heads)


def checked_mass_exponent(mass_exponent: Any) -> float | str | None:
    """None, a finite number or "learned"."""
    wanted = f"a finite number, {LEARNED!r} or None"
    if mass_exponent is None or (isinstance(mass_exponent, str) and mass_exponent == LEARNED):
        return mass_exponent
    if isinstance(mass_exponent, str):
        raise ValueError(f"mass_exponent must be {wanted}, got {mass_exponent!r}")
    return finite_number("mass_exponent", mass_exponent, wanted)


def _state_bias(bias: float | BiasPolicy, dim: int, num_heads: int) -> StateBias:
    """The state's bias that starts at this one, which may not depend on the rows of a call."""
    if isinstance(bias, Learned):
        return StateBias(bias.value, dim, log_visible=False)
    values = head_values(bias, num_heads, "bias with state_bias")
    return StateBias(torch.tensor(values, dtype=torch.float32), dim, log_visible=False)


@functools.cache
def _warn_without_effect(option: str) -> None:
    warnings.warn(
        f"{option}: has no effect on softmax attention, where it {WITHOUT_EFFECT[option]}",
        stacklevel=4,
    )
