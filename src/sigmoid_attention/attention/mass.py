r"""The operators with the mass of each row beside the output.

.. math:: m_i = \sum_j \sigma(u_{ij})

over the keys j that query i may see. A softmax would divide the output by such a sum. Here it is an
output of its own, with its own gradient.
"""

from itertools import chain
from typing import Any, Unpack

from torch import Tensor

from sigmoid_attention.attention import api, call_cache, decode, dispatch, varlen
from sigmoid_attention.attention.bias import Bias, once_called
from sigmoid_attention.attention.dispatch import Implementation
from sigmoid_attention.attention.problem import LogitOptions, Options
from sigmoid_attention.attention.torch_function import overridable


@overridable
def sigmoid_attention_with_mass(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    bias: Bias | None = None,
    enable_gqa: bool = False,
    impl: Implementation = "auto",
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]:
    r"""The output of :func:`sigmoid_attention`, and the sum of the weights of each row.

    .. math::
        O_i = \sum_j \sigma(u_{ij})\, v_j, \qquad m_i = \sum_j \sigma(u_{ij})

    with the logits u of :func:`sigmoid_attention`. The mass m is the output for a value that is 1
    everywhere. With dropout it is the sum of the weights after dropout: the kept weights divided by
    1 - p. Masses over disjoint sets of keys can be added like outputs. A query without visible keys
    has the mass 0. Both results come from one pass over the keys, and both receive gradients:

    .. math::
        \frac{\partial L}{\partial \sigma(u_{ij})} = \frac{\partial L}{\partial O_i} \cdot v_j
            + \frac{\partial L}{\partial m_i}

    The mass leaves out the weights of the keys that ``skip_tolerance`` allows to skip.

    Args:
        All: those of :func:`sigmoid_attention`.

    Returns:
        The output (batch, heads, queries, value_dim) in the dtype of the inputs, and the mass
        (batch, heads, queries) in fp32, or in fp64 for inputs in fp64.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`sigmoid_attention`, and
            NotImplementedError for ``impl="flex"`` and ``"gluon"``.

    Example:
        >>> import torch
        >>> from sigmoid_attention import NegLogLength, sigmoid_attention_with_mass
        >>> q, k, v = torch.randn(3, 1, 4, 16, 32).unbind(0)
        >>> out, mass = sigmoid_attention_with_mass(q, k, v, bias=NegLogLength(16), is_causal=True)
        >>> out.shape, mass.shape
        (torch.Size([1, 4, 16, 32]), torch.Size([1, 4, 16]))
        >>> averages = out / mass[..., None]  # means of the values; a row without keys gives NaN
    """
    _refuse_unknown(options, Options.__optional_keys__, "sigmoid_attention_with_mass")
    call, bias = None, once_called(bias)
    if type(dropout_p := options.get("dropout_p", 0.0)) is float and not dropout_p:
        rows = (query, key, value)
        call = _call_key(impl, rows, None, bias, attn_mask, None, options, enable_gqa)
        if (results := call_cache.run_cached(call)) is not None:
            return results
    problem = api.checked(query, key, value, attn_mask, bias=bias, enable_gqa=enable_gqa, **options)
    results = call_cache.cache_and_run(call, problem, with_mass=True)
    return dispatch.run_with_mass(problem, impl) if results is None else results


@overridable
def sigmoid_varlen_attention_with_mass(
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
    impl: Implementation = "auto",
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]:
    """The output of :func:`sigmoid_varlen_attention`, and the sum of the weights of each row.

    The mass is that of :func:`sigmoid_attention_with_mass`, within each sequence.

    Args:
        All: those of :func:`sigmoid_varlen_attention`.

    Returns:
        The output (tokens, heads, value_dim) in the dtype of the inputs, and the mass
        (tokens, heads) in fp32, or in fp64 for inputs in fp64.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`sigmoid_varlen_attention`.

    Example:
        >>> import torch
        >>> from sigmoid_attention import NegLogLength, sigmoid_varlen_attention_with_mass
        >>> q, k, v = torch.randn(3, 5, 2, 8).unbind(0)
        >>> ends, bias = torch.tensor([0, 2, 5]), NegLogLength(64)
        >>> _, mass = sigmoid_varlen_attention_with_mass(q, k, v, ends, ends, 3, 3, bias=bias)
        >>> mass.shape
        torch.Size([5, 2])
    """
    _refuse_unknown(options, Options.__optional_keys__, "sigmoid_varlen_attention_with_mass")
    problem = varlen.checked(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k,
        bias=bias, enable_gqa=enable_gqa, **options,
    )  # fmt: skip
    out, mass = dispatch.run_with_mass(problem, impl)
    return varlen.tokens(out), varlen.tokens(mass)


@overridable
def sigmoid_decode_with_mass(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    seqused_k: Tensor,
    is_causal: bool,
    block_table: Tensor | None = None,
    bias: Bias | None = None,
    enable_gqa: bool = False,
    impl: Implementation = "auto",
    **options: Unpack[LogitOptions],
) -> tuple[Tensor, Tensor]:
    """The output of :func:`sigmoid_decode`, and the sum of the weights of each row.

    The mass is that of :func:`sigmoid_attention_with_mass`, over the keys of the cache. For a cache
    that is split over devices it is the sum of the devices' masses.

    Args:
        All: those of :func:`sigmoid_decode`.

    Returns:
        The output (batch, heads, queries, value_dim) in the dtype of the inputs, and the mass
        (batch, heads, queries) in fp32, or in fp64 for inputs in fp64.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`sigmoid_decode`.

    Example:
        >>> import torch
        >>> from sigmoid_attention import NegLogLength, sigmoid_decode_with_mass
        >>> q, k, v = torch.randn(2, 4, 1, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)
        >>> used = torch.tensor([9, 0])
        >>> _, mass = sigmoid_decode_with_mass(
        ...     q, k, v, seqused_k=used, is_causal=True, bias=NegLogLength(64)
        ... )
        >>> mass[1].flatten().tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    _refuse_unknown(options, LogitOptions.__optional_keys__, "sigmoid_decode_with_mass")
    bias = once_called(bias)
    rows, switches = (query, key_cache, value_cache), (is_causal, enable_gqa)
    call = _call_key(impl, rows, seqused_k, bias, None, block_table, options, *switches)
    if (results := call_cache.run_cached(call)) is not None:
        return results
    problem = decode.checked(
        query,
        key_cache,
        value_cache,
        seqused_k=seqused_k,
        is_causal=is_causal,
        block_table=block_table,
        bias=bias,
        enable_gqa=enable_gqa,
        **options,
    )
    results = call_cache.cache_and_run(call, problem, with_mass=True)
    return dispatch.run_with_mass(problem, impl) if results is None else results


def _refuse_unknown(options: Any, known: frozenset[str], owner: str) -> None:
    """Raise ``TypeError`` for a name that is no option, as Python does for a full signature."""
    for name in options:
        if name not in known:
            raise TypeError(f"{name}: {owner} has no such argument")


def _call_key(
    impl: Implementation,
    rows: tuple[Tensor, Tensor, Tensor],
    lengths: Tensor | None,
    bias: Bias | None,
    mask: Tensor | None,
    table: Tensor | None,
    options: Any,
    *others: Any,
) -> call_cache.CallKey | None:
    """The key under which a call with the mass is cached, from the arguments of `call_key`."""
    named = dict(options)
    slopes, window = named.pop("alibi_slopes", None), named.pop("window_size", (-1, -1))
    others = ("with mass", *others, *chain.from_iterable(named.items()))
    return call_cache.call_key(impl, *rows, lengths, slopes, bias, mask, table, window, *others)
