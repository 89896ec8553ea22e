"""Packed sequences: many of them in one row, each with its end, and with or without a paged cache.

Continuous batching packs requests and keeps their keys in transformers' paged cache. Until
transformers 5.23 the attention function is given that cache, and puts new keys into it; from 5.24
on the model did so before, and the function is given all keys and where those of a request end.

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

    # It is compiled in a way that types do not show.
    _PagedCache: Any = _caches.PagedAttentionCache
except (ImportError, AttributeError):  # then there is none that we know
    ContinuousBatchingManager = _PagedCache = None

ENDS = ("cu_seq_lens_q", "cu_seq_lens_k")
# transformers 5.17 calls the two longest of a continuous batch by the second names.
LONGEST = (("max_length_q", "max_seqlen_q"), ("max_length_k", "max_seqlen_k"))
_PLACES = ("read_index", "write_index")
NAMES = frozenset((*ENDS, *LONGEST[0], *LONGEST[1], *_PLACES))


class CannotRun(ValueError):
    """A model hands its attention what sigmoid attention has no meaning for, or none we know."""


class Ends(NamedTuple):
    """Where packed sequences end among the queries and keys, (sequences + 1,), and the longest."""

    q: Tensor
    k: Tensor
    longest_q: int
    longest_k: int


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Ends,
    *,
    is_causal: bool,
    window: int | None,
    **settings: Any,
) -> Tensor:
    """The packed sequences' output (1, T, H, E), each sequence by itself.

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


def within(ends: Ends, mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A mask that also keeps the packed sequences apart, boolean or with -inf."""
    row_Q, row_K = (
        torch.searchsorted(end, torch.arange(tokens.shape[2]).to(end), right=True)
        for end, tokens in ((ends.q, query), (ends.k, key))
    )
    same_QK = row_Q[:, None] == row_K
    return mask & same_QK if mask.dtype == torch.bool else mask.masked_fill(~same_QK, -torch.inf)


def ends(query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> Ends | None:
    """Where packed sequences end, if there are any.

    Raises:
        CannotRun: they are said in a way that is not known.
    """
    if kwargs.get(ENDS[0]) is None and kwargs.get(ENDS[1]) is None:
        # Indices into a cache without ends: whose keys these are, nothing says.
        if kwargs.get(_PLACES[0]) is not None:
            raise _unknown(_PLACES[0], "comes without cu_seq_lens_q and cu_seq_lens_k")
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
    return Ends(*found, *longest)


def _unknown(name: str, what: str) -> CannotRun:
    return CannotRun(
        f"{name}: {what}; this version of sigmoid_attention does not know how transformers "
        f"{installed} packs sequences, and would mix them up"
    )


def updated(
    module: nn.Module, key: Tensor, value: Tensor, cache: Any, batch: dict[str, Any]
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Keys and values of all requests, (1, G, T, ...), out of the paged cache, new ones included.

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
    if not taken.issuperset(_PLACES):
        raise _unknown("cache", f"takes {', '.join(sorted(taken))}")
    # Until transformers 5.17 the cache is told where to read and write.
    key, value = (
        x.transpose(0, 1)[None] for x in cache.update(**layer, **{n: batch[n] for n in _PLACES})
    )
    kind = "full_attention" if batch.get("sliding_window") is None else "sliding_attention"
    own = {n: x[kind] if isinstance(x, dict) else x for n, x in batch.items()}
    return key, value, own


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@functools.cache
def install() -> None:
    """Let the manager of continuous batching keep our implementation, which it does not know.

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
