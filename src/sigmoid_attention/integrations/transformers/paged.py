"""Continuous batching: many requests packed into one row, their keys in transformers' paged cache.

Shape letters: G key heads, T tokens of all requests, H query heads, D head dim, E value dim.
"""

import functools
import inspect
from typing import Any

from torch import Tensor, nn
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from sigmoid_attention.attention import sigmoid_varlen_attention
from sigmoid_attention.integrations.transformers.record import NAME

# Until transformers 5.22 the cache is told where to read and write, later it looks for itself.
_UPDATE = getattr(PagedAttentionCache, "update")  # noqa: B009, compiled in a way types do not show
_LOOKS_FOR_ITSELF = "kwargs" in inspect.signature(_UPDATE).parameters


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache: Any,
    batch: dict[str, Any],
    **settings: Any,
) -> Tensor:
    """The packed requests' output (1, T, H, E); the new keys and values are put into the cache.

    Each request is causal by itself, so no mask is needed, only where each one ends.
    """
    key_1GTD, value_1GTE, ends_k, longest_k = _update(module, key, value, cache, batch)
    longest_q = batch["max_length_q" if _LOOKS_FOR_ITSELF else "max_seqlen_q"]
    window = batch.get("sliding_window")
    out_THE = sigmoid_varlen_attention(
        query[0].transpose(0, 1),
        key_1GTD[0].transpose(0, 1),
        value_1GTE[0].transpose(0, 1),
        batch["cu_seq_lens_q"],
        ends_k,
        longest_q,
        longest_k,
        is_causal=True,
        window_size=(-1 if window is None else window - 1, -1),
        enable_gqa=True,
        **settings,
    )
    assert isinstance(out_THE, Tensor)
    return out_THE[None]


def _update(
    module: nn.Module, key: Tensor, value: Tensor, cache: Any, batch: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Keys and values of all requests, (1, G, T, ...), where each ends, and the longest."""
    layer: dict[str, Any] = {
        "key_states": key,
        "value_states": value,
        "layer_idx": module.layer_idx,
    }
    if _LOOKS_FOR_ITSELF:
        key, value = cache.update(**layer, kwargs=batch)
        return key, value, batch["cu_seq_lens_k"], batch["max_length_k"]
    places = {name: batch[name] for name in ("read_index", "write_index")}
    key, value = (x.transpose(0, 1)[None] for x in cache.update(**layer, **places))
    ends, longest = batch["cu_seq_lens_k"], batch["max_seqlen_k"]
    if isinstance(ends, dict):
        kind = "full_attention" if batch.get("sliding_window") is None else "sliding_attention"
        ends, longest = ends[kind], longest[kind]
    return key, value, ends, longest


@functools.cache
def install() -> None:
    """Let the manager of continuous batching keep our implementation, which it does not know."""
    switch = ContinuousBatchingManager.switch_to_cb_friendly_attn

    @functools.wraps(switch)
    def keeping(manager: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        if model.config._attn_implementation != NAME:
            switch(manager, model, *args, **kwargs)

    setattr(ContinuousBatchingManager, switch.__name__, keeping)
