"""`sigmoid_varlen_attention`: attention within packed sequences of different lengths.

Shape letters: T tokens of all sequences, H heads, D head or value dim.
"""

from typing import Unpack

from torch import Tensor

from sigmoid_attention.attention import arguments, dispatch, index_tensors, validation
from sigmoid_attention.attention.bias import Bias
from sigmoid_attention.attention.dispatch import Implementation
from sigmoid_attention.attention.problem import Options, Problem
from sigmoid_attention.attention.sequences import Sequences
from sigmoid_attention.attention.torch_function import overridable
from sigmoid_attention.attention.validation import SkipTolerance


def _check_packed(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor
) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 3:
            raise ValueError(f"{name} must be (tokens, heads, dim), got {tuple(tensor.shape)}")
    if key.shape[2] != query.shape[2]:
        raise ValueError(
            f"key: head dim must equal query's, got {tuple(key.shape)} and {tuple(query.shape)}"
        )
    if value.shape[:2] != key.shape[:2]:
        raise ValueError(
            f"value: tokens and heads must equal key's, "
            f"got {tuple(value.shape)} and {tuple(key.shape)}"
        )
    arguments.dense("cu_seq_q", cu_seq_q)
    if cu_seq_q.dim() != 1 or cu_seq_q.shape[0] < 2:
        raise ValueError(
            f"cu_seq_q must be (sequences + 1,), starting at 0, got {tuple(cu_seq_q.shape)}"
        )
    validation.lengths("cu_seq_q", cu_seq_q, tuple(cu_seq_q.shape), query.device)
    validation.lengths("cu_seq_k", cu_seq_k, tuple(cu_seq_q.shape), query.device)


def _row(packed_THD: Tensor) -> Tensor:
    """(1, H, T, D): the tokens of all sequences as one batch row."""
    return packed_THD.transpose(0, 1).unsqueeze(0)


def tokens(row_1HTD: Tensor) -> Tensor:
    """(T, H, D) from (1, H, T, D), or (T, H) from (1, H, T)."""
    return row_1HTD[0].transpose(0, 1)


def _within_longest(bias: Tensor, sequences: Sequences) -> Tensor:
    """The bias, cut to the longest sequences; the declared lengths may be larger."""
    if bias.dim() and bias.shape[-1] > 1:
        bias = bias[..., : sequences.max_k]
    return bias[..., : sequences.max_q, :] if bias.dim() > 1 and bias.shape[-2] > 1 else bias


@overridable
def sigmoid_varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    bias: Bias | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    enable_gqa: bool = False,
    dropout_p: float = 0.0,
    skip_tolerance: SkipTolerance = "rounding",
    impl: Implementation = "auto",
) -> Tensor:
    """Sigmoid attention within each sequence of a packed batch.

    Sequence s has the queries ``cu_seq_q[s] : cu_seq_q[s + 1]`` and the keys ``cu_seq_k[s] :
    cu_seq_k[s + 1]``. Inside it the formula of :func:`sigmoid_attention` holds, with the lengths of
    the sequence. The argument names are those of ``torch.nn.attention.varlen.varlen_attn``.

    Args:
        query: (tokens, heads, head_dim). key: (tokens, key_heads, head_dim).
        value: (tokens, key_heads, value_dim).
        cu_seq_q, cu_seq_k: (sequences + 1,) int, cumulative lengths from 0 to the token count. On
            a GPU the values are not checked, as this would wait for the device. There they may end
            before the token count: the output and all gradients of the tokens after the end, such
            as the padding of a captured CUDA graph, are zero.
        max_q, max_k: the length of the longest sequence or more; a larger value costs nothing.
        bias: required. A number, a policy, or a tensor (heads,) or one broadcastable to
            (sequences, heads, max_q, max_k). The length of a sequence does not determine the
            training length n, so None raises ``ValueError``.
        Others: as for :func:`sigmoid_attention`.

    Returns:
        (tokens, heads, value_dim).

    Raises:
        TypeError: an argument has the wrong type; the message names it.
        ValueError: an argument has an invalid value; the message names it.

    Example:
        >>> import torch
        >>> from sigmoid_attention import NegLogLength, sigmoid_varlen_attention
        >>> q, k, v = torch.randn(3, 5, 2, 8).unbind(0)
        >>> ends = torch.tensor([0, 2, 5])
        >>> sigmoid_varlen_attention(q, k, v, ends, ends, 3, 3, bias=NegLogLength(64)).shape
        torch.Size([5, 2, 8])
    """
    problem = checked(
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        bias=bias,
        scale=scale,
        is_causal=is_causal,
        window_size=window_size,
        alibi_slopes=alibi_slopes,
        softcap=softcap,
        enable_gqa=enable_gqa,
        dropout_p=dropout_p,
        skip_tolerance=skip_tolerance,
    )
    return tokens(dispatch.run(problem, impl))


def checked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    bias: Bias | None = None,
    enable_gqa: bool = False,
    **options: Unpack[Options],
) -> Problem:
    """The validated problem of a packed call; raises the errors of the call."""
    query, key, value = validation.same_kind(query, key, value, ("query", "key", "value"))
    _check_packed(query, key, value, cu_seq_q, cu_seq_k)
    heads = query.shape[1]
    validation.head_groups(heads, key.shape[1], enable_gqa)
    if bias is None:
        raise ValueError(
            "bias: packed sequences have no single length to take -log of; give the training "
            "length, e.g. bias=NegLogLength(1024)"
        )
    max_q, max_k = validation.longest("max_q", max_q), validation.longest("max_k", max_k)
    packed = index_tensors.packed(cu_seq_q, cu_seq_k, query.shape[0], key.shape[0], max_q, max_k)
    if isinstance(bias, Tensor):
        bias = validation.bias_tensor(bias, (packed.count, heads, max_q, max_k), query.device)
        bias = _within_longest(bias, packed)
    rows = _row(query), _row(key), _row(value)
    return Problem.checked(*rows, sequences=packed, bias=bias, **options)
