"""Packed sequences of different lengths, without padding in the arguments.

Shape letters: T all tokens, B sequences, H query heads, G key heads, Q longest query,
K longest key, D head dim, E value dim.
"""

import torch
from torch import Tensor

from sigmoid_attention.attention import checks, geometry
from sigmoid_attention.attention.api import Answer, Bias, run, with_bias
from sigmoid_attention.attention.problem import Problem
from sigmoid_attention.attention.reference import AttentionAux


def _check_packed(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor
) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 3:
            raise ValueError(f"{name}: must be (tokens, heads, dim), got {tuple(tensor.shape)}")
    if key.shape[2] != query.shape[2]:
        raise ValueError(
            f"key: head dim must equal query's, got {tuple(key.shape)} and {tuple(query.shape)}"
        )
    if value.shape[:2] != key.shape[:2]:
        raise ValueError(
            f"value: tokens and heads must equal key's, "
            f"got {tuple(value.shape)} and {tuple(key.shape)}"
        )
    if cu_seq_q.dim() != 1 or cu_seq_q.shape[0] < 2:
        raise ValueError(
            f"cu_seq_q: must be (sequences + 1,), starting at 0, got {tuple(cu_seq_q.shape)}"
        )
    checks.lengths("cu_seq_q", cu_seq_q, tuple(cu_seq_q.shape), query.device)
    checks.lengths("cu_seq_k", cu_seq_k, tuple(cu_seq_q.shape), query.device)
    if torch.compiler.is_compiling():
        return  # the numbers inside are data, which a compiled graph must not look at
    for name, ends, tokens in (
        ("cu_seq_q", cu_seq_q, query.shape[0]),
        ("cu_seq_k", cu_seq_k, key.shape[0]),
    ):
        steps = ends.diff()
        if int(ends[0]) != 0 or int(ends[-1]) != tokens or bool((steps < 0).any()):
            raise ValueError(
                f"{name}: must rise from 0 to the number of tokens, {tokens}, got {ends.tolist()}"
            )


def _padded(packed_THD: Tensor, starts_B: Tensor, lengths_B: Tensor, longest: int) -> Tensor:
    """(B, H, longest, D), with zeros past the end of a sequence."""
    place = torch.arange(longest, device=packed_THD.device)
    # The row appended is what every place past an end points to.
    with_zero = torch.cat([packed_THD, packed_THD.new_zeros(1, *packed_THD.shape[1:])])
    index_BQ = torch.where(
        place < lengths_B[:, None], starts_B[:, None] + place, packed_THD.shape[0]
    )
    return with_zero[index_BQ].transpose(1, 2)


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
        cu_seq_q, cu_seq_k: (sequences + 1,) int, cumulative lengths from 0 to the token count.
        max_q, max_k: the longest sequence, or any number above it.
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
    checks.same_kind(query, key, value, ("query", "key", "value"))
    _check_packed(query, key, value, cu_seq_q, cu_seq_k)
    heads, head_dim = query.shape[1:]
    checks.head_groups(heads, key.shape[1], enable_gqa)
    if bias is None:
        raise ValueError(
            "bias: packed sequences have no single length to take -log of; give the training "
            "length, e.g. bias=NegLogLength(1024)"
        )
    checks.bias_kind(bias)
    lengths_q, lengths_k = cu_seq_q.diff(), cu_seq_k.diff()
    if not torch.compiler.is_compiling():
        for name, longest, lengths in (("max_q", max_q, lengths_q), ("max_k", max_k, lengths_k)):
            if longest < int(lengths.max()):
                raise ValueError(
                    f"{name}: must be at least the longest sequence, {int(lengths.max())}, "
                    f"got {longest}"
                )
    sequences = lengths_q.shape[0]
    checks.slopes(alibi_slopes, sequences, heads, query.device)
    scale = checks.settings(
        head_dim, scale=scale, softcap=softcap, window_size=window_size, dropout_p=dropout_p
    )
    tolerance, relative = checks.tolerance(skip_tolerance, query.dtype)
    starts_q, starts_k = cu_seq_q[:-1], cu_seq_k[:-1]
    place = torch.arange(max_q, device=query.device)[:, None]
    shift = (lengths_k - lengths_q)[:, None, None, None]
    within = torch.arange(max_k, device=query.device) < lengths_k[:, None, None, None]
    problem = Problem(
        query=_padded(query, starts_q, lengths_q, max_q),
        key=_padded(key, starts_k, lengths_k, max_k),
        value=_padded(value, starts_k, lengths_k, max_k),
        scale=scale,
        softcap=softcap,
        bias=0.0,
        attn_mask=None,
        alibi_slopes=alibi_slopes,
        window=geometry.effective_window(is_causal, window_size),
        dropout_p=dropout_p,
        tolerance=tolerance,
        tolerance_is_relative=relative,
        position_Q1=place + shift,
        extra_visible=within,
    )
    answer = run(with_bias(problem, bias), impl, return_aux)
    token = torch.arange(query.shape[0], device=query.device)
    sequence = torch.searchsorted(cu_seq_q, token, right=True) - 1
    inside = token - starts_q[sequence]

    def packed(padded: Tensor) -> Tensor:
        return padded.transpose(1, 2)[sequence, inside]

    if isinstance(answer, Tensor):
        return packed(answer)
    out, aux = answer
    return packed(out), AttentionAux(*(packed(rows) for rows in aux))
