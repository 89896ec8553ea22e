"""flash-attn's cached attention: rotate, append to the cache in place, attend.

Shape letters: B batch, C rows of the cache, P pages, S query tokens, N new key tokens, L cache
length or page size, H query heads, G key heads, D head dim, R half of the rotated channels,
M pages of a sequence.
"""

from typing import Any

import torch
from torch import Tensor

from sigmoid_attention.attention import (
    arguments,
    decode,
    index_tensors,
    sigmoid_decode,
    torch_state,
    validation,
)
from sigmoid_attention.attention.api import Bias
from sigmoid_attention.attention.impl.reference import compute_dtype
from sigmoid_attention.attention.torch_function import overridable
from sigmoid_attention.integrations.flash_settings import check_four_dimensional, operator_settings


@overridable
@torch.no_grad()
def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
    *,
    sigmoid_bias: Bias | None = None,
) -> Tensor:
    """Append k and v to the cache in place, then attend from q to the whole cache.

    As in flash-attn 2.8 there is no gradient, the last query stands on the last key, and with
    rotary tables the new keys are rotated to their places; so are the queries where ``causal`` or
    a window gives each its own place, else all of them to the place ``cache_seqlens``.

    Args:
        q: (B, S, H, D).
        k_cache, v_cache: (C, L, G, D) with a row for each sequence, or with ``block_table``
            (P, L, G, D), where sequence b's token t is token t % L of page block_table[b, t // L].
        k, v: (B, N, G, D), both or neither.
        rotary_cos, rotary_sin: (places, R), with k and v only; the first 2 R channels turn, in
            pairs of neighbours (``rotary_interleaved``) or of halves.
        cache_seqlens: tokens in the cache before this call, one number or (B,); None for a cache
            that is full. Wanted with k and v.
        cache_batch_idx: (B,), the cache's row of each sequence; None for its first B rows.
        num_splits: has no effect; parts of the keys are summed as the implementation likes.
        sigmoid_bias: required: a cache's current length is not the training length. Otherwise as
            in :mod:`~sigmoid_attention.integrations.flash_attn`, as are the arguments not named.

    Returns:
        (B, S, H, value_dim).

    Raises:
        TypeError, ValueError: an argument has a wrong type, or does not fit; the sentence names it.
        NotImplementedError: ``cache_leftpad``; and ``return_softmax_lse``, which a sigmoid does
            not have: partial results over disjoint keys add.

    Example:
        >>> from sigmoid_attention import NegLogLength
        >>> k_cache, v_cache = torch.zeros(2, 3, 64, 2, 16).unbind(0)
        >>> q, k, v = torch.randn(3, 4, 16), torch.randn(3, 2, 16), torch.randn(3, 2, 16)
        >>> out = flash_attn_with_kvcache(
        ...     q[:, None], k_cache, v_cache, k[:, None], v[:, None], cache_seqlens=5,
        ...     causal=True, sigmoid_bias=NegLogLength(64),
        ... )
        >>> out.shape, torch.equal(k_cache[:, 5], k)
        (torch.Size([3, 1, 4, 16]), True)
    """
    if cache_leftpad is not None:
        raise NotImplementedError("cache_leftpad: a cache that begins late is not offered")
    if return_softmax_lse:
        raise NotImplementedError(
            "return_softmax_lse: a sigmoid has no log-sum-exp; partial results over disjoint keys "
            "add up as they are"
        )
    if sigmoid_bias is None:
        raise ValueError(
            "sigmoid_bias: a cache's current length is not the length that the model was trained "
            "with; give that length, e.g. sigmoid_bias=NegLogLength(1024)"
        )
    for name, tensor in (("q", q), ("k_cache", k_cache), ("v_cache", v_cache)):
        check_four_dimensional(name, tensor)
    batch = q.shape[0]
    _check_new(k, v, k_cache, v_cache, batch)
    table_BM = _table(batch, k_cache, cache_batch_idx, block_table)
    lengths_B = _lengths(cache_seqlens, k_cache, table_BM, k)
    arguments.switch("rotary_interleaved", rotary_interleaved)
    settings: dict[str, Any] = operator_settings(
        softmax_scale, causal, window_size, softcap, alibi_slopes, sigmoid_bias, q.shape[2]
    )
    if rotary_cos is not None or rotary_sin is not None:
        if k is None or rotary_cos is None or rotary_sin is None:
            raise ValueError("rotary_cos, rotary_sin must come together, and with k and v")
        unlimited = settings["window_size"] == (-1, -1)
        turned_queries = q.shape[1] if causal or not unlimited else 1
        places_BN = _places(lengths_B, max(turned_queries, k.shape[1]))
        places_BN = _check_rotary(rotary_cos, rotary_sin, places_BN, q.shape[3])
        queries_at, keys_at = places_BN[:, :turned_queries], places_BN[:, : k.shape[1]]
        q = _rotated(q, rotary_cos, rotary_sin, queries_at, rotary_interleaved)
        k = _rotated(k, rotary_cos, rotary_sin, keys_at, rotary_interleaved)
    new = 0 if k is None else k.shape[1]
    if block_table is None and cache_batch_idx is None:
        # The operator reads rows in their order a little faster than through a table.
        keys, values, table = k_cache[:batch].transpose(1, 2), v_cache[:batch].transpose(1, 2), None
    else:
        keys, values, table = k_cache, v_cache, table_BM
    tensors = (q.transpose(1, 2), keys, values)
    settings |= {"seqused_k": lengths_B + new, "block_table": table}
    if k is not None and v is not None:
        page_BN, inside_BN = _behind(lengths_B, new, k_cache, table_BM)
        # A call that is refused has written nothing. A graph keeps no other order of its
        # operators, so that it writes to places which only the checked lengths tell.
        checked = decode.checked(*tensors, **settings).sequences
        if (
            not torch_state.has_values(q)
            and index_tensors.values_are_readable(q.device)
            and checked is not None
        ):
            inside_BN = _places(checked.length_k_B - new, new) % k_cache.shape[1]
        k_cache[page_BN, inside_BN] = k
        v_cache[page_BN, inside_BN] = v
    out = sigmoid_decode(*tensors, **settings)
    return out.transpose(1, 2).contiguous()


