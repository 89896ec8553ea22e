"""Sigmoid attention with the function names, layout and argument order of flash-attn 2.8.

Change the import of code that uses FlashAttention, and it computes sigmoid attention:

    from sigmoid_attention.integrations.flash_attn import flash_attn_func

What differs from flash-attn, everywhere in this file:

    sigmoid_bias       by name only. A number, a bias policy, a tensor (heads,) or (batch, heads)
                       like ``alibi_slopes``, or one of three or four dimensions that broadcasts
                       to (batch, heads, seqlen_q, seqlen_k). A tensor receives its gradient.
    dtype, device      all that the operator supports; the value dim may differ from the head dim.
    alibi_slopes       receive a gradient. The full distance enters the logits, because a sigmoid
                       is not invariant to a shift of its row.
    deterministic      has no effect.
    return_attn_probs  returns (out, None, weights) with the sigmoid weights (B, H, S, K).
                       There is no log-sum-exp to return: partial results over disjoint keys add.

FlashSigmoid's functions have another order of arguments and another default for the bias:
:mod:`sigmoid_attention.integrations.flash_sigmoid`.

Shape letters: B batch, S query tokens, K key tokens, H query heads, G key heads, D head dim,
T tokens of all packed sequences.
"""

from typing import Any

import torch
from torch import Tensor

from sigmoid_attention.attention import (
    arguments,
    sigmoid_attention,
    sigmoid_varlen_attention,
    validation,
)
from sigmoid_attention.attention.api import Bias
from sigmoid_attention.attention.default_bias import default_bias
from sigmoid_attention.attention.torch_function import overridable
from sigmoid_attention.integrations.flash_kvcache import flash_attn_with_kvcache
from sigmoid_attention.integrations.flash_settings import check_four_dimensional, operator_settings

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]

Answer = Tensor | tuple[Tensor, None, Tensor]


def _unpacked(name: str, packed: Tensor, dim: int, shape: str, parts: int) -> tuple[Tensor, ...]:
    arguments.dense(name, packed)
    if packed.dim() != dim + 3 or packed.shape[dim] != parts:
        raise ValueError(f"{name} must be {shape}, got {tuple(packed.shape)}")
    return packed.unbind(dim)


