"""The two functions of triton-sigmoid (arXiv 2604.27124), with its layout and semantics.

Code that uses triton-sigmoid needs only another import, and runs on a CPU as well:

    from sigmoid_attention.integrations.triton_sigmoid import sigmoid_attention

Layout is (batch, tokens, heads, head_dim). Causality is aligned **top left** also where queries
and keys differ in number: query i sees the keys 0 to i. Everywhere else in this library it is
aligned bottom right.

Shape letters: B batch, Q query tokens, K key tokens, H heads, D head dim.
"""

import math

import torch
from torch import Tensor

from sigmoid_attention import attention
from sigmoid_attention.attention import arguments, index_tensors, validation
from sigmoid_attention.attention.api import Bias
from sigmoid_attention.attention.default_bias import default_bias
from sigmoid_attention.attention.impl.reference import compute_dtype
from sigmoid_attention.attention.torch_function import overridable

__all__ = ["sigmoid_attention", "sigmoid_attention_padded"]


@overridable
def sigmoid_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    sigmoid_bias: Bias | None = None,
    score_mod: Tensor | None = None,
) -> Tensor:
    """Sigmoid attention on (B, T, H, D), of as many queries as keys.

    Args:
        query: (B, T, H, D).
        key, value: likewise; beyond the original, with fewer heads that divide H.
        is_causal: query i sees the keys 0 to i.
        scale: 1 / sqrt(D) by default.
        sigmoid_bias: -log T by default, with a warning once calls come with several T. Beyond the
            number of the original, also a tensor or policy of the operator, with its gradient.
        score_mod: (B, T), added to the logits of a key, for all queries and heads. Unlike the
            original's it receives a gradient.

    Returns:
        (B, T, H, D).

    Raises:
        TypeError, ValueError: an argument has a wrong type, or does not fit; the sentence names it.

    Example:
        >>> q, k, v = torch.randn(3, 2, 9, 4, 16).unbind(0)
        >>> sigmoid_attention(q, k, v, is_causal=True, sigmoid_bias=-2.2).shape
        torch.Size([2, 9, 4, 16])
    """
    _check(query, key, value, score_mod)
    if query.shape[1] != key.shape[1]:
        raise ValueError(
            f"key must have as many tokens as query, got {key.shape[1]} and {query.shape[1]}; "
            f"sigmoid_attention_padded takes other numbers"
        )
    if sigmoid_bias is None:
        sigmoid_bias = default_bias(key.shape[1], "sigmoid_bias")
    sigmoid_bias = validation.bias_kind(sigmoid_bias, "sigmoid_bias")
    out = attention.sigmoid_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        None if score_mod is None else score_mod[:, None, None],
        is_causal=is_causal,
        scale=scale,
        bias=sigmoid_bias,
        enable_gqa=True,
    )
    return out.transpose(1, 2).contiguous()


@overridable
def sigmoid_attention_padded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seq_lens_k: Tensor | None = None,
    seq_lens_q: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    sigmoid_bias: Bias | None = None,
    score_mod: Tensor | None = None,
) -> Tensor:
    """Sigmoid attention on sequences that are padded at their ends; padded queries return zeros.

    Args:
        query: (B, Q, H, D). key, value: (B, K, H, D), or with fewer heads.
        seq_lens_k: (B,) int, the tokens that are keys; None for all. Those of a GPU are not
            checked: the call would have to wait for them.
        seq_lens_q: (B,) int, the tokens that are queries; likewise.
        is_causal: query i sees the keys 0 to i, also where Q and K differ.
        sigmoid_bias: -log seq_lens_k by default, the length of each sequence and not that of
            training: a model that is to answer the same at all lengths wants the number.
        Others: as for :func:`sigmoid_attention`, score_mod (B, K).

    Returns:
        (B, Q, H, D).

    Raises:
        TypeError, ValueError: an argument has a wrong type, or does not fit; the sentence names it.

    Example:
        >>> q, k, v = torch.randn(3, 2, 9, 4, 16).unbind(0)
        >>> out = sigmoid_attention_padded(q, k, v, seq_lens_q=torch.tensor([9, 5]))
        >>> out[1, 5:].any().item()
        False
    """
    _check(query, key, value, score_mod)
    batch, queries = query.shape[:2]
    lengths_B = _lengths("seq_lens_k", seq_lens_k, batch, key.shape[1], key.device)
    queries_B = _lengths("seq_lens_q", seq_lens_q, batch, queries, query.device)
    if sigmoid_bias is None:
        # A sequence without keys has no logarithm, nor a weight for it to change.
        sigmoid_bias = (
            -lengths_B.clamp(min=1).to(compute_dtype(query.dtype)).log()[:, None, None, None]
        )
    is_causal = arguments.switch("is_causal", is_causal)
    sigmoid_bias = validation.bias_kind(sigmoid_bias, "sigmoid_bias")
    # With top-left causality no query sees the keys after the last query.
    keys = min(queries, key.shape[1]) if is_causal else key.shape[1]
    hidden_BK = torch.arange(keys, device=key.device) >= lengths_B[:, None]
    if score_mod is None:
        attn_mask = ~hidden_BK
    else:
        attn_mask = score_mod[:, :keys].masked_fill(hidden_BK, -math.inf)
    out = attention.sigmoid_attention(
        query.transpose(1, 2),
        key[:, :keys].transpose(1, 2),
        value[:, :keys].transpose(1, 2),
        attn_mask[:, None, None],
        # The last query stands on the last key: to see key i from query i it looks ahead.
        window_size=(-1, queries - keys) if is_causal else (-1, -1),
        scale=scale,
        bias=sigmoid_bias,
        enable_gqa=True,
    )
    padded_BQ = torch.arange(queries, device=query.device) >= queries_B[:, None]
    return out.transpose(1, 2).masked_fill(padded_BQ[..., None, None], 0.0)


def _check(query: Tensor, key: Tensor, value: Tensor, score_mod: Tensor | None) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        arguments.dense(name, tensor)
        if tensor.dim() != 4:
            raise ValueError(
                f"{name} must be (batch, tokens, heads, head_dim), got {tuple(tensor.shape)}"
            )
    if score_mod is None:
        return
    arguments.dense("score_mod", score_mod)
    if score_mod.shape != key.shape[:2]:
        raise ValueError(
            f"score_mod must be (batch, keys) = {tuple(key.shape[:2])}, "
            f"got {tuple(score_mod.shape)}"
        )


def _lengths(
    name: str, seq_lens: Tensor | None, batch: int, tokens: int, device: torch.device
) -> Tensor:
    """(B,): lengths of the sequences, all tokens where none are given."""
    if seq_lens is None:
        return torch.full((batch,), tokens, device=device)
    validation.lengths(name, seq_lens, (batch,), device)
    if not index_tensors.values_are_readable(device):
        return seq_lens
    sentence = f"{name} must lie in 0 to {{size}}, the number of tokens, got {{low}} to {{high}}"
    return index_tensors.fitting(seq_lens, 0, tokens, sentence)
