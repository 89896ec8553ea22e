"""Memory layouts and logit settings of a call, shared by the fused implementations.

Shape letters: B sequences, H query heads, Q queries, K keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

TermKind = Literal["none", "flags", "heads", "rows", "columns", "pairs"]


@dataclass(frozen=True)
class Layout:
    """The fields of a call's :class:`Sequences`, for custom ops.

    ``offsets_and_lengths_4B`` is None for a dense call, ``block_table_BM`` for keys without pages.
    """

    offsets_and_lengths_4B: Tensor | None
    block_table_BM: Tensor | None
    max_q: int
    max_k: int
    packed: bool

    def fitted(self, *terms: Tensor | None) -> "Layout":
        """The layout with max_q and max_k of the longest sequence, or of a larger term."""
        if self.offsets_and_lengths_4B is None or not self.packed:
            return self
        max_q, max_k = self.offsets_and_lengths_4B[1::2].amax(1).tolist()
        for term in terms:
            if term is not None and term.dim() > 1:
                max_q, max_k = max(max_q, term.shape[-2]), max(max_k, term.shape[-1])
        return replace(self, max_q=max_q, max_k=max_k)

    def sequences(self, query: Tensor) -> int:
        return (
            query.shape[0]
            if self.offsets_and_lengths_4B is None
            else self.offsets_and_lengths_4B.shape[1]
        )


@dataclass(frozen=True)
class LogitSettings:
    """The numbers that define logits and weights.

    ``constant`` is added to every logit; a softcap of 0 means none; a window limit of -1 means
    none; ``relative`` measures the tolerance in units of the norm of a row's weights.
    """

    left: int
    right: int
    relative: bool
    scale: float
    softcap: float
    constant: float
    tolerance: float


def rows_are_contiguous(tensor: Tensor) -> bool:
    return tensor.stride(-1) == 1 or tensor.shape[-1] == 1


def with_contiguous_rows(tensor: Tensor) -> Tensor:
    """The tensor, or a contiguous copy if the elements of a row are not contiguous."""
    return tensor if rows_are_contiguous(tensor) else tensor.contiguous()


def four_sizes(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's sizes along (B, H, Q, K)."""
    return (1,) * (4 - tensor.dim()) + tuple(tensor.shape)


def term_strides(term: Tensor) -> tuple[int, ...]:
    """A term's strides along (B, H, Q, K), 0 where it broadcasts."""
    pairs = zip(term.shape, term.stride(), strict=True)
    strides = tuple(0 if size == 1 else stride for size, stride in pairs)
    return (0,) * (4 - len(strides)) + strides


def term_kind(term: Tensor | None) -> TermKind:
    """The kind of a bias or mask: its dimensions of queries and keys; a boolean mask is flags."""
    if term is None:
        return "none"
    if term.dtype == torch.bool:
        return "flags"
    by_query, by_key = (size != 1 for size in four_sizes(term)[2:])
    if by_query:
        return "pairs" if by_key else "rows"
    return "columns" if by_key else "heads"


def empty_output(tensor: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised output with the tensor's rows and its memory order of heads and tokens."""
    batch, heads, rows, _ = tensor.shape
    head_and_row = (dim, heads * dim) if tensor.stride(1) < tensor.stride(2) else (rows * dim, dim)
    stride = (heads * rows * dim, *head_and_row, 1)
    return tensor.new_empty_strided((batch, heads, rows, dim), stride, dtype=dtype)


def empty_gradient(wanted: bool, tensor: Tensor | None, query: Tensor) -> Tensor:
    """An uninitialised gradient; of size 0 if it is not wanted."""
    if tensor is None or not wanted:
        return query.new_empty(0)
    return tensor.new_empty(tensor.shape)


def empty_gradients(
    wanted_terms: Sequence[bool], tensors: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Uninitialised gradients of query, key, value, and of bias, mask and slopes if wanted."""
    query, key, value, *terms = tensors
    assert query is not None and key is not None and value is not None
    return (
        *(empty_output(x, x.shape[3]) for x in (query, key, value)),
        *(empty_gradient(*pair, query) for pair in zip(wanted_terms, terms, strict=True)),
    )


def only_wanted(gradients: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Gradients for autograd, with None for those that are not wanted."""
    return [grad if want else None for grad, want in zip(gradients, wanted, strict=True)]
