"""Packed sequences: several sequences in one row, with or without a paged cache.

Continuous batching packs requests and stores their keys in transformers' paged cache. Up to
transformers 5.23 the attention function receives that cache and adds the new keys. From 5.24 on the
model adds them first, and the function receives all keys and the end of each request.

Shape letters: G key heads, T tokens of all sequences, H query heads, D head dim, E value dim.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import __version__ as installed

from sigmoid_attention.attention import sigmoid_varlen_attention
from sigmoid_attention.integrations.transformers.config_entry import NAME

try:
    from transformers.generation.continuous_batching import ContinuousBatchingManager
    from transformers.generation.continuous_batching import cache as _caches

    # Decorated in a way that hides its type.
    _PagedCache: Any = _caches.PagedAttentionCache
except (ImportError, AttributeError):  # this version has none that we support
    ContinuousBatchingManager = _PagedCache = None

ENDS = ("cu_seq_lens_q", "cu_seq_lens_k")
# transformers 5.17 calls the two longest of a continuous batch by the second names.
LONGEST = (("max_length_q", "max_seqlen_q"), ("max_length_k", "max_seqlen_k"))
_CACHE_INDICES = ("read_index", "write_index")
NAMES = frozenset((*ENDS, *LONGEST[0], *LONGEST[1], *_CACHE_INDICES))


class UnsupportedCall(ValueError):
    """A model calls its attention with arguments that sigmoid attention does not support."""


class PackedEnds(NamedTuple):
    """Cumulative ends of the packed queries and keys, (sequences + 1,), and the longest lengths."""

    q: Tensor
    k: Tensor
    longest_q: int
    longest_k: int


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: PackedEnds,
    *,
    is_causal: bool,
    window: int | None,
    **settings: Any,
) -> Tensor:
    """Attention within each packed sequence; the output is (1, T, H, E).

    A window is the number of keys that a query sees on one side, itself included.
    """
    side = -1 if window is None else window - 1
    query_THD, key_TGD, value_TGE = (x[0].transpose(0, 1) for x in (query, key, value))
    out_THE = sigmoid_varlen_attention(
        query_THD,
        key_TGD,
        value_TGE,
        *ends,
        is_causal=is_causal,
        window_size=(side, -1 if is_causal else side),
        enable_gqa=True,
        **settings,
    )
    return out_THE[None]


def keep_sequences_apart(ends: PackedEnds, mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Restrict a mask to pairs of one packed sequence; boolean or with -inf."""
    row_Q, row_K = (
        torch.searchsorted(end, torch.arange(tokens.shape[2]).to(end), right=True)
        for end, tokens in ((ends.q, query), (ends.k, key))
    )
    same_QK = row_Q[:, None] == row_K
    return mask & same_QK if mask.dtype == torch.bool else mask.masked_fill(~same_QK, -torch.inf)


def ends(query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> PackedEnds | None:
    """The ends of the packed sequences, None if the call is not packed.

    Raises:
        UnsupportedCall: the ends have an unknown format.
    """
    if kwargs.get(ENDS[0]) is None and kwargs.get(ENDS[1]) is None:
        # Indices into a cache without ends: the keys of a request cannot be identified.
        if kwargs.get(_CACHE_INDICES[0]) is not None:
            raise _unknown(_CACHE_INDICES[0], "comes without cu_seq_lens_q and cu_seq_lens_k")
        return None
    found: list[Any] = []
    longest: list[Any] = []
    for name, names, tokens in zip(ENDS, LONGEST, (query, key), strict=True):
        end = kwargs.get(name)
        most = next((kwargs[each] for each in names if kwargs.get(each) is not None), None)
        if not isinstance(end, Tensor) or end.dim() != 1:
            kind = f"a tensor {tuple(end.shape)}" if isinstance(end, Tensor) else type(end).__name__
            raise _unknown(name, f"is {kind}, not a tensor (sequences + 1,)")
        if tokens.shape[0] != 1:
            raise _unknown(name, f"comes with a batch of {tokens.shape[0]} rows, not with one")
        if isinstance(most, dict):
            raise _unknown(names[0], "is a dict, not a number")
        found.append(end)
        longest.append(int(end.diff().max()) if most is None else most)
    return PackedEnds(*found, *longest)


def _unknown(name: str, what: str) -> UnsupportedCall:
    return UnsupportedCall(
        f"{name}: {what}; this version of sigmoid_attention does not support the way in which "
        f"transformers {installed} packs sequences, and would mix them up"
    )


def update_cache(
    module: nn.Module, key: Tensor, value: Tensor, cache: Any, batch: dict[str, Any]
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Add the new keys and values to the paged cache; return those of all requests, (1, G, T, ...).

    The batch comes back with what belongs to this layer in the place of what belongs to each kind.
    """
    if _PagedCache is None or not isinstance(cache, _PagedCache):
        raise _unknown("cache", f"is {type(cache).__name__}, not a PagedAttentionCache")
    if batch.get("block_table") is not None:
        raise _unknown("block_table", "is there")
    layer: dict[str, Any] = {
        "key_states": key,
        "value_states": value,
        "layer_idx": module.layer_idx,
    }
    taken = _parameters(type(cache).update)
    if "kwargs" in taken:
        key, value = cache.update(**layer, kwargs=batch)
        return key, value, batch
    if not taken.issuperset(_CACHE_INDICES):
        raise _unknown("cache", f"takes {', '.join(sorted(taken))}")
    # Up to transformers 5.17 the cache needs the indices to read and write.
    key, value = (
        x.transpose(0, 1)[None]
        for x in cache.update(**layer, **{n: batch[n] for n in _CACHE_INDICES})
    )
    kind = "full_attention" if batch.get("sliding_window") is None else "sliding_attention"
    own = {n: x[kind] if isinstance(x, dict) else x for n, x in batch.items()}
    return key, value, own


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@functools.cache
def install() -> None:
    """Patch the manager of continuous batching, so that it keeps our implementation.

    One that has no such method says by itself that it does not take our implementation.
    """
    name = "switch_to_cb_friendly_attn"
    if not hasattr(ContinuousBatchingManager, name):
        return
    switch = getattr(ContinuousBatchingManager, name)

    @functools.wraps(switch)
    def keeping(manager: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        if model.config._attn_implementation != NAME:
            switch(manager, model, *args, **kwargs)

    setattr(ContinuousBatchingManager, name, keeping)
