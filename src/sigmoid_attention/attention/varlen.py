"""Packed sequences of different lengths, without padding in the arguments.

Shape letters: T tokens of all sequences, H heads, D head or value dim.
"""

from torch import Tensor

from sigmoid_attention.attention import arguments, index_tensors, validation
from sigmoid_attention.attention.api import Answer, Bias, each_part, run, with_bias
from sigmoid_attention.attention.problem import Problem
from sigmoid_attention.attention.sequences import Sequences
from sigmoid_attention.attention.torch_function import overridable


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
    """(1, H, T, D): the tokens of all sequences as the one row of a batch."""
    return packed_THD.transpose(0, 1)[None]


def _tokens(row_1HTD: Tensor) -> Tensor:
    """(T, H, D), or (T, H) of (1, H, T)."""
    return row_1HTD[0].transpose(0, 1)


def _reached(bias: Tensor, own: Sequences) -> Tensor:
    """The part of a bias that sequences reach: more was declared than the longest of them."""
    if bias.dim() and bias.shape[-1] > 1:
        bias = bias[..., : own.max_k]
    return bias[..., : own.max_q, :] if bias.dim() > 1 and bias.shape[-2] > 1 else bias


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
    skip_tolerance: float | str = "rounding",
    impl: str = "auto",
    return_aux: bool = False,
) -> Answer:
    """Sigmoid attention within each sequence of a packed batch.

    Sequence s owns the queries ``cu_seq_q[s] : cu_seq_q[s + 1]`` and the keys of ``cu_seq_k``
    likewise; the formula of :func:`sigmoid_attention` holds inside it, with its own lengths. The
    names are those of ``torch.nn.attention.varlen.varlen_attn``.

    Args:
        query: (tokens, heads, head_dim). key: (tokens, key_heads, head_dim).
        value: (tokens, key_heads, value_dim).
        cu_seq_q, cu_seq_k: (sequences + 1,) int, cumulative lengths from 0 to the token count. On
            a GPU, where nobody waits to look at them, they may end before it: the tokens behind,
            the padding of a captured graph, get zeros in the output and in all gradients.
        max_q, max_k: the longest sequence, or any number above it, which costs nothing.
        bias: required. A number, a policy, or a tensor broadcastable to
            (sequences, heads, max_q, max_k). Which n a sequence was trained with cannot be told
            from its length, so None raises ``ValueError``.
        Others: as for :func:`sigmoid_attention`.

    Returns:
        (tokens, heads, value_dim), and with ``return_aux`` statistics of shape (tokens, heads).

    Raises:
        ValueError: an argument does not fit; the sentence names it.

    Example:
        >>> import torch
        >>> from sigmoid_attention import NegLogLength, sigmoid_varlen_attention
        >>> q, k, v = torch.randn(3, 5, 2, 8).unbind(0)
        >>> ends = torch.tensor([0, 2, 5])
        >>> sigmoid_varlen_attention(q, k, v, ends, ends, 3, 3, bias=NegLogLength(64)).shape
        torch.Size([5, 2, 8])
    """
    query, key, value = validation.same_kind(query, key, value, ("query", "key", "value"))
    _check_packed(query, key, value, cu_seq_q, cu_seq_k)
    heads, head_dim = query.shape[1:]
    validation.head_groups(heads, key.shape[1], enable_gqa)
    if bias is None:
        raise ValueError(
            "bias: packed sequences have no single length to take -log of; give the training "
            "length, e.g. bias=NegLogLength(1024)"
        )
    bias = validation.bias_kind(bias)
    max_q, max_k = validation.longest("max_q", max_q), validation.longest("max_k", max_k)
    own = index_tensors.packed(cu_seq_q, cu_seq_k, query.shape[0], key.shape[0], max_q, max_k)
    if isinstance(bias, Tensor):
        validation.bias_tensor(bias, (own.count, heads, max_q, max_k), query.device)
        bias = _reached(bias, own)
    validation.slopes(alibi_slopes, own.count, heads, query.device)
    scale, softcap, window = validation.settings(
        head_dim,
        scale=scale,
        softcap=softcap,
        is_causal=is_causal,
        window_size=window_size,
        dropout_p=dropout_p,
    )
    tolerance, relative = validation.tolerance(skip_tolerance, query.dtype)
    problem = Problem(
        query=_row(query),
        key=_row(key),
        value=_row(value),
        scale=scale,
        softcap=softcap,
        bias=0.0,
        attn_mask=None,
        alibi_slopes=alibi_slopes,
        window=window,
        dropout_p=dropout_p,
        tolerance=tolerance,
        tolerance_is_relative=relative,
        sequences=own,
    )
    return each_part(run(with_bias(problem, bias), impl, return_aux), _tokens)
