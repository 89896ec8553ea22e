"""The definition for a validated problem, in blocks of rows if the array of scores is large.

Memory is linear in the length then, except for the tensors that autograd saves for a gradient.
"""

import torch
from torch import Tensor

from sigmoid_attention.attention import masking
from sigmoid_attention.attention.impl import ones_column, reference
from sigmoid_attention.attention.impl.reference import AttentionStatistics
from sigmoid_attention.attention.problem import Problem

# Above this many scores the definition's (Q, K) arrays exceed the processor's cache, and `tiled`
# takes less memory and less time (docs/log.md).
DENSE_SCORES = 2**23


def attend(problem: Problem) -> Tensor:
    """The output, in the layout of the problem's query."""
    dense = problem.padded()

    def output(rows: slice) -> Tensor:
        weights_BHQK, _ = _weights(problem, dense, rows)
        return reference.output(weights_BHQK, dense.value, problem.dropout_p, dense.query.dtype)

    return problem.unpadded(_joined([output(rows) for rows in _blocks(problem)]))


def attend_with_mass(problem: Problem) -> tuple[Tensor, Tensor]:
    """The output, and the sum of each row's weights, (B, H, Q) in the layout of the query."""
    return ones_column.attend_with_mass(attend, problem)


def statistics(problem: Problem) -> AttentionStatistics:
    """Mass, largest weight and number of visible keys of each row, before dropout."""
    dense = problem.padded()
    parts = [reference.row_statistics(*_weights(problem, dense, rows)) for rows in _blocks(problem)]
    return AttentionStatistics(*(problem.unpadded(_joined(x)) for x in zip(*parts, strict=True)))


def refuse(problem: Problem) -> None:
    """Do nothing: the definition supports every problem."""


def _weights(problem: Problem, dense: Problem, rows: slice) -> tuple[Tensor, Tensor | None]:
    """The weights of some rows, and the boolean of their visible keys."""
    bias, float_mask = problem.bias, problem.float_mask
    offset_QK, visible = dense.offset_and_visible(rows)
    weights_BHQK = reference.attention_weights(
        dense.query[:, :, rows],
        dense.key,
        scale=problem.scale,
        softcap=problem.softcap,
        bias=masking.of_rows(bias, rows) if isinstance(bias, Tensor) else bias,
        float_mask=None if float_mask is None else masking.of_rows(float_mask, rows),
        alibi_slopes=problem.alibi_slopes,
        offset_QK=offset_QK,
        visible=visible,
    )
    return weights_BHQK, visible


def _blocks(problem: Problem) -> list[slice]:
    batch, heads, queries, keys = problem.shape
    return masking.blocks_of_rows(queries, batch * heads * keys, DENSE_SCORES)


def _joined(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), 2)
