"""`explain`, the implementation of a call, and `attention_statistics`, its row statistics."""

from typing import Any

from torch import Tensor

from sigmoid_attention.attention import api, decode, dispatch, varlen
from sigmoid_attention.attention.dispatch import Explanation
from sigmoid_attention.attention.impl import reference_blocks
from sigmoid_attention.attention.impl.reference import AttentionStatistics
from sigmoid_attention.attention.problem import Problem
from sigmoid_attention.attention.torch_function import overridable


def explain(
    query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **options: Any
) -> Explanation:
    """The implementation that computes a call, and the reason against each other one.

    Takes the arguments of :func:`sigmoid_attention`, :func:`sigmoid_varlen_attention` or
    :func:`sigmoid_decode` (its caches are positional here), validates them in the same way, and
    runs no kernel. A bias policy computes its bias, and the CPU kernel is compiled if necessary.
    Errors that occur only when a kernel starts, such as a lack of GPU memory, are not predicted.

    The result depends on devices, dtypes, shapes and options, and on autograd and the transforms of
    torch that are active: call this function in the same context as the attention.

    Raises:
        TypeError, ValueError: in the same cases as the call.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 1, 2, 5, 8, dtype=torch.float64).unbind(0)
        >>> explanation = explain(q, k, v, bias=-2.0)
        >>> explanation.implementation
        'reference'
        >>> dict(explanation.refusals)["cpu"]
        'query: the CPU kernel has no torch.float64'
    """
    impl = options.pop("impl", "auto")
    dispatch.check_impl(impl)
    return dispatch.explain(_problem(query, key, value, *arguments, **options), impl)


@overridable
def attention_statistics(
    query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **options: Any
) -> AttentionStatistics:
    """The mass, the largest weight and the number of visible keys of each row of a call.

    Takes the arguments of :func:`sigmoid_attention`, :func:`sigmoid_varlen_attention` or
    :func:`sigmoid_decode` (its caches are positional here). The definition computes the weights in
    blocks of rows, before dropout. Mass and largest weight are differentiable. ``value``,
    ``dropout_p``, ``skip_tolerance`` and ``impl`` are validated and have no effect.

    Returns:
        An :class:`AttentionStatistics` of tensors (batch, heads, queries), or (tokens, heads) for
        packed sequences.

    Raises:
        TypeError, ValueError: in the same cases as the call.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 1, 2, 5, 8).unbind(0)
        >>> statistics = attention_statistics(q, k, v, bias=-2.0, is_causal=True)
        >>> statistics.visible[0, 0].tolist()
        [1, 2, 3, 4, 5]
    """
    dispatch.check_impl(options.pop("impl", "auto"))
    problem = _problem(query, key, value, *arguments, **options)
    statistics = reference_blocks.statistics(problem)
    if problem.sequences is None or not problem.sequences.packed:
        return statistics
    return AttentionStatistics(*map(varlen.tokens, statistics))


def _problem(query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **options: Any) -> Problem:
    """The validated problem of a call; the arguments determine the function that it is for."""
    if "seqused_k" in options:
        pose = decode.checked
    elif "cu_seq_q" in options or len(arguments) > 1:
        pose = varlen.checked
    else:
        pose = api.checked
    return pose(query, key, value, *arguments, **options)
