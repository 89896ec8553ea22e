"""The three functions of Apple's FlashSigmoid (arXiv 2409.04431), in its order of arguments.

Code that uses FlashSigmoid needs only another import:

    from sigmoid_attention.integrations.flash_sigmoid import flash_attn_func

The order is that of flash-attn 2.5: no ``softcap``, and ``sigmoid_bias`` last. As there, the bias
is 0 by default. For a row of n keys that is log n above the paper's recommendation, but code that
omits the bias relies on 0. ``return_attn_probs`` returns (out, weights). All else, shapes included,
is as in :mod:`sigmoid_attention.integrations.flash_attn`.
"""

from torch import Tensor

from sigmoid_attention.attention.api import Bias
from sigmoid_attention.attention.torch_function import overridable
from sigmoid_attention.integrations import flash_attn

__all__ = ["flash_attn_func", "flash_attn_kvpacked_func", "flash_attn_qkvpacked_func"]

Answer = Tensor | tuple[Tensor, Tensor]


@overridable
def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    sigmoid_bias: Bias = 0.0,
) -> Answer:
    """Sigmoid attention on (batch, seqlen, heads, head_dim), with a bias of 0 unless given.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 2, 9, 4, 16).unbind(0)
        >>> flash_attn_func(q, k, v, 0.0, None, True, (-1, -1), None, False, False, -2.2).shape
        torch.Size([2, 9, 4, 16])
    """
    answer = flash_attn.flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size,
        alibi_slopes=alibi_slopes, return_attn_probs=return_attn_probs, sigmoid_bias=sigmoid_bias,
    )  # fmt: skip
    return _with_weights(answer)


@overridable
def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    sigmoid_bias: Bias = 0.0,
) -> Answer:
    """:func:`flash_attn_func` of q (B, S, H, D) and kv (B, K, 2, G, D)."""
    answer = flash_attn.flash_attn_kvpacked_func(
        q, kv, dropout_p, softmax_scale, causal, window_size,
        alibi_slopes=alibi_slopes, return_attn_probs=return_attn_probs, sigmoid_bias=sigmoid_bias,
    )  # fmt: skip
    return _with_weights(answer)


@overridable
def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    sigmoid_bias: Bias = 0.0,
) -> Answer:
    """:func:`flash_attn_func` of qkv (B, S, 3, H, D)."""
    answer = flash_attn.flash_attn_qkvpacked_func(
        qkv, dropout_p, softmax_scale, causal, window_size,
        alibi_slopes=alibi_slopes, return_attn_probs=return_attn_probs, sigmoid_bias=sigmoid_bias,
    )  # fmt: skip
    return _with_weights(answer)


def _with_weights(answer: Tensor | tuple) -> Answer:
    """FlashSigmoid has no log-sum-exp between output and weights."""
    return answer if isinstance(answer, Tensor) else (answer[0], answer[2])
