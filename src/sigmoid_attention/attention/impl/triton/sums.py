"""Room for the gradients of what is added to the logits, and their sums to the shapes of that.

The kernels give each such gradient in the coarsest form that still holds it: per row for a term
without a key dimension, per key for one without a query dimension or with neither, per pair for
the rest.

Shape letters: B sequences, H query heads, Q queries, K keys.
"""

from functools import partial

import torch
from torch import Tensor

from sigmoid_attention.attention.impl.triton import tile
from sigmoid_attention.attention.impl.triton.call import as_four, cdiv, form

_BY_FORM = {
    tile.HEADS.value: "columns",
    tile.ROWS.value: "rows",
    tile.COLUMNS.value: "columns",
    tile.PAIRS.value: "pairs",
}


class Sums:
    """What the kernels add gradients to, in fp32; a tensor that is None is not wanted."""

    def __init__(
        self,
        query: Tensor,
        shape: tuple[int, int, int, int],
        block_k: int,
        bias: Tensor | None,
        mask: Tensor | None,
        slopes: Tensor | None,
        in_order: bool,
    ) -> None:
        batch, heads, queries, keys = shape
        self.query, self.bias, self.mask, self.slopes = query, bias, mask, slopes
        # Not torch.zeros: the caller's default dtype and device may be others.
        zeros = partial(query.new_zeros, dtype=torch.float32)
        terms = [term for term in (bias, mask) if term is not None]
        wanted = {_BY_FORM[form(term)] for term in terms}
        self.rows = zeros((batch, heads, queries)) if "rows" in wanted else None
        self.columns = zeros((batch, heads, keys)) if "columns" in wanted else None
        self.pairs, self.pairs_shared = None, False
        if "pairs" in wanted:
            outer = (batch, heads)
            if not in_order:
                paired = [as_four(term)[:2] for term in terms if _BY_FORM[form(term)] == "pairs"]
                outer = tuple(map(max, zip(*paired, strict=True)))
            self.pairs = zeros((*outer, queries, keys))
            self.pairs_shared = outer != (batch, heads)
        self.parts_of_slopes = (
            None if slopes is None else zeros((batch, heads, cdiv(keys, block_k)))
        )

    def of_bias(self) -> Tensor:
        return self._of(self.bias)

    def of_mask(self) -> Tensor:
        return self._of(self.mask)

    def of_slopes(self) -> Tensor:
        if self.slopes is None or self.parts_of_slopes is None:
            return self.query.new_empty(0)
        total_BH = self.parts_of_slopes.sum(-1, dtype=torch.float64)
        return (total_BH if self.slopes.dim() == 2 else total_BH.sum(0)).to(self.slopes.dtype)

    def _of(self, term: Tensor | None) -> Tensor:
        if term is None:
            return self.query.new_empty(0)
        forms = {
            "rows": lambda: self.rows[..., None],  # pyright: ignore
            "columns": lambda: self.columns[:, :, None],  # pyright: ignore
            "pairs": lambda: self.pairs,
        }
        summed = forms[_BY_FORM[form(term)]]().sum_to_size(as_four(term))
        return summed.reshape(term.shape).to(term.dtype, copy=True)