def _table(
    batch: int, k_cache: Tensor, cache_batch_idx: Tensor | None, block_table: Tensor | None
) -> Tensor:
    """(B, M): the pages of each sequence. In a cache without pages each row is one page."""
    if block_table is not None:
        if cache_batch_idx is not None:
            raise ValueError("cache_batch_idx: a block_table already says where a sequence is")
        arguments.dense("block_table", block_table)
        if block_table.dim() != 2 or block_table.shape[0] != batch:
            raise ValueError(
                f"block_table must be (batch, pages of a sequence) with batch {batch}, "
                f"got {tuple(block_table.shape)}"
            )
        validation.lengths("block_table", block_table, tuple(block_table.shape), k_cache.device)
        return block_table.long()
    if cache_batch_idx is not None:
        validation.lengths("cache_batch_idx", cache_batch_idx, (batch,), k_cache.device)
        return cache_batch_idx.long()[:, None]
    if k_cache.shape[0] < batch:
        raise ValueError(
            f"k_cache must have a row for each of {batch} sequences, got {k_cache.shape[0]}"
        )
    return torch.arange(batch, device=k_cache.device)[:, None]


def _lengths(
    cache_seqlens: int | Tensor | None, k_cache: Tensor, table_BM: Tensor, k: Tensor | None
) -> Tensor:
    """(B,): tokens in the cache, checked to leave room for the new ones."""
    batch, pages = table_BM.shape
    capacity = pages * k_cache.shape[1]
    if cache_seqlens is None and k is not None:
        raise ValueError("cache_seqlens must say where k and v go, got None")
    lengths = capacity if cache_seqlens is None else cache_seqlens
    if not isinstance(lengths, Tensor):
        number = arguments.whole("cache_seqlens", lengths, 0, "a whole number, or (batch,) of them")
        lengths = torch.full((batch,), number, device=k_cache.device)
    validation.lengths("cache_seqlens", lengths, (batch,), k_cache.device)
    new = 0 if k is None else k.shape[1]
    sentence = (
        "cache_seqlens must leave room for {room} new tokens in a cache of {size}, "
        "got {low} to {high}"
    )
    return index_tensors.fitting(lengths, new, capacity, sentence)


