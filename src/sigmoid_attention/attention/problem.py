"""`Problem`, a validated attention call: the input of every implementation.

Shape letters: B batch or sequences, H query heads, G key heads, Q queries, K keys, D head dim,
E value dim, T tokens of packed sequences, P pages of a cache, S tokens a page.
"""

import math
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments, key_means, masking, validation
from sigmoid_attention.attention.bias import Bias, BiasPolicy, once_called
from sigmoid_attention.attention.impl.reference import compute_dtype, logits
from sigmoid_attention.attention.sequences import Sequences


class LogitOptions(TypedDict, total=False):
    """The options that all operators have, beside the bias."""

    scale: float | None
    window_size: tuple[int, int]
    alibi_slopes: Tensor | None
    softcap: float | None
    skip_tolerance: validation.SkipTolerance


class Options(LogitOptions, total=False):
    """The options of `sigmoid_attention` and `sigmoid_varlen_attention`, beside the bias."""

    is_causal: bool
    dropout_p: float


@dataclass(frozen=True)
class Problem:
    """The validated tensors and options of one call, with the bias as a number or a tensor.

    Without ``sequences`` query is (B, H, Q, D), key (B, G, K, D), value (B, G, K, E), and the last
    query is at the position of the last key. With ``sequences`` the tensors are views of the
    caller's tensors:

        packed  query (1, H, T, D), key and value (1, G, T, ...)
        cached  query (B, H, Q, D), key and value (B, G, K, ...) with K the cache's capacity
        paged   query (B, H, Q, D), key and value (P, G, S, ...)

    Bias, mask and slopes always broadcast to ``shape``. The output has the layout of ``query``:
    (1, H, T, E) or (B, H, Q, E). A problem is also the :class:`RowContext` of a bias policy.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    softcap: float | None
    bias: float | Tensor
    attn_mask: Tensor | None
    alibi_slopes: Tensor | None
    window: masking.Window
    dropout_p: float
    tolerance: float
    tolerance_is_relative: bool
    sequences: Sequences | None = None

    @classmethod
    def checked(
        cls,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        bias: Bias,
        scale: float | None = None,
        is_causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        alibi_slopes: Tensor | None = None,
        softcap: float | None = None,
        dropout_p: float = 0.0,
        skip_tolerance: validation.SkipTolerance = "rounding",
        attn_mask: Tensor | None = None,
        sequences: Sequences | None = None,
    ) -> "Problem":
        """The problem for validated tensors; this method validates the options.

        Raises ``TypeError`` or ``ValueError`` for an invalid option.
        """
        scale, softcap, window = validation.logit_options(
            query.shape[-1],
            scale=scale,
            softcap=softcap,
            is_causal=is_causal,
            window_size=window_size,
            dropout_p=dropout_p,
        )
        bias = validation.bias_kind(once_called(bias))
        batch = query.shape[0] if sequences is None else sequences.count
        validation.slopes(alibi_slopes, batch, query.shape[1], query.device)
        tolerance, relative = validation.tolerance(skip_tolerance, query.dtype)
        problem = cls(
            query=query,
            key=key,
            value=value,
            scale=scale,
            softcap=softcap,
            bias=0.0,
            attn_mask=attn_mask,
            alibi_slopes=alibi_slopes,
            window=window,
            dropout_p=dropout_p,
            tolerance=tolerance,
            tolerance_is_relative=relative,
            sequences=sequences,
        )
        return problem.with_bias(bias)

    def with_bias(self, bias: Bias) -> "Problem":
        """The problem with this bias; a policy computes its bias from this problem first."""
        if isinstance(bias, BiasPolicy):
            policy, bias = bias, arguments.scalar(bias.resolve(self))
            if not isinstance(bias, Tensor) and not arguments.is_number(bias):
                raise TypeError(
                    f"bias: {type(policy).__name__}.resolve must return a number or a tensor, "
                    f"got {arguments.shown(bias)}"
                )
        if isinstance(bias, Tensor):
            bias = validation.bias_tensor(bias, self.shape, self.device)
        return replace(self, bias=bias)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, Q, K); with ``sequences`` Q and K are the largest lengths."""
        batch, heads, queries, _ = self.query.shape
        if self.sequences is None:
            return batch, heads, queries, self.key.shape[2]
        return self.sequences.count, heads, self.sequences.max_q, self.sequences.max_k

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The precision of logits, bias and weights."""
        return compute_dtype(self.query.dtype)

    @property
    def device(self) -> torch.device:
        return self.query.device

    @property
    def float_mask(self) -> Tensor | None:
        """The mask if it is a floating one, which is added to the logits, else None."""
        mask = self.attn_mask
        return None if mask is None or mask.dtype == torch.bool else mask

    def operands(self) -> tuple[tuple[Tensor | None, ...], float]:
        """Query, key, value, bias, mask and slopes, and the bias as a number (0 for a tensor)."""
        bias = self.bias
        if not isinstance(bias, Tensor) and torch.compiler.is_compiling():
            # A graph makes a number of a custom op constant; the bias may depend on the lengths.
            bias = self.query.new_full((), bias, dtype=torch.float32)
        tensor, number = (bias, 0.0) if isinstance(bias, Tensor) else (None, bias)
        tensors = (self.query, self.key, self.value, tensor, self.attn_mask, self.alibi_slopes)
        return tensors, number

    def padded(self) -> "Problem":
        """The same call with one batch row per sequence and zeros after its end."""
        own = self.sequences
        if own is None:
            return self
        return replace(
            self,
            query=own.padded_queries(self.query),
            key=own.padded_keys(self.key),
            value=own.padded_keys(self.value),
            sequences=own.padded(),
        )

    def unpadded(self, rows_BHQ: Tensor) -> Tensor:
        """A result for the rows of ``padded()``, in the layout of this call's query."""
        if self.sequences is None:
            return rows_BHQ
        return self.sequences.unpadded(rows_BHQ, self.query.shape[2])

    def positions(self) -> Tensor:
        """The queries' positions on the key axis, (Q, 1) or (B, 1, Q, 1)."""
        if self.sequences is not None:
            return self.sequences.positions()
        queries, keys = self.shape[2:]
        return masking.query_positions(queries, keys, self.device)

    def offset_and_visible(self, rows: slice = slice(None)) -> tuple[Tensor, Tensor | None]:
        """Offsets (..., Q, K), and a boolean, True for visible keys; None if all are visible."""
        offset_QK = masking.offsets(self.positions()[..., rows, :], self.shape[3])
        visible = masking.in_window(offset_QK, self.window)
        if self.sequences is not None:
            visible = masking.both(visible, self.sequences.within())
        if self.attn_mask is not None:
            shown = masking.attended(masking.of_rows(self.attn_mask, rows))
            visible = masking.both(visible, shown)
        return offset_QK, visible

    def visible_counts(self) -> Tensor:
        """Number of keys that each query may see, (..., Q, 1)."""
        keys = self.shape[3] if self.sequences is None else self.sequences.keys()
        if self.attn_mask is None:
            return masking.counts_in_window(self.positions(), keys, self.window)
        return masking.counts_shown(self.attn_mask, self.positions(), keys, self.window)

    def row_lse(self) -> Tensor:
        """Log-sum-exp of each row's visible logits before the bias, (B, H, Q, 1).

        It is computed in blocks of rows, but for a gradient autograd stores all logits.
        """
        dense = self.padded()
        batch, heads, queries, keys = self.shape
        key = dense.key.to(self.dtype)

        def part(rows: slice) -> Tensor:
            offset_QK, visible = dense.offset_and_visible(rows)
            mask = self.float_mask
            logits_BHQK = logits(
                dense.query[:, :, rows].to(self.dtype),
                key,
                scale=self.scale,
                softcap=self.softcap,
                bias=0.0,
                float_mask=None if mask is None else masking.of_rows(mask, rows),
                alibi_slopes=self.alibi_slopes,
                offset_QK=offset_QK,
            )
            if visible is not None:
                logits_BHQK = logits_BHQK.masked_fill(~visible, -math.inf)
            return logits_BHQK.logsumexp(-1, keepdim=True)

        numbers = batch * heads * keys
        blocks = masking.blocks_of_rows(queries, numbers, masking.NUMBERS_OF_A_BLOCK)
        return torch.cat([part(rows) for rows in blocks], -2)

    def mean_logits(self, means: Tensor | None = None) -> Tensor:
        """The scaled product of each query with the mean of the keys that it sees, (B, H, Q, 1)."""
        return self.aligned(key_means.mean_logits(self, means))

    def aligned(self, rows_BHQ: Tensor) -> Tensor:
        """A tensor in the queries' layout, (B, H, Q, ...), in the rows of ``shape``."""
        return rows_BHQ if self.sequences is None else self.sequences.padded_queries(rows_BHQ)
