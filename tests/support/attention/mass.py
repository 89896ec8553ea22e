"""The operators with the mass of a row as the last column of the output.

So what holds for an output is tested for a mass by the same helpers.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sigmoid_attention.attention import (
    sigmoid_attention,
    sigmoid_attention_with_mass,
    sigmoid_decode,
    sigmoid_decode_with_mass,
    sigmoid_varlen_attention,
    sigmoid_varlen_attention_with_mass,
)

WITH_MASS: dict[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]] = {
    sigmoid_attention: sigmoid_attention_with_mass,
    sigmoid_varlen_attention: sigmoid_varlen_attention_with_mass,
    sigmoid_decode: sigmoid_decode_with_mass,
}


def joined(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The operator with one more column, the mass; both in the dtype of the mass."""

    def call(*tensors, **arguments) -> Tensor:
        out, mass = WITH_MASS[operator](*tensors, **arguments)
        return torch.cat([out.to(mass.dtype), mass[..., None]], -1)

    return call
