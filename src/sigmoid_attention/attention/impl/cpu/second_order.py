"""The backward pass of the fused kernel's backward pass, as an operator of torch's library.

Shape letters: B sequences, H query heads, Q queries.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sigmoid_attention.attention.impl import double_backward
from sigmoid_attention.attention.impl.cpu.abi import BLOCK_KEYS, unpack
from sigmoid_attention.attention.impl.layout import empty_gradient


@torch.library.custom_op("sigmoid_attention::cpu_double_backward", mutates_args=())
def backward_of_backward(
    on_query: Tensor,
    on_key: Tensor,
    on_value: Tensor,
    on_bias: Tensor,
    on_mask: Tensor,
    on_slopes: Tensor,
    grad_out: Tensor,
    visits: Tensor,
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
    wanted: Sequence[bool],
    grad_mass: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``backward``'s results, weighted by ``on_...``, for its inputs.

    The last two are for ``grad_out`` and ``grad_mass``. Of bias, mask, slopes and ``grad_mass``
    those that are absent or not ``wanted`` are empty.
    """
    layout, settings, block_queries = unpack(offsets_and_lengths, block_table, sizes, numbers)
    return double_backward.gradients_with_mass(  # pyright: ignore[reportReturnType]
        (on_query, on_key, on_value, on_bias, on_mask, on_slopes),
        grad_out,
        grad_mass,
        visits,
        (query, key, value, bias, attn_mask, alibi_slopes),
        layout,
        settings,
        wanted,
        block_q=block_queries,
        block_k=BLOCK_KEYS,
    )


@backward_of_backward.register_fake
def _(*arguments):
    # A default is not among the arguments.
    grad_out, (wanted, *grad_mass) = arguments[6], arguments[18:]
    gradients = double_backward.fake_gradients(grad_out, arguments[8:14], wanted)
    return *gradients, empty_gradient(True, grad_mass[0] if grad_mass else None, grad_out)
