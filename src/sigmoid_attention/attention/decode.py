"""A few new queries against a cache of keys and values, contiguous or paged.

Shape letters: B batch, M pages of a sequence.
"""

import torch
from torch import Tensor

from sigmoid_attention.attention import checks, geometry, repeated, sequences
from sigmoid_attention.attention.api import Answer, Bias, run, transformed, with_bias
from sigmoid_attention.attention.problem import Problem


def _check_paged(query: Tensor, key: Tensor, value: Tensor, block_table: Tensor) -> None:
    for name, cache in (("key_cache", key), ("value_cache", value)):
        if cache.dim() != 4:
            raise ValueError(
                f"{name}: with a block_table must be (pages, page_size, key_heads, dim), "
                f"got {tuple(cache.shape)}"
            )
    if key.shape[3] != query.shape[3]:
        raise ValueError(
            f"key_cache: head dim must equal query's, "
            f"got {tuple(key.shape)} and {tuple(query.shape)}"
        )
    if value.shape[:3] != key.shape[:3]:
        raise ValueError(
            f"value_cache: pages, page size and heads must equal key_cache's, "
            f"got {tuple(value.shape)} and {tuple(key.shape)}"
        )
    if block_table.dim() != 2 or block_table.shape[0] != query.shape[0]:
        raise ValueError(
            f"block_table: must be (batch, pages of a sequence) with batch {query.shape[0]}, "
            f"got {tuple(block_table.shape)}"
        )
    checks.lengths("block_table", block_table, tuple(block_table.shape), query.device)


def looked_at(device: torch.device) -> bool:
    """Whether anyone may look at the numbers in a tensor: for those of a GPU all would wait."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def _check_pages(used_pages_BM: Tensor, pages: int) -> None:
    """What can only be said of numbers that are looked at."""
    if used_pages_BM.numel() > 0:
        low, high = (int(edge) for edge in used_pages_BM.aminmax())
        if low < 0 or high >= pages:
            raise ValueError(
                f"block_table: pages must lie in 0 to {pages - 1}, got {low} to {high}"
            )


def _check_used(seqused_k: Tensor, capacity: int) -> None:
    """Likewise."""
    used = seqused_k.tolist()
    if used and (min(used) < 0 or max(used) > capacity):
        raise ValueError(
            f"seqused_k: must lie in 0 to the cache's capacity {capacity}, "
            f"got {min(used)} to {max(used)}"
        )


def _decode(problem: Problem, impl: str, return_aux: bool) -> Answer:
    """By the kernel for a few queries where a GPU can run it, else by one for many."""
    if impl == "triton" or (impl == "auto" and problem.device.type == "cuda" and not transformed()):
        try:
            # Triton is there where torch has CUDA, and nowhere else has anyone to import it.
            from sigmoid_attention.attention.triton import decode_operator

            return decode_operator.attend(problem, return_aux)
        except (NotImplementedError, ImportError):
            pass
    return run(problem, impl, return_aux)


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
        seqused_k: (batch,) int, tokens in the cache, those of ``query`` included. On a GPU, where
            nobody waits to look at them, more than the capacity counts as the capacity.
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
    seen = None
    if not return_aux:
        tensors = (query, key_cache, value_cache, seqused_k, alibi_slopes, bias, None, block_table)
        settings = (scale, is_causal, softcap, enable_gqa, skip_tolerance)
        seen = repeated.look(impl, *tensors, window_size, *settings)
        if (out := repeated.again(seen)) is not None:
            return out
    names = ("query", "key_cache", "value_cache")
    query, key_cache, value_cache = checks.same_kind(query, key_cache, value_cache, names)
    if query.dim() != 4:
        raise ValueError(f"query: must be (batch, heads, length, dim), got {tuple(query.shape)}")
    if block_table is None:
        checks.dense_shapes(query, key_cache, value_cache, names)
        capacity, page_size = key_cache.shape[2], 0
    else:
        _check_paged(query, key_cache, value_cache, block_table)
        pages, page_size = key_cache.shape[:2]
        capacity = block_table.shape[1] * page_size
        key_cache, value_cache = key_cache.transpose(1, 2), value_cache.transpose(1, 2)
    batch, heads, queries, head_dim = query.shape
    checks.head_groups(heads, key_cache.shape[1], enable_gqa, name="key_cache")
    checks.lengths("seqused_k", seqused_k, (batch,), query.device)
    if looked_at(query.device) and checks.has_numbers(seqused_k):
        if block_table is not None:
            block_table = sequences.used_pages(block_table, seqused_k, page_size)
            _check_pages(block_table, pages)
        _check_used(seqused_k, capacity)
        own = sequences.cached(queries, seqused_k, capacity, block_table)
    else:
        own = sequences.UnreadCache(queries, seqused_k, capacity, block_table, page_size)
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
        sequences=own,
    )
    problem = with_bias(problem, bias)
    repeated.remember(seen, problem)
    return _decode(problem, impl, return_aux)
