"""A few new queries against a cache of keys and values, contiguous or paged.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim, E value dim,
P pages in the cache, S tokens a page, M pages a sequence.
"""

import torch
from torch import Tensor

from sigmoid_attention.attention import checks, geometry
from sigmoid_attention.attention.api import Answer, Bias, run, with_bias
from sigmoid_attention.attention.problem import Problem


def _gathered(pages_PSGD: Tensor, block_table_BM: Tensor) -> Tensor:
    """The pages of each sequence in order, (B, G, M * S, D)."""
    return pages_PSGD[block_table_BM].flatten(1, 2).transpose(1, 2)


def _used_pages(block_table_BM: Tensor, seqused_k: Tensor, page_size: int) -> Tensor:
    """The table with page 0 in the places that no token has reached, which may hold anything."""
    starts_M = torch.arange(block_table_BM.shape[1], device=block_table_BM.device) * page_size
    return block_table_BM.long().masked_fill(starts_M >= seqused_k[:, None], 0)


def _check_paged(
    query: Tensor, key: Tensor, value: Tensor, block_table: Tensor, seqused_k: Tensor
) -> None:
    for name, cache in (("key_cache", key), ("value_cache", value)):
        if cache.dim() != 4:
            raise ValueError(
                f"{name}: with a block_table must be (pages, page_size, key_heads, dim), "
                f"got {tuple(cache.shape)}"
            )
    if block_table.dim() != 2 or block_table.shape[0] != query.shape[0]:
        raise ValueError(
            f"block_table: must be (batch, pages of a sequence) with batch {query.shape[0]}, "
            f"got {tuple(block_table.shape)}"
        )
    checks.lengths("block_table", block_table, tuple(block_table.shape), query.device)
    checks.lengths("seqused_k", seqused_k, (query.shape[0],), query.device)
    if torch.compiler.is_compiling() or block_table.numel() == 0:
        return
    used = _used_pages(block_table, seqused_k, key.shape[1])
    low, high = int(used.min()), int(used.max())
    if low < 0 or high >= key.shape[0]:
        raise ValueError(
            f"block_table: pages must lie in 0 to {key.shape[0] - 1}, got {low} to {high}"
        )


def sigmoid_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    seqused_k: Tensor,
    block_table: Tensor | None = None,
    bias: Bias | None = None,
    scale: float | None = None,
    is_causal: bool = True,
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    enable_gqa: bool = False,
    skip_tolerance: float | str = "rounding",
    impl: str = "auto",
    return_aux: bool = False,
) -> Answer:
    """Sigmoid attention of the last queries of each sequence against its cache.

    Sequence s has ``seqused_k[s]`` tokens in the cache and its queries are the last of them, so
    query i stands at seqused_k[s] - queries + i; the formula is that of :func:`sigmoid_attention`.
    Nothing is normalised, so a cache that is split over devices is answered by adding the parts.

    Args:
        query: (batch, heads, queries, head_dim), usually one query.
        key_cache: (batch, key_heads, capacity, head_dim), or with ``block_table`` the paged layout
            (pages, page_size, key_heads, head_dim). value_cache: likewise, with value_dim.
        seqused_k: (batch,) int, tokens in the cache, those of ``query`` included.
        block_table: (batch, pages of a sequence) int, which page holds which part; entries that
            ``seqused_k`` does not reach are not read.
        bias: required: a cache's current length is not the training length, so None raises
            ``ValueError``. A tensor is broadcastable to (batch, heads, queries, capacity).
        is_causal: matters for several queries only; True, unlike elsewhere, because these are
            the last tokens of a text.
        Others: as for :func:`sigmoid_attention`.

    Returns:
        (batch, heads, queries, value_dim), and with ``return_aux`` the rows' statistics.

    Raises:
        ValueError: an argument does not fit; the sentence names it.

    Example:
        >>> import torch
        >>> from sigmoid_attention import NegLogLength, sigmoid_decode
        >>> q, k, v = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
        >>> used = torch.tensor([9, 5])
        >>> sigmoid_decode(q, k, v, seqused_k=used, bias=NegLogLength(64), enable_gqa=True).shape
        torch.Size([2, 4, 1, 8])
    """
    names = ("query", "key_cache", "value_cache")
    checks.same_kind(query, key_cache, value_cache, names)
    if query.dim() != 4:
        raise ValueError(f"query: must be (batch, heads, length, dim), got {tuple(query.shape)}")
    if block_table is not None:
        _check_paged(query, key_cache, value_cache, block_table, seqused_k)
        block_table = _used_pages(block_table, seqused_k, key_cache.shape[1])
        key_cache = _gathered(key_cache, block_table)
        value_cache = _gathered(value_cache, block_table)
    checks.dense_shapes(query, key_cache, value_cache, names)
    checks.head_groups(query.shape[1], key_cache.shape[1], enable_gqa, name="key_cache")
    batch, heads, queries, head_dim = query.shape
    capacity = key_cache.shape[2]
    checks.lengths("seqused_k", seqused_k, (batch,), query.device)
    if not torch.compiler.is_compiling() and batch > 0:
        least, most = int(seqused_k.min()), int(seqused_k.max())
        if least < 0 or most > capacity:
            raise ValueError(
                f"seqused_k: must lie in 0 to the cache's capacity {capacity}, "
                f"got {least} to {most}"
            )
    if bias is None:
        raise ValueError(
            "bias: a cache's current length is not the length that the model was trained with; "
            "give that length, e.g. bias=NegLogLength(1024)"
        )
    checks.bias_kind(bias)
    checks.slopes(alibi_slopes, batch, heads, query.device)
    scale = checks.settings(
        head_dim, scale=scale, softcap=softcap, window_size=window_size, dropout_p=0.0
    )
    tolerance, relative = checks.tolerance(skip_tolerance, query.dtype)
    used = seqused_k[:, None, None, None]
    within = torch.arange(capacity, device=query.device) < used
    # A cache is allocated, not filled: what lies beyond the used part may be anything, and even a
    # weight of zero would carry its NaN into the answer.
    beyond = ~within.mT
    key_cache, value_cache = (c.masked_fill(beyond, 0) for c in (key_cache, value_cache))
    problem = Problem(
        query=query,
        key=key_cache,
        value=value_cache,
        scale=scale,
        softcap=softcap,
        bias=0.0,
        attn_mask=None,
        alibi_slopes=alibi_slopes,
        window=geometry.effective_window(is_causal, window_size),
        dropout_p=0.0,
        tolerance=tolerance,
        tolerance_is_relative=relative,
        position_Q1=torch.arange(queries, device=query.device)[:, None] + (used - queries),
        extra_visible=within,
    )
    return run(with_bias(problem, bias), impl, return_aux)
