"""One checked call of the operator: what every implementation is handed.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim, E value dim.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.attention import geometry
from sigmoid_attention.attention.bias import BiasPolicy, RowContext
from sigmoid_attention.attention.reference import compute_dtype, logits


@dataclass(frozen=True)
class Problem:
    """Tensors and settings of one call, checked, with the bias resolved to numbers.

    ``position_Q1`` is (..., Q, 1), the queries' places on the key axis; it is None for the plain
    bottom-right alignment, which is all that fused implementations need. ``extra_visible`` limits
    the keys further where sequences of a batch end early.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    softcap: float | None
    bias: float | Tensor
    attn_mask: Tensor | None
    alibi_slopes: Tensor | None
    window: geometry.Window
    dropout_p: float
    tolerance: float
    tolerance_is_relative: bool
    position_Q1: Tensor | None = None
    extra_visible: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether positions are bottom right and nothing but window and mask limits the keys."""
        return self.position_Q1 is None and self.extra_visible is None

    @property
    def float_mask(self) -> Tensor | None:
        """The mask's numbers where it is added to the logits."""
        mask = self.attn_mask
        return None if mask is None or mask.dtype == torch.bool else mask

    def positions(self) -> Tensor:
        if self.position_Q1 is not None:
            return self.position_Q1
        return geometry.query_positions(
            self.query.shape[2], self.key.shape[2], device=self.query.device
        )

    def offset_and_visible(self) -> tuple[Tensor, Tensor | None]:
        """Offsets (..., Q, K), and the boolean of what may be seen, None for everything."""
        offset_QK = geometry.offsets(self.positions(), self.key.shape[2])
        visible = geometry.both(geometry.in_window(offset_QK, self.window), self.extra_visible)
        if self.attn_mask is not None:
            visible = geometry.both(visible, geometry.attended(self.attn_mask))
        return offset_QK, visible


def resolve_bias(policy: BiasPolicy, problem: Problem) -> float | Tensor:
    """Numbers for a policy, (B, H, Q, 1) broadcastable; ``problem`` carries every other setting."""
    dtype = compute_dtype(problem.query.dtype)

    def visible_counts() -> Tensor:
        if problem.plain:
            return geometry.visible_counts(
                problem.positions(), problem.key.shape[2], problem.window, problem.attn_mask
            )
        offset_QK, visible = problem.offset_and_visible()
        assert visible is not None
        return visible.expand(*visible.shape[:-2], *offset_QK.shape[-2:]).sum(-1, keepdim=True)

    def row_lse() -> Tensor:
        offset_QK, visible = problem.offset_and_visible()
        logits_BHQK = logits(
            problem.query.to(dtype),
            problem.key.to(dtype),
            scale=problem.scale,
            softcap=problem.softcap,
            bias=0.0,
            float_mask=problem.float_mask,
            alibi_slopes=problem.alibi_slopes,
            offset_QK=offset_QK,
        )
        if visible is not None:
            logits_BHQK = logits_BHQK.masked_fill(~visible, -math.inf)
        return logits_BHQK.logsumexp(-1, keepdim=True)

    rows = RowContext(
        heads=problem.query.shape[1],
        dtype=dtype,
        device=problem.query.device,
        visible_counts=visible_counts,
        row_lse=row_lse,
    )
    return policy.resolve(rows)