def _check_new(
    k: Tensor | None, v: Tensor | None, k_cache: Tensor, v_cache: Tensor, batch: int
) -> None:
    if k is None and v is None:
        return
    if k is None or v is None:
        raise ValueError(f"k, v must come together, got only {'k' if v is None else 'v'}")
    for name, new, cache in (("k", k, k_cache), ("v", v, v_cache)):
        check_four_dimensional(name, new)
        validation.on_device(name, new, cache.device)
        wanted = (batch, k.shape[1], *cache.shape[2:])
        if tuple(new.shape) != wanted or new.dtype != cache.dtype:
            raise ValueError(
                f"{name} must be {wanted} of {cache.dtype} like its cache, "
                f"got {tuple(new.shape)} of {new.dtype}"
            )


def _check_rotary(cos: Tensor, sin: Tensor, places_BN: Tensor, head_dim: int) -> Tensor:
    """The positions of the rotated tokens; each has its angles in the table."""
    for name, angles in (("rotary_cos", cos), ("rotary_sin", sin)):
        arguments.dense(name, angles)
        validation.on_device(name, angles, places_BN.device)
    if cos.dim() != 2 or cos.shape != sin.shape or 2 * cos.shape[1] > head_dim:
        raise ValueError(
            f"rotary_cos, rotary_sin must be (places, half the rotated channels) with at most "
            f"{head_dim // 2} of these, got {tuple(cos.shape)} and {tuple(sin.shape)}"
        )
    sentence = "rotary_cos must have {needed} places, got {size}"
    return index_tensors.fitting(places_BN, 1, cos.shape[0], sentence)


def _behind(
    lengths_B: Tensor, new: int, k_cache: Tensor, table_BM: Tensor
) -> tuple[Tensor, Tensor]:
    """Page and position in the page, both (B, N), of the new tokens of each sequence."""
    places_BN = _places(lengths_B, new)
    pages_BN = table_BM.gather(1, places_BN // k_cache.shape[1])
    sentence = (
        "block_table, cache_batch_idx must lie in 0 to {last} where new tokens go, "
        "got {low} to {high}"
    )
    pages_BN = index_tensors.fitting(pages_BN, 1, k_cache.shape[0], sentence)
    return pages_BN, places_BN % k_cache.shape[1]


def _places(lengths_B: Tensor, tokens: int) -> Tensor:
    """(B, tokens): the positions after the tokens that each sequence has in the cache."""
    return lengths_B[:, None] + torch.arange(tokens, device=lengths_B.device)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, at: Tensor, interleaved: bool) -> Tensor:
    """x (B, N, H, D); each pair of the first 2 R channels is rotated by its position's angle."""
    half, dtype = cos.shape[1], compute_dtype(x.dtype)
    cos_BN1R, sin_BN1R = (angles[at].unsqueeze(2).to(dtype) for angles in (cos, sin))
    turning = x[..., : 2 * half].to(dtype)
    pairs = turning.unflatten(-1, (half, 2) if interleaved else (2, half))
    first, second = pairs.unbind(-1 if interleaved else -2)
    turned = (first * cos_BN1R - second * sin_BN1R, second * cos_BN1R + first * sin_BN1R)
    stacked = torch.stack(turned, -1 if interleaved else -2).flatten(-2)
    return torch.cat((stacked.to(x.dtype), x[..., 2 * half :]), -1)
