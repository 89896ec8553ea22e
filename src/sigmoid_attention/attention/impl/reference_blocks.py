"""The definition on a checked problem, by blocks of rows where the array of scores is large.

Memory is linear then, except for what autograd keeps of each block for a gradient.
"""

import torch
from torch import Tensor

from sigmoid_attention.attention import masking
from sigmoid_attention.attention.impl import reference
from sigmoid_attention.attention.impl.reference import AttentionStatistics
from sigmoid_attention.attention.problem import Problem

# Above this many scores the definition's (Q, K) arrays no longer stay near the processor, and tiles
# are both smaller and faster (docs/log.md).
DENSE_SCORES = 2**23


def attend(problem: Problem) -> Tensor:
    """The operator, in the layout of the problem's query."""
    dense = problem.padded()

    def output(rows: slice) -> Tensor:
        weights_BHQK, _ = _weights(problem, dense, rows)
        return reference.output(weights_BHQK, dense.value, problem.dropout_p, dense.query.dtype)

    return problem.unpadded(_joined([output(rows) for rows in _blocks(problem)]))


def statistics(problem: Problem) -> AttentionStatistics:
    """Mass, largest weight and number of visible keys of each row, before dropout."""
    dense = problem.padded()
    parts = [reference.row_statistics(*_weights(problem, dense, rows)) for rows in _blocks(problem)]
    return AttentionStatistics(*(problem.unpadded(_joined(x)) for x in zip(*parts, strict=True)))


def refuse(problem: Problem) -> None:
    """The definition takes every problem."""


def _weights(problem: Problem, dense: Problem, rows: slice) -> tuple[Tensor, Tensor | None]:
    """The weights of some rows, and which keys these see."""
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
