"""`sigmoid_decode`: attention of a few new queries to a contiguous or paged key-value cache.

Shape letters: B batch, M pages of a sequence.
"""

from typing import Unpack

from torch import Tensor

from sigmoid_attention.attention import (
    arguments,
    call_cache,
    dispatch,
    index_tensors,
    sequences,
    validation,
)
from sigmoid_attention.attention.bias import Bias, once_called
from sigmoid_attention.attention.dispatch import Implementation
from sigmoid_attention.attention.index_tensors import values_are_readable
from sigmoid_attention.attention.problem import LogitOptions, Problem
from sigmoid_attention.attention.torch_function import overridable
from sigmoid_attention.attention.validation import SkipTolerance


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
    arguments.dense("block_table", block_table)
    if block_table.dim() != 2 or block_table.shape[0] != query.shape[0]:
        raise ValueError(
            f"block_table must be (batch, pages of a sequence) with batch {query.shape[0]}, "
            f"got {tuple(block_table.shape)}"
        )
    validation.lengths("block_table", block_table, tuple(block_table.shape), query.device)


@overridable
def sigmoid_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    seqused_k: Tensor,
    is_causal: bool,
    block_table: Tensor | None = None,
    bias: Bias | None = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    enable_gqa: bool = False,
    skip_tolerance: SkipTolerance = "rounding",
    impl: Implementation = "auto",
) -> Tensor:
    """Sigmoid attention of the last queries of each sequence to its key-value cache.

    Sequence s has ``seqused_k[s]`` tokens in the cache, and its queries are the last of these: the
    position of query i is seqused_k[s] - queries + i. The formula is that of
    :func:`sigmoid_attention`. The weights are not normalised, so for a cache that is split over
    devices the output is the sum of the devices' outputs.

    Args:
        query: (batch, heads, queries, head_dim), usually one query.
        key_cache: (batch, key_heads, capacity, head_dim), or with ``block_table`` the paged layout
            (pages, page_size, key_heads, head_dim). value_cache: likewise, with value_dim.
        seqused_k: (batch,) int, tokens in the cache, including those of ``query``. On a GPU the
            values are not checked, as this would wait for the device; values above the capacity
            are treated as the capacity.
        block_table: (batch, pages of a sequence) int, the page of each part of a sequence; entries
            beyond ``seqused_k`` are not read.
        bias: required. The current length of a cache is not the training length, so None raises
            ``ValueError``. A tensor is (heads,) or broadcastable to (batch, heads, queries,
            capacity).
        is_causal: whether a query sees no key to its right, as in the decoding of a text. It has
            no default, since it changes the output for several queries.
        Others: as for :func:`sigmoid_attention`.

    Returns:
        (batch, heads, queries, value_dim).

    Raises:
        TypeError: an argument has the wrong type; the message names it.
        ValueError: an argument has an invalid value; the message names it.

    Example:
        >>> import torch
        >>> from sigmoid_attention import NegLogLength, sigmoid_decode
        >>> q, k, v = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
        >>> options = {"bias": NegLogLength(64), "is_causal": True, "enable_gqa": True}
        >>> sigmoid_decode(q, k, v, seqused_k=torch.tensor([9, 5]), **options).shape
        torch.Size([2, 4, 1, 8])
    """
    bias = once_called(bias)
    tensors = (query, key_cache, value_cache, seqused_k, alibi_slopes, bias, None, block_table)
    options = (scale, is_causal, softcap, enable_gqa, skip_tolerance)
    call = call_cache.call_key(impl, *tensors, window_size, *options)
    if (out := call_cache.run_cached(call)) is not None:
        return out
    problem = checked(
        query,
        key_cache,
        value_cache,
        seqused_k=seqused_k,
        block_table=block_table,
        bias=bias,
        scale=scale,
        is_causal=is_causal,
        window_size=window_size,
        alibi_slopes=alibi_slopes,
        softcap=softcap,
        enable_gqa=enable_gqa,
        skip_tolerance=skip_tolerance,
    )
    out = call_cache.cache_and_run(call, problem)
    return dispatch.run(problem, impl) if out is None else out


def checked(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    seqused_k: Tensor,
    is_causal: bool,
    block_table: Tensor | None = None,
    bias: Bias | None = None,
    enable_gqa: bool = False,
    **options: Unpack[LogitOptions],
) -> Problem:
    """The validated problem of a `sigmoid_decode` call; raises the errors of the call."""
    names = ("query", "key_cache", "value_cache")
    query, key_cache, value_cache = validation.same_kind(query, key_cache, value_cache, names)
    if query.dim() != 4:
        raise ValueError(f"query must be (batch, heads, length, dim), got {tuple(query.shape)}")
    if block_table is None:
        validation.dense_shapes(query, key_cache, value_cache, names)
        capacity, pages, page_size = key_cache.shape[2], 0, 0
    else:
        _check_paged(query, key_cache, value_cache, block_table)
        pages, page_size = key_cache.shape[:2]
        capacity = block_table.shape[1] * page_size
        key_cache, value_cache = key_cache.transpose(1, 2), value_cache.transpose(1, 2)
    batch, heads, queries, _ = query.shape
    validation.head_groups(heads, key_cache.shape[1], enable_gqa, name="key_cache")
    validation.lengths("seqused_k", seqused_k, (batch,), query.device)
    if values_are_readable(query.device):
        used = index_tensors.cached(queries, seqused_k, capacity, block_table, pages, page_size)
    else:
        used = sequences.DeviceCache(queries, seqused_k, capacity, block_table, page_size)
    if bias is None:
        raise ValueError(
            "bias: a cache's current length is not the length that the model was trained with; "
            "give that length, e.g. bias=NegLogLength(1024)"
        )
    return Problem.checked(
        query,
        key_cache,
        value_cache,
        sequences=used,
        bias=bias,
        is_causal=is_causal,
        dropout_p=0.0,
        **options,
    )
