"""The mass of a row as one more column of its output, for implementations in plain PyTorch.

mass_i = sum_j w_ij is the output for a value that is 1 everywhere. So the output for the value with
a column of ones holds both, from one pass and with all its derivatives.

Shape letters: B batch, H query heads, Q queries.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sigmoid_attention.attention.problem import Problem


def attend_with_mass(
    attend: Callable[[Problem], Tensor], problem: Problem
) -> tuple[Tensor, Tensor]:
    """The output of ``attend`` in the dtype of the query, and the mass (B, H, Q) in at least fp32.

    ``attend`` gets tensors in at least fp32, the precision in which it computes anyway.
    """
    value = problem.value.to(problem.dtype)
    wide = replace(
        problem,
        query=problem.query.to(problem.dtype),
        key=problem.key.to(problem.dtype),
        value=torch.cat([value, value.new_ones(*value.shape[:3], 1)], -1),
    )
    out = attend(wide)
    return out[..., :-1].to(problem.query.dtype), out[..., -1]
