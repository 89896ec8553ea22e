"""What is known about a call beside its output: its implementation, and statistics of its rows."""

from typing import Any

from torch import Tensor

from sigmoid_attention.attention import api, decode, dispatch, varlen
from sigmoid_attention.attention.bias import once_called
from sigmoid_attention.attention.dispatch import Explanation
from sigmoid_attention.attention.impl import reference_blocks
from sigmoid_attention.attention.impl.reference import AttentionStatistics
from sigmoid_attention.attention.problem import Problem
from sigmoid_attention.attention.torch_function import overridable


def explain(
    query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **options: Any
) -> Explanation:
    """The implementation that computes a call, and the reason why each other one does not.

    Takes the arguments of :func:`sigmoid_attention`, of :func:`sigmoid_varlen_attention` or of
    :func:`sigmoid_decode` (whose caches go by position here), checks them as these do, and runs no
    kernel. A bias policy computes its bias, and the CPU kernel is compiled if it was not yet. What
    shows only when a kernel starts, as a GPU without enough memory, is not known before.

    The answer depends on devices, dtypes, shapes and options, and on whether autograd or a
    transform of torch follows the call: ask under the same conditions.

    Raises:
        TypeError, ValueError: as the call would.

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

    Takes the arguments of :func:`sigmoid_attention`, of :func:`sigmoid_varlen_attention` or of
    :func:`sigmoid_decode` (whose caches go by position here). The statistics are those of the
    weights before dropout, computed by the definition in blocks of rows; mass and largest weight
    are differentiable. ``value``, ``dropout_p``, ``skip_tolerance`` and ``impl`` are checked and
    have no effect.

    Returns:
        An :class:`AttentionStatistics` of tensors (batch, heads, queries), or (tokens, heads) for
        packed sequences.

    Raises:
        TypeError, ValueError: as the call would.

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
    """The problem that a call poses; which function it is for shows in its arguments."""
    if "seqused_k" in options:
        pose = decode.checked
    elif "cu_seq_q" in options or len(arguments) > 1:
        pose = varlen.checked
    else:
        pose = api.checked
    if "bias" in options:
        options["bias"] = once_called(options["bias"])
    return pose(query, key, value, *arguments, **options)
