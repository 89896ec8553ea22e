"""The error of a result against float64, on a sample of rows of a long problem.

The definition is written out again for single rows: the gradient of a query needs that query and
all keys, the gradient of a key or a value that key and all queries, so a sample of each costs a few
hundred rows of scores for each head.

Shape letters: R sampled rows, N tokens, D head dim.
"""

import torch
from torch import Tensor

from benchmarks.operations import OPERATIONS, Attend, Case, Inputs, alibi_slopes, work
from benchmarks.peers import minus_log_length

SAMPLED_ROWS = 256


def relative_errors(case: Case, tensors: Inputs, attend: Attend) -> dict[str, float]:
    """|answer - float64| / |float64| over the sampled rows: of the output, or of each gradient.

    For causal cases with slopes.
    """
    answer = work(case, tensors, attend)()
    parts = (answer,) if isinstance(answer, Tensor) else answer
    rows_R = sampled_rows(case.length)
    squares = torch.zeros(len(parts), 2, dtype=torch.float64)
    for batch in range(case.batch):
        for head in range(case.heads):
            expected = _expected(case, tensors, batch, head, rows_R)
            for i, (part, exact_RD) in enumerate(zip(parts, expected, strict=True)):
                computed_RD = part[batch, head, rows_R].double()
                squares[i, 0] += (computed_RD - exact_RD).square().sum()
                squares[i, 1] += exact_RD.square().sum()
    backward = OPERATIONS[case.operation].backward
    names = ("query", "key", "value") if backward else ("output",)
    return {name: float((a / b).sqrt()) for name, (a, b) in zip(names, squares, strict=True)}


def sampled_rows(length: int) -> Tensor:
    """Up to 256 row indices, the first and the last among them, the same every time."""
    generator = torch.Generator().manual_seed(0)
    rows_R = torch.randperm(length, generator=generator)[: SAMPLED_ROWS - 2]
    return torch.cat((rows_R, torch.tensor([0, length - 1]))).unique()


def _expected(
    case: Case, tensors: Inputs, batch: int, head: int, rows_R: Tensor
) -> tuple[Tensor, ...]:
    query, key, value, upstream = (
        x[batch, head].double()
        for x in (tensors.query, tensors.key, tensors.value, tensors.upstream)
    )
    slope = alibi_slopes(case.heads)[head].double()
    scale, bias = case.dim**-0.5, minus_log_length(case)
    all_N = torch.arange(case.length)

    def weights(scores: Tensor, distance: Tensor) -> Tensor:
        weighed = torch.sigmoid(scores * scale + bias - slope * distance)
        return weighed.where(distance >= 0, 0.0)

    def logit_gradient(weights: Tensor, weight_gradient: Tensor) -> Tensor:
        return scale * weights * (1 - weights) * weight_gradient

    # Rows of the weights: sampled queries, all keys.
    by_query_RN = weights(query[rows_R] @ key.T, rows_R[:, None] - all_N)
    if not OPERATIONS[case.operation].backward:
        return (by_query_RN @ value,)
    # Columns of the weights: sampled keys, all queries.
    by_key_RN = weights(key[rows_R] @ query.T, all_N - rows_R[:, None])
    return (
        logit_gradient(by_query_RN, upstream[rows_R] @ value.T) @ key,
        logit_gradient(by_key_RN, value[rows_R] @ upstream.T) @ query,
        by_key_RN @ upstream,
    )
