"""Buffers for the gradients of bias, mask and slopes, and their reduction to the input's shape.

A kernel writes each such gradient in the smallest form: per row for a term without a key dimension,
per key for one without a query dimension, per pair for a term with both. For a term with neither
dimension the kernel chooses the form.

Shape letters: B sequences, H query heads, Q queries, K keys, S parts of the keys.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from sigmoid_attention.attention.impl.layout import TermKind, four_sizes, term_kind


def pair_heads(*terms: Tensor | None) -> tuple[int, int] | None:
    """The batch and head sizes (B', H') of a buffer for all terms with a query and a key dimension;
    None if no term has both."""
    sizes = [four_sizes(t)[:2] for t in terms if t is not None and term_kind(t) == "pairs"]
    if not sizes:
        return None
    batches, heads = zip(*sizes, strict=True)
    return max(batches), max(heads)


class TermGradients:
    """The buffers that a kernel adds gradients to; None for a gradient that is not wanted.

    All are initialised to zero: ``rows`` (B, H, S, Q), ``columns`` (B, H, K), ``pairs``
    (B', H', Q, K) with B' and H' from :func:`pair_heads`, and ``slope_parts`` (B, H, parts). They
    are in fp32, except ``slope_parts``, which is in ``slope_dtype``.

    Args:
        query: a tensor on the device of the buffers.
        shape: (B, H, Q, K).
        bias, mask, slopes: the terms whose gradients are wanted, None for the others.
        heads_as: the form of a term that has neither a query nor a key dimension.
        row_parts: S.
        slope_parts: the number of partial sums of a slope's gradient.
        slope_dtype: the dtype of these parts.
        share_pairs: whether B' and H' are those of the terms. Otherwise they are B and H.
    """

    def __init__(
        self,
        query: Tensor,
        shape: tuple[int, int, int, int],
        bias: Tensor | None,
        mask: Tensor | None,
        slopes: Tensor | None,
        *,
        heads_as: Literal["rows", "columns"],
        row_parts: int,
        slope_parts: int,
        slope_dtype: torch.dtype,
        share_pairs: bool = True,
    ) -> None:
        batch, heads, queries, keys = shape
        self.query, self.bias, self.mask, self.slopes = query, bias, mask, slopes
        self._heads_as: TermKind = heads_as
        self.row_parts = row_parts
        # Not torch.zeros, which uses the caller's default device.
        zeros = partial(query.new_zeros, dtype=torch.float32)
        forms = {self._form(term) for term in (bias, mask) if term is not None}
        self.rows = zeros((batch, heads, row_parts, queries)) if "rows" in forms else None
        self.columns = zeros((batch, heads, keys)) if "columns" in forms else None
        self.pairs, self.pairs_shared = None, False
        if paired := pair_heads(bias, mask):
            outer = paired if share_pairs else (batch, heads)
            self.pairs = zeros((*outer, queries, keys))
            self.pairs_shared = outer != (batch, heads)
        self.slope_parts = (
            None if slopes is None else zeros((batch, heads, slope_parts), dtype=slope_dtype)
        )

    def reduced(self) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of bias, mask and slopes in their shapes; of size 0 if not wanted."""
        return self._of_term(self.bias), self._of_term(self.mask), self._of_slopes()

    def _form(self, term: Tensor) -> TermKind:
        kind = term_kind(term)
        return self._heads_as if kind == "heads" else kind

    def _of_term(self, term: Tensor | None) -> Tensor:
        if term is None:
            return self.query.new_empty(0)
        forms: dict[TermKind, Callable] = {
            "rows": lambda: self.rows.sum(2)[..., None],  # pyright: ignore
            "columns": lambda: self.columns[:, :, None],  # pyright: ignore
            "pairs": lambda: self.pairs,
        }
        summed = forms[self._form(term)]().sum_to_size(four_sizes(term))
        return summed.reshape(term.shape).to(term.dtype, copy=True)

    def _of_slopes(self) -> Tensor:
        if self.slopes is None or self.slope_parts is None:
            return self.query.new_empty(0)
        total_BH = self.slope_parts.sum(-1, dtype=torch.float64)
        return (total_BH if self.slopes.dim() == 2 else total_BH.sum(0)).to(self.slopes.dtype)
