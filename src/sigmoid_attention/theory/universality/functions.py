"""Permutation-equivariant target functions: five named ones, or an imported one.

Shape letters: N tokens, D channels.
"""

import importlib
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments

# Maps (N, D) to (N, D) in float64; a permutation of the input tokens permutes the output equally.
Function = Callable[[Tensor], Tensor]

SHARPNESS = 3.0
RANK_STEEP, EDGE_STEEP = 4.0, 8.0


def sorting(x_ND: Tensor) -> Tensor:
    """Each token's soft rank in its channel, from 0 for the smallest to 1 for the largest.

    The rank is the mean over the other tokens j of clamp(4 (x_i - x_j) + 1/2, 0, 1). A sorted list
    would not be equivariant, and exact ranks jump where tokens are equal.

    Example:
        >>> sorting(torch.tensor([[0.3], [0.9], [0.1], [0.6]])).T
        tensor([[0.3333, 1.0000, 0.0000, 0.6667]])
    """
    above_NND = (RANK_STEEP * (x_ND[:, None] - x_ND) + 0.5).clamp(0, 1)
    # The term j = i is 1/2.
    return (above_NND.sum(1) - 0.5) / max(len(x_ND) - 1, 1)


def centre(x_ND: Tensor) -> Tensor:
    """x_i - mean_j x_j."""
    return x_ND - x_ND.mean(0)


def maximum(x_ND: Tensor) -> Tensor:
    """max_j x_j in each channel, for every token."""
    return x_ND.amax(0).expand_as(x_ND)


def mix(x_ND: Tensor) -> Tensor:
    """sum_j softmax_j(3 x_i . x_j) sin(3 x_j): a smooth mix of all tokens."""
    weights_NN = (SHARPNESS * x_ND @ x_ND.T).softmax(-1)
    return weights_NN @ torch.sin(SHARPNESS * x_ND)


def edge(x_ND: Tensor) -> Tensor:
    """clamp(8 (x_i - mean_j x_j) + 1/2, 0, 1): a steep ramp from 0 below the mean to 1 above."""
    return (EDGE_STEEP * centre(x_ND) + 0.5).clamp(0, 1)


FUNCTIONS: dict[str, Function] = {
    "sorting": sorting,
    "centre": centre,
    "max": maximum,
    "mix": mix,
    "edge": edge,
}


def function(name: str) -> Function:
    """The function called ``name``: one of `FUNCTIONS`, or "package.module:function".

    Raises ``TypeError`` if the name is no string, ``ValueError`` if there is none of that name.

    Example:
        >>> function("max") is maximum, function("torch:sin")(torch.zeros(1)).item()
        (True, 0.0)
        >>> function("median")
        Traceback (most recent call last):
        ...
        ValueError: function must be one of sorting, centre, max, mix, edge, or ...
    """
    arguments.instance("name", name, str, "the name of a function")
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"function must be one of {', '.join(FUNCTIONS)}, or package.module:function, "
            f"got {name!r}"
        )
    try:
        imported = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"function: {name!r} cannot be imported ({error})") from error
    if not callable(imported):
        raise ValueError(f"function: {name!r} is a {type(imported).__name__} and cannot be called")
    return cast(Function, imported)
