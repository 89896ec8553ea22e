"""Sigmoid attention number by number: the oracle of the operator's tests.

It uses Python loops over Python floats and none of the library's arithmetic; of the library only
the names of the policies are used. ``rounded`` is applied after every operation. With the identity
this is the definition in float64. With ``to_nearest(torch.float16)`` it is a plain computation in
fp16, whose distance from the definition is the error allowed for the dtype.

Letters: b batch, h query head, i query, j key, d head dim, e value dim, s sequence.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from sigmoid_attention.attention import (
    CentredKeys,
    Constant,
    HeadValues,
    Learned,
    NegLogEffectiveLength,
    NegLogLength,
    NegLogVisible,
    RowLSE,
)

Rounding = Callable[[float], float]


class Expected(NamedTuple):
    """What the operator should return, in float64: the answer and the rows' statistics."""

    out: Tensor
    mass: Tensor
    largest: Tensor
    visible: Tensor


def exact(x: float) -> float:
    return x


def to_nearest(dtype: torch.dtype) -> Rounding:
    return lambda x: torch.tensor(x, dtype=dtype).item()


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x) without overflow on either side."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def hides(entry: bool | float) -> bool:
    return not entry if isinstance(entry, bool) else entry == -math.inf


def row_bias(
    bias, h: int, keys: int, logits: dict[int, float], products: dict[int, float]
) -> float:
    """A policy's bias for one row, given the logits of the keys that it sees, and their products.

    A product is s q.k, the logit before the softcap and all that is added to it.
    """
    match bias:
        case None:
            return -math.log(keys) if keys else 0.0
        case Constant():
            return bias.b
        case NegLogLength():
            return bias.offset - math.log(bias.n)
        case NegLogVisible():
            return -math.log(max(len(logits), bias.at_least))
        case NegLogEffectiveLength():
            slope = bias.alibi_slopes[h]
            return bias.offset - math.log(math.fsum(math.exp(-slope * t) for t in range(bias.n)))
        case HeadValues() | Learned():
            return bias.value[h].item()
        case CentredKeys():
            mean = math.fsum(products.values()) / max(1, len(products))
            strength = torch.as_tensor(bias.strength).flatten().tolist()
            inner = row_bias(bias.bias, h, keys, logits, products)
            return inner - strength[h if len(strength) > 1 else 0] * mean
        case RowLSE():
            top = max(logits.values(), default=0.0)
            total = math.fsum(math.exp(logit - top) for logit in logits.values())
            return -top - math.log(total) if logits else 0.0
        case _:
            return float(bias)