@overridable
def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sigmoid_bias: Bias | None = None,
) -> Answer:
    """Sigmoid attention on (batch, seqlen, heads, head_dim), causal aligned bottom right.

    ``softmax_scale`` is the factor of the dot product, 1 / sqrt(head_dim) by default; a
    ``softcap`` of 0.0 is none; k and v may have fewer heads than q. ``sigmoid_bias=None`` stands
    for -log K where there are as many queries as keys, and is refused elsewhere; calls with
    several K are warned about. A window may also be a tensor or an array, and None no limit.

    Args:
        q: (B, S, H, D). k: (B, K, G, D). v: (B, K, G, value_dim).
        Others: as in flash-attn, and at the head of this file.

    Returns:
        (B, S, H, value_dim); with ``return_attn_probs`` a triple of that, None and the weights.

    Raises:
        TypeError, ValueError: an argument has a wrong type, or does not fit; the sentence names it,
            q, k and v as query, key and value with the heads before the tokens.
        NotImplementedError: ``return_attn_probs`` together with dropout.

    Example:
        >>> q = torch.randn(2, 9, 4, 16)
        >>> k, v = torch.randn(2, 2, 9, 2, 16).unbind(0)
        >>> flash_attn_func(q, k, v, causal=True, sigmoid_bias=-2.2).shape
        torch.Size([2, 9, 4, 16])
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_four_dimensional(name, tensor)
    dropout_p = arguments.number("dropout_p", dropout_p, "a number, at least 0 and below 1")
    if arguments.switch("return_attn_probs", return_attn_probs) and dropout_p > 0:
        raise NotImplementedError(
            f"return_attn_probs: which weights dropout took is not kept, so dropout_p must be 0, "
            f"got {dropout_p}"
        )
    if sigmoid_bias is None and q.shape[1] != k.shape[1]:
        raise ValueError(
            f"sigmoid_bias: None means -log(number of keys) only where there are as many queries "
            f"as keys, here {q.shape[1]} and {k.shape[1]}; give the training length, e.g. "
            f"sigmoid_bias=NegLogLength(1024)"
        )
    if sigmoid_bias is None:
        sigmoid_bias = default_bias(k.shape[1], "sigmoid_bias")
    settings: dict[str, Any] = operator_settings(
        softmax_scale, causal, window_size, softcap, alibi_slopes, sigmoid_bias, q.shape[2]
    )
    query, key, value = (tensor.transpose(1, 2) for tensor in (q, k, v))
    out = sigmoid_attention(query, key, value, dropout_p=dropout_p, **settings)
    # Callers take views of the heads and channels of a token, which there lie side by side.
    out = out.transpose(1, 2).contiguous()
    if not return_attn_probs:
        return out
    # Attention is linear in its values: with the identity in their place it answers its weights.
    identity = torch.eye(k.shape[1], dtype=v.dtype, device=v.device).expand(*key.shape[:3], -1)
    return out, None, sigmoid_attention(query, key, identity, skip_tolerance=0.0, **settings)


@overridable
def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sigmoid_bias: Bias | None = None,
) -> Answer:
    """:func:`flash_attn_func` of q (B, S, H, D) and kv (B, K, 2, G, D).

    Example:
        >>> q, kv = torch.randn(2, 9, 4, 16), torch.randn(2, 9, 2, 4, 16)
        >>> flash_attn_kvpacked_func(q, kv, sigmoid_bias=-2.2).shape
        torch.Size([2, 9, 4, 16])
    """
    k, v = _unpacked("kv", kv, 2, "(batch, seqlen, 2, heads, head_dim)", 2)
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
        deterministic, return_attn_probs, sigmoid_bias=sigmoid_bias,
    )  # fmt: skip


@overridable
def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sigmoid_bias: Bias | None = None,
) -> Answer:
    """:func:`flash_attn_func` of qkv (B, S, 3, H, D).

    Example:
        >>> flash_attn_qkvpacked_func(torch.randn(2, 9, 3, 4, 16), sigmoid_bias=-2.2).shape
        torch.Size([2, 9, 4, 16])
    """
    q, k, v = _unpacked("qkv", qkv, 2, "(batch, seqlen, 3, heads, head_dim)", 3)
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
        deterministic, return_attn_probs, sigmoid_bias=sigmoid_bias,
    )  # fmt: skip


@overridable
def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    *,
    sigmoid_bias: Bias | None = None,
) -> Tensor:
    """Sigmoid attention within each of the packed sequences that ``cu_seqlens_*`` mark off.

    Args:
        q: (T, H, D). k: (T_k, G, D). v: (T_k, G, value_dim).
        cu_seqlens_q, cu_seqlens_k: (B + 1,) int, from 0 to the number of tokens.
        sigmoid_bias: required; the training length n of a packed sequence does not follow from
            its length. Otherwise as at the head of this file.
        Others: as for :func:`flash_attn_func`.

    Returns:
        (T, H, value_dim).

    Raises:
        TypeError, ValueError: an argument has a wrong type, or does not fit; the sentence names it.
        NotImplementedError: ``return_attn_probs``, and a ``block_table``, which
            :func:`flash_attn_with_kvcache` takes.

    Example:
        >>> from sigmoid_attention import NegLogLength
        >>> q, k, v = torch.randn(3, 7, 4, 16).unbind(0)
        >>> ends = torch.tensor([0, 2, 7], dtype=torch.int32)
        >>> bias = NegLogLength(64)
        >>> flash_attn_varlen_func(q, k, v, ends, ends, 5, 5, causal=True, sigmoid_bias=bias).shape
        torch.Size([7, 4, 16])
    """
    if block_table is not None:
        raise NotImplementedError(
            "block_table: packed queries against a paged cache are not offered; "
            "flash_attn_with_kvcache reads pages"
        )
    if return_attn_probs:
        raise NotImplementedError(
            "return_attn_probs: packed sequences form no array of weights; ask flash_attn_func, "
            "a sequence at a time"
        )
    if sigmoid_bias is None:
        raise ValueError(
            "sigmoid_bias: packed sequences have no single length to take -log of; give the "
            "training length, e.g. sigmoid_bias=NegLogLength(1024)"
        )
    tensors = {"q": q, "k": k, "v": v, "cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    for name, tensor in tensors.items():
        arguments.dense(name, tensor)
    max_seqlen_q = validation.longest("max_seqlen_q", max_seqlen_q)
    max_seqlen_k = validation.longest("max_seqlen_k", max_seqlen_k)
    if q.dim() != 3:
        raise ValueError(f"q must be (tokens, heads, head_dim), got {tuple(q.shape)}")
    settings: dict[str, Any] = operator_settings(
        softmax_scale, causal, window_size, softcap, alibi_slopes, sigmoid_bias, q.shape[1]
    )
    out = sigmoid_varlen_attention(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p=dropout_p, **settings,
    )  # fmt: skip
    return out.contiguous()


@overridable
def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sigmoid_bias: Bias | None = None,
) -> Tensor:
    """:func:`flash_attn_varlen_func` of q (T, H, D) and kv (T_k, 2, G, D).

    Example:
        >>> q, kv, ends = torch.randn(7, 4, 16), torch.randn(7, 2, 4, 16), torch.tensor([0, 2, 7])
        >>> flash_attn_varlen_kvpacked_func(q, kv, ends, ends, 5, 5, sigmoid_bias=-4.0).shape
        torch.Size([7, 4, 16])
    """
    k, v = _unpacked("kv", kv, 1, "(tokens, 2, heads, head_dim)", 2)
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale,
        causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs,
        sigmoid_bias=sigmoid_bias,
    )  # fmt: skip


@overridable
def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sigmoid_bias: Bias | None = None,
) -> Tensor:
    """:func:`flash_attn_varlen_func` of qkv (T, 3, H, D).

    Example:
        >>> qkv, ends = torch.randn(7, 3, 4, 16), torch.tensor([0, 2, 7])
        >>> flash_attn_varlen_qkvpacked_func(qkv, ends, 5, sigmoid_bias=-4.0).shape
        torch.Size([7, 4, 16])
    """
    q, k, v = _unpacked("qkv", qkv, 1, "(tokens, 3, heads, head_dim)", 3)
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p, softmax_scale, causal,
        window_size, softcap, alibi_slopes, deterministic, return_attn_probs,
        sigmoid_bias=sigmoid_bias,
    )  # fmt: skip
