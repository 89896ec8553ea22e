"""Room for the gradients of what is added to the logits, and their sums to the shapes of that.

The kernel gives each such gradient in the coarsest form that still holds it: per row for a bias
without a key dimension, per key for one without a query dimension, per pair for the rest.

Shape letters: B sequences, H query heads, Q queries, K keys, S parts of the keys.
"""

from functools import partial

import torch
from torch import Tensor

from sigmoid_attention.attention.impl.cpu.abi import BLOCK_KEYS

# Work units a thread should find where they do not come out even.
_UNITS_A_THREAD = 4


def _as_four(tensor: Tensor) -> tuple[int, ...]:
    return (1,) * (4 - tensor.dim()) + tuple(tensor.shape)


def _form(tensor: Tensor) -> str:
    _, _, queries, keys = _as_four(tensor)
    if keys == 1:
        return "rows"
    return "columns" if queries == 1 else "pairs"


def splits(units: int, threads: int, keys: int) -> int:
    """Parts into which each key head is cut, so that ``units`` key heads occupy all threads."""
    blocks = max(1, -(-keys // BLOCK_KEYS))
    parts = 1
    enough = threads * _UNITS_A_THREAD
    while parts < blocks and units * parts < enough and (units * parts) % threads:
        parts += 1
    return parts


class Room:
    """What the kernel adds gradients to, always in fp32; a tensor that is None is not wanted."""

    def __init__(
        self,
        query: Tensor,
        shape: tuple[int, int, int, int],
        key_heads: int,
        bias: Tensor | None,
        mask: Tensor | None,
        slopes: Tensor | None,
    ) -> None:
        batch, heads, queries, keys = shape
        self.query, self.bias, self.mask, self.slopes = query, bias, mask, slopes
        # Not torch.zeros: the caller's default dtype and device may be others.
        zeros = partial(query.new_zeros, dtype=torch.float32)
        wanted = {_form(term): term for term in (bias, mask) if term is not None}
        paired = [_as_four(t) for t in (bias, mask) if t is not None and _form(t) == "pairs"]
        self.pairs = None
        units = batch * key_heads
        if paired:
            outer = tuple(max(sizes) for sizes in list(zip(*paired, strict=True))[:2])
            self.pairs = zeros((*outer, queries, keys))
            # Units that share a gradient run one after the other.
            units = (batch if outer[0] > 1 else 1) * (key_heads if outer[1] > 1 else 1)
        self.splits = splits(max(1, units), torch.get_num_threads(), keys)
        self.rows = zeros((batch, heads, self.splits, queries)) if "rows" in wanted else None
        self.columns = zeros((batch, heads, keys)) if "columns" in wanted else None
        self.parts_of_slopes = (
            None if slopes is None else zeros((batch, heads, self.splits), dtype=torch.float64)
        )

    def of_bias(self) -> Tensor:
        return self._of(self.bias)

    def of_mask(self) -> Tensor:
        return self._of(self.mask)

    def of_slopes(self) -> Tensor:
        if self.slopes is None or self.parts_of_slopes is None:
            return self.query.new_empty(0)
        total_BH = self.parts_of_slopes.sum(-1)
        return (total_BH if self.slopes.dim() == 2 else total_BH.sum(0)).to(self.slopes.dtype)

    def _of(self, term: Tensor | None) -> Tensor:
        if term is None:
            return self.query.new_empty(0)
        forms = {
            "rows": lambda: self.rows.sum(2)[..., None],  # pyright: ignore
            "columns": lambda: self.columns[:, :, None],  # pyright: ignore
            "pairs": lambda: self.pairs,
        }
        summed = forms[_form(term)]().sum_to_size(_as_four(term))
        return summed.reshape(term.shape).to(term.dtype, copy=True)