def define(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    bias=None,
    scale: float | None = None,
    is_causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    enable_gqa: bool = False,
    rounded: Rounding = exact,
) -> Expected:
    """O_i = sum_j sigmoid(cap(scale q_i.k_j) + bias + mask - slope |p_i - j|) v_j, literally."""
    batch, heads, queries, head_dim = query.shape
    keys, value_dim = key.shape[2], value.shape[3]
    shared_by = heads // key.shape[1] if enable_gqa else 1
    if scale is None:
        scale = 1 / math.sqrt(head_dim)
    left, right = window_size
    everywhere = (batch, heads, queries, keys)
    q, k, v = query.tolist(), key.tolist(), value.tolist()
    mask = None if attn_mask is None else attn_mask.broadcast_to(everywhere).tolist()
    arguments = bias.broadcast_to(everywhere).tolist() if isinstance(bias, Tensor) else None
    slopes = None if alibi_slopes is None else alibi_slopes.broadcast_to(batch, heads).tolist()

    def sees(b: int, h: int, i: int, j: int) -> bool:
        distance = i + keys - queries - j
        return (
            not (is_causal and distance < 0)
            and not (left >= 0 and distance > left)
            and not (right >= 0 and -distance > right)
            and not (mask is not None and hides(mask[b][h][i][j]))
        )

    def scaled_product(b: int, h: int, i: int, j: int) -> float:
        dot = 0.0
        for d in range(head_dim):
            dot = rounded(dot + rounded(q[b][h][i][d] * k[b][h // shared_by][j][d]))
        return rounded(scale * dot)

    def logit(b: int, h: int, i: int, j: int) -> float:
        """Everything but a policy's bias."""
        u = scaled_product(b, h, i, j)
        if softcap is not None:
            u = rounded(softcap * rounded(math.tanh(rounded(u / softcap))))
        if arguments is not None:
            u = rounded(u + arguments[b][h][i][j])
        if mask is not None and mask[b][h][i][j] is not True:
            u = rounded(u + mask[b][h][i][j])
        if slopes is not None:
            u = rounded(u - rounded(slopes[b][h] * abs(i + keys - queries - j)))
        return u

    out = torch.zeros(batch, heads, queries, value_dim, dtype=torch.float64)
    mass, largest = (torch.zeros(batch, heads, queries, dtype=torch.float64) for _ in range(2))
    visible = torch.zeros(batch, heads, queries, dtype=torch.int64)
    for b, h, i in product(range(batch), range(heads), range(queries)):
        logits = {j: logit(b, h, i, j) for j in range(keys) if sees(b, h, i, j)}
        products = {j: scaled_product(b, h, i, j) for j in logits}
        shift = 0.0
        if arguments is None:
            shift = rounded(row_bias(bias, h, keys, logits, products))
        weights = {j: rounded(sigmoid(rounded(u + shift))) for j, u in logits.items()}
        for e in range(value_dim):
            total = 0.0
            for j, weight in weights.items():
                total = rounded(total + rounded(weight * v[b][h // shared_by][j][e]))
            out[b, h, i, e] = total
        mass[b, h, i] = math.fsum(weights.values())
        largest[b, h, i] = max(weights.values(), default=0.0)
        visible[b, h, i] = len(weights)
    return Expected(out, mass, largest, visible)


def _of_sequence(tensor, s: int, longest: tuple[int, ...], lengths: tuple[int, int]):
    """The part of a bias or of slopes that belongs to one sequence of a batch."""
    if not isinstance(tensor, Tensor):
        return tensor
    return tensor.broadcast_to(longest)[s : s + 1, :, : lengths[0], : lengths[1]]


def define_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    bias,
    alibi_slopes: Tensor | None = None,
    **settings,
) -> Expected:
    """Each sequence by itself, cut out of (tokens, heads, dim) and put back."""
    heads, ends_q, ends_k = query.shape[1], cu_seq_q.tolist(), cu_seq_k.tolist()
    sequences = len(ends_q) - 1
    parts = []
    for s in range(sequences):
        own_q, own_k = slice(*ends_q[s : s + 2]), slice(*ends_k[s : s + 2])
        lengths = (own_q.stop - own_q.start, own_k.stop - own_k.start)
        slopes = alibi_slopes
        if slopes is not None and slopes.dim() == 2:
            slopes = slopes[s : s + 1]
        expected = define(
            query[None, own_q].transpose(1, 2),
            key[None, own_k].transpose(1, 2),
            value[None, own_k].transpose(1, 2),
            bias=_of_sequence(bias, s, (sequences, heads, max_q, max_k), lengths),
            alibi_slopes=slopes,
            **settings,
        )
        parts.append([rows[0].transpose(0, 1) for rows in expected])
    return Expected(*(torch.cat(rows) for rows in zip(*parts, strict=True)))


def define_cached(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    seqused_k: Tensor,
    block_table: Tensor | None = None,
    bias,
    is_causal: bool = True,
    alibi_slopes: Tensor | None = None,
    **settings,
) -> Expected:
    """Each sequence by itself, its tokens fetched one at a time from where the cache holds them."""
    batch, heads, queries, _ = query.shape

    def token(cache: Tensor, s: int, t: int) -> Tensor:
        if block_table is None:
            return cache[s, :, t]
        page, place = divmod(t, cache.shape[1])
        return cache[int(block_table[s, page]), place]

    def tokens(cache: Tensor, s: int, used: int) -> Tensor:
        key_heads = cache.shape[1] if block_table is None else cache.shape[2]
        rows = [token(cache, s, t) for t in range(used)]
        return (
            torch.stack(rows, 1)[None]
            if rows
            else cache.new_zeros(1, key_heads, 0, cache.shape[-1])
        )

    capacity = (
        key_cache.shape[2] if block_table is None else block_table.shape[1] * key_cache.shape[1]
    )
    parts = []
    for s, used in enumerate(seqused_k.tolist()):
        slopes = alibi_slopes
        if slopes is not None and slopes.dim() == 2:
            slopes = slopes[s : s + 1]
        parts.append(
            define(
                query[s : s + 1],
                tokens(key_cache, s, used),
                tokens(value_cache, s, used),
                bias=_of_sequence(bias, s, (batch, heads, queries, capacity), (queries, used)),
                is_causal=is_causal,
                alibi_slopes=slopes,
                **settings,
            )
        )
    return Expected(*(torch.cat(rows) for rows in zip(*parts, strict=True)))
