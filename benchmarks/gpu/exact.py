r"""The exact result of a call, in float64, and the error that rounding to its dtype must cause.

    u_ij = cap(s q_i.k_j) + b_ij + m_ij - a |p_i - j|      w = sigmoid(u) where visible, else 0
    g_ij = w (1 - w) (dO_i . v_j),  c_ij = 1 - (cap / softcap)^2
    O = w V     dQ = s (g c) K     dK = s (g c)' Q     dV = w' dO     db, dm, da: sums of g

for some rows i and columns j of a problem of any length: the output and the gradient of a query
need that row of w, the gradients of a key and a value that column. **The floor** is the same with w
and g rounded to the dtype, since a product of matrices takes its operands in it, and with the
results rounded. No kernel can avoid this error; errors are given in units of it.

Shape letters: H query heads, G key heads, Q queries, K keys, D head dim, E value dim, R rows,
C columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.attention import masking

Named = dict[str, Tensor]
Rounding = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Piece:
    """One sequence of a call: query (H, Q, D), key (G, K, D), value (G, K, E), upstream (H, Q, E).

    The last query stands on the last key. Bias and mask broadcast to (H, Q, K).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    upstream: Tensor
    scale: float
    bias: float | Tensor = 0.0
    attn_mask: Tensor | None = None
    slopes: Tensor | None = None
    softcap: float | None = None
    window: masking.Window = (-1, -1)

    @property
    def group(self) -> int:
        return self.query.shape[0] // self.key.shape[0]


@dataclass(frozen=True)
class _Block:
    """Weights and gradients of the logits for some rows and some columns of a head."""

    weights: Tensor
    logits: Tensor  # the gradient of the logits
    products: Tensor  # the gradient of q.k


def expected(piece: Piece, rows_R: Tensor, columns_C: Tensor, rounded: Rounding) -> Named:
    """Output (H, R, E) and gradients: query (H, R, D), key (G, C, D), value (G, C, E).

    Where all rows are asked for, also those of bias, attn_mask and alibi_slopes, in their shapes.
    """
    all_Q = torch.arange(piece.query.shape[1], device=piece.query.device)
    all_K = torch.arange(piece.key.shape[1], device=piece.query.device)
    heads, key_heads = piece.query.shape[0], piece.key.shape[0]
    complete = len(rows_R) == len(all_Q)
    output, on_query, of_logits = [], [], []
    on_key = [0.0] * key_heads
    on_value = [0.0] * key_heads
    for head in range(heads):
        key_head = head // piece.group
        query_QD, key_KD = piece.query[head].double(), piece.key[key_head].double()
        value_KE, upstream_QE = piece.value[key_head].double(), piece.upstream[head].double()
        across = _block(piece, head, rows_R, all_K)
        output.append(rounded(across.weights) @ value_KE)
        on_query.append(rounded(across.products) @ key_KD * piece.scale)
        down = across if complete and len(columns_C) == len(all_K) else None
        down = down or _block(piece, head, all_Q, columns_C)
        on_key[key_head] = on_key[key_head] + rounded(down.products).T @ query_QD * piece.scale
        on_value[key_head] = on_value[key_head] + rounded(down.weights).T @ upstream_QE
        if complete:
            of_logits.append(rounded(across.logits))
    results = {
        "output": torch.stack(output),
        "query": torch.stack(on_query),
        "key": torch.stack(on_key),  # pyright: ignore[reportArgumentType]
        "value": torch.stack(on_value),  # pyright: ignore[reportArgumentType]
    }
    if complete:
        results |= _of_terms(piece, torch.stack(of_logits))
    return {name: rounded(result) for name, result in results.items()}


def _block(piece: Piece, head: int, rows_R: Tensor, columns_C: Tensor) -> _Block:
    key_head = head // piece.group
    query_RD, upstream_RE = (
        piece.query[head][rows_R].double(),
        piece.upstream[head][rows_R].double(),
    )
    key_CD, value_CE = (
        piece.key[key_head][columns_C].double(),
        piece.value[key_head][columns_C].double(),
    )
    logits_RC = query_RD @ key_CD.T * piece.scale
    steep_RC = torch.ones_like(logits_RC)
    if piece.softcap is not None:
        share_RC = torch.tanh(logits_RC / piece.softcap)
        logits_RC, steep_RC = piece.softcap * share_RC, 1 - share_RC.square()
    position_R1 = (rows_R + piece.key.shape[1] - piece.query.shape[1])[:, None]
    offset_RC = position_R1 - columns_C
    visible = masking.in_window(offset_RC, piece.window)
    for term in (piece.bias, piece.attn_mask):
        if isinstance(term, Tensor):
            part = _part(piece, term, head, rows_R, columns_C)
            if part.dtype == torch.bool:
                visible = masking.both(visible, part)
            else:
                logits_RC = logits_RC + part.double()
        elif term is not None:
            logits_RC = logits_RC + term
    if piece.slopes is not None:
        logits_RC = logits_RC - piece.slopes[head].double() * offset_RC.abs()
    weights_RC = torch.sigmoid(logits_RC)
    if visible is not None:
        weights_RC = weights_RC.masked_fill(~visible, 0.0)
    gradient_RC = weights_RC * torch.sigmoid(-logits_RC) * (upstream_RE @ value_CE.T)
    return _Block(weights_RC, gradient_RC, gradient_RC * steep_RC)


def _part(piece: Piece, term: Tensor, head: int, rows_R: Tensor, columns_C: Tensor) -> Tensor:
    shape = piece.query.shape[0], piece.query.shape[1], piece.key.shape[1]
    return term.expand(shape)[head][rows_R][:, columns_C]


def _of_terms(piece: Piece, logits_HQK: Tensor) -> Named:
    results = {}
    for name, term in (("bias", piece.bias), ("attn_mask", piece.attn_mask)):
        if isinstance(term, Tensor) and term.is_floating_point():
            results[name] = logits_HQK.sum_to_size(term.shape)
    if piece.slopes is not None:
        queries, keys = logits_HQK.shape[1:]
        position_Q1 = masking.query_positions(queries, keys, logits_HQK.device)
        distance_QK = masking.offsets(position_Q1, keys).abs()
        results["alibi_slopes"] = -(logits_HQK * distance_QK).sum((1, 2))
    return results


def to_dtype(dtype: torch.dtype) -> Rounding:
    """The rounding to a dtype."""
    return lambda exact: exact.to(dtype).double()
