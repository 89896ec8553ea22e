"""The fused kernel with the mass of each row beside the output, as an operator of torch's library.

Shape letters: B sequences, H query heads, Q queries, E value dim, I query blocks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sigmoid_attention.attention.impl.cpu.ops import (
    compute,
    empty_visits,
    forward_gradients,
    operands,
    save_forward,
)
from sigmoid_attention.attention.impl.layout import empty_output
from sigmoid_attention.attention.problem import Problem


def attend_with_mass(problem: Problem) -> tuple[Tensor, Tensor]:
    """The output, and the sum of each row's weights, (B, H, Q) in the layout of the query.

    Raises ``NotImplementedError`` in the same cases as ``ops.attend``.
    """
    arguments, straight = operands(problem)
    if straight:
        mass_BHQ1 = _empty_mass(problem.query)
        return compute(None, mass_BHQ1, *arguments), mass_BHQ1[..., 0]
    out, mass_BHQ1, _ = forward_with_mass(*arguments)
    return out, mass_BHQ1[..., 0]


def _empty_mass(query: Tensor) -> Tensor:
    return empty_output(query, 1, dtype=torch.float32)


@torch.library.custom_op("sigmoid_attention::cpu_forward_with_mass", mutates_args=())
def forward_with_mass(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    offsets_and_lengths: Tensor | None,
    block_table: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, H, Q, E), mass (B, H, Q, 1), and the visits of ``ops.forward``, (B, H, I)."""
    settings = (offsets_and_lengths, block_table, sizes, numbers)
    visits, mass = empty_visits(query, *settings), _empty_mass(query)
    tensors = (query, key, value, bias, attn_mask, alibi_slopes)
    return compute(visits, mass, *tensors, *settings), mass, visits


@forward_with_mass.register_fake
def _(query, key, value, *arguments):
    visits = empty_visits(query, *arguments[3:])
    return empty_output(query, value.shape[3]), _empty_mass(query), visits


forward_with_mass.register_autograd(forward_gradients, setup_context=save_forward)
