"""Tiles of a call: slices of its tensors, and addition of tile results to full tensors.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim, E value dim,
A pairs of batch and head that are active in a tile, T rows and S columns of a tile.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.attention import masking
from sigmoid_attention.attention.bounds import TileBounds, tile_bounds
from sigmoid_attention.attention.impl import reference


@dataclass(frozen=True)
class Tiles:
    """The tensors of a call; `cut` returns a tile for some pairs of batch and head."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor
    attn_mask: Tensor | None
    alibi_slopes: Tensor | None
    scale: float
    softcap: float | None
    left: int
    right: int
    block_q: int
    block_k: int

    @property
    def dtype(self) -> torch.dtype:
        return reference.compute_dtype(self.query.dtype)

    @property
    def float_mask(self) -> Tensor | None:
        mask = self.attn_mask
        return None if mask is None or mask.dtype == torch.bool else mask

    def bounds(self) -> TileBounds:
        return tile_bounds(
            self.query,
            self.key,
            bias=self.bias,
            scale=self.scale,
            block_q=self.block_q,
            block_k=self.block_k,
            window=(self.left, self.right),
            attn_mask=self.attn_mask,
            alibi_slopes=self.alibi_slopes,
            softcap=self.softcap,
        )

    def rows(self, i: int) -> slice:
        return slice(i * self.block_q, min((i + 1) * self.block_q, self.query.shape[2]))

    def columns(self, j: int) -> slice:
        return slice(j * self.block_k, min((j + 1) * self.block_k, self.key.shape[2]))

    def cut(self, i: int, j: int, active: Tensor) -> "Tile":
        """Tile (i, j) of the pairs in ``active``, flat indices of batch and head."""
        heads = self.query.shape[1]
        b, h = active // heads, active % heads
        return Tile(self, self.rows(i), self.columns(j), b, h, h * self.key.shape[1] // heads)


@dataclass(frozen=True)
class Tile:
    """One tile of the pairs (b, h), whose keys are those of head g."""

    of: Tiles
    rows: slice
    columns: slice
    b: Tensor
    h: Tensor
    g: Tensor

    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query (A, T, D), key (A, S, D) and value (A, S, E)."""
        of = self.of
        return self.of_rows(of.query), self.of_columns(of.key), self.of_columns(of.value)

    def of_rows(self, rows_BHQE: Tensor) -> Tensor:
        return rows_BHQE[:, :, self.rows][self.b, self.h].to(self.of.dtype)

    def of_columns(self, columns_BGKD: Tensor) -> Tensor:
        return columns_BGKD[:, :, self.columns][self.b, self.g].to(self.of.dtype)

    def add_to_rows(self, total_BHQE: Tensor, tile_ATE: Tensor) -> None:
        total_BHQE[:, :, self.rows].index_put_((self.b, self.h), tile_ATE, accumulate=True)

    def add_to_columns(self, total_BGKD: Tensor, tile_ASD: Tensor) -> None:
        total_BGKD[:, :, self.columns].index_put_((self.b, self.g), tile_ASD, accumulate=True)

    def _window_of(self, term: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The part of a broadcastable (B, H, Q, K) tensor in this tile, and the pairs' indices."""
        term = term.view((1,) * (4 - term.dim()) + tuple(term.shape))
        rows = self.rows if term.shape[2] > 1 else slice(None)
        columns = self.columns if term.shape[3] > 1 else slice(None)
        b = self.b if term.shape[0] > 1 else torch.zeros_like(self.b)
        h = self.h if term.shape[1] > 1 else torch.zeros_like(self.h)
        return term[:, :, rows, columns], b, h

    def of_term(self, term: Tensor) -> Tensor:
        window, b, h = self._window_of(term)
        return window[b, h]

    def add_to_term(self, total: Tensor, tile_ATS: Tensor) -> None:
        window, b, h = self._window_of(total)
        for dim in (1, 2):
            if window.shape[dim + 1] == 1:
                tile_ATS = tile_ATS.sum(dim, keepdim=True)
        window.index_put_((b, h), tile_ATS, accumulate=True)

    def offset(self) -> Tensor:
        queries, keys = self.of.query.shape[2], self.of.key.shape[2]
        position = masking.query_positions(queries, keys, self.of.query.device)[self.rows]
        # Only the offsets of this tile, for memory of the size of a tile.
        return masking.offsets(
            position - self.columns.start, self.columns.stop - self.columns.start
        )

    def of_heads(self, heads: Tensor) -> Tensor:
        """The pairs' entries of an (H,) or (B, H) tensor."""
        return heads[self.h] if heads.dim() == 1 else heads[self.b, self.h]

    def add_to_heads(self, total: Tensor, pairs_A: Tensor) -> None:
        index = (self.h,) if total.dim() == 1 else (self.b, self.h)
        total.index_put_(index, pairs_A, accumulate=True)

    def extra(self) -> Tensor:
        """The sum of the terms that are added to the capped scores, (A, T or 1, S or 1)."""
        extra = self.of_term(self.of.bias).to(self.of.dtype)
        if self.of.float_mask is not None:
            extra = extra + self.of_term(self.of.float_mask).to(self.of.dtype)
        if self.of.alibi_slopes is not None:
            slopes = self.of_heads(self.of.alibi_slopes)
            extra = extra + reference.position_bias(self.offset(), slopes, self.of.dtype)
        return extra

    def visible(self) -> Tensor | None:
        visible = masking.in_window(self.offset(), (self.of.left, self.of.right))
        if self.of.attn_mask is not None:
            visible = masking.both(visible, masking.attended(self.of_term(self.of.attn_mask)))
        return visible
