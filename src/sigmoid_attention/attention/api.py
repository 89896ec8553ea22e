"""The public operator: check once, resolve the bias, pick an implementation."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sigmoid_attention.attention import arguments, call_cache, masking, validation
from sigmoid_attention.attention.bias import BiasPolicy, once_called
from sigmoid_attention.attention.default_bias import default_bias
from sigmoid_attention.attention.impl import flex, reference, tiled_ops
from sigmoid_attention.attention.impl.cpu import ops as cpu_operator
from sigmoid_attention.attention.impl.reference import AttentionAux
from sigmoid_attention.attention.problem import Problem, known
from sigmoid_attention.attention.torch_function import overridable
from sigmoid_attention.attention.tracing import exporting_to_onnx

Bias = float | Tensor | BiasPolicy
Answer = Tensor | tuple[Tensor, AttentionAux]

# Above this many scores the definition's (Q, K) arrays no longer stay near the processor, and tiles
# are both smaller and faster (docs/log.md).
DENSE_SCORES = 2**23


Implementation = Callable[[Problem, bool], Answer]


def each_part(answer: Answer, change: Callable[[Tensor], Tensor]) -> Answer:
    """The answer with every tensor of it changed: the output, and the statistics if any."""
    if isinstance(answer, Tensor):
        return change(answer)
    out, aux = answer
    return change(out), AttentionAux(*map(change, aux))


def _reference(problem: Problem, return_aux: bool) -> Answer:
    """The definition, by blocks of rows where the array of scores would be large.

    Memory is linear then, but for what autograd keeps of each block for a gradient.
    """
    dense = problem.padded()
    batch, heads, queries, keys = problem.shape
    bias, float_mask = problem.bias, problem.float_mask

    def part(rows: slice) -> Answer:
        offset_QK, visible = dense.offset_and_visible(rows)
        return reference.attend(
            dense.query[:, :, rows],
            dense.key,
            dense.value,
            scale=problem.scale,
            softcap=problem.softcap,
            bias=masking.of_rows(bias, rows) if isinstance(bias, Tensor) else bias,
            float_mask=None if float_mask is None else masking.of_rows(float_mask, rows),
            alibi_slopes=problem.alibi_slopes,
            offset_QK=offset_QK,
            visible=visible,
            dropout_p=problem.dropout_p,
            return_aux=return_aux,
        )

    blocks = masking.blocks_of_rows(queries, batch * heads * keys, DENSE_SCORES)
    answer = _joined([part(rows) for rows in blocks])
    return each_part(answer, problem.unpadded)


def _joined(parts: list[Answer]) -> Answer:
    """The answers for blocks of rows as one for all of them."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(parts, 2)  # pyright: ignore[reportArgumentType, reportCallIssue]
    outs, statistics = zip(*parts, strict=True)
    return torch.cat(outs, 2), AttentionAux(
        *(torch.cat(x, 2) for x in zip(*statistics, strict=True))
    )


def _triton(problem: Problem, return_aux: bool) -> Answer:
    try:
        # Triton is there where torch has CUDA, and nowhere else has anyone to import it.
        from sigmoid_attention.attention.impl.triton import ops
    except ImportError as error:
        raise NotImplementedError(
            "impl: triton is not installed; torch for CUDA brings it along, elsewhere it is "
            "'pip install triton'"
        ) from error
    return ops.attend(problem, return_aux)


def _gluon(problem: Problem, return_aux: bool) -> Answer:
    try:
        # Gluon is an experiment of Triton's, which may leave it again.
        from sigmoid_attention.attention.impl.experimental.gluon import ops
    except ImportError as error:
        raise NotImplementedError(
            "impl: gluon needs Triton 3.6 or 3.7; torch for CUDA brings it along, elsewhere it is "
            "'pip install triton'"
        ) from error
    return ops.attend(problem, return_aux)


IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": _reference,
    "tiled": tiled_ops.attend,
    "cpu": cpu_operator.attend,
    "triton": _triton,
    "gluon": _gluon,
    "flex": flex.attend,
}


def transformed() -> bool:
    """Whether torch.func, forward mode or a trace is at work, which only the definition follows."""
    if exporting_to_onnx():
        return True
    if torch.compiler.is_compiling():
        return False
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


def _candidates(problem: Problem) -> list[Implementation]:
    """What may beat the definition on this problem, the fastest first; each may still refuse."""
    if transformed():
        return []
    fused = _triton if problem.device.type == "cuda" else cpu_operator.attend
    # One graph serves all lengths of an axis that may change, so it takes what serves the longest.
    many = not known(math.prod(problem.shape) <= DENSE_SCORES)
    return [fused, tiled_ops.attend] if many else [fused]


def _automatic(problem: Problem, return_aux: bool) -> Answer:
    for implementation in _candidates(problem):
        try:
            return implementation(problem, return_aux)
        except NotImplementedError:
            continue
    return _reference(problem, return_aux)


def check_impl(impl: str) -> None:
    """Refuse what names no implementation."""
    if not isinstance(impl, str) or impl not in ("auto", *IMPLEMENTATIONS):
        names = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"impl must be auto or one of {names}, got {arguments.shown(impl)}")


def run(problem: Problem, impl: str, return_aux: bool) -> Answer:
    """Hand a checked problem to the implementation that was asked for.

    The answer has the layout of the problem's query: (1, H, T, E) for packed sequences.
    """
    arguments.switch("return_aux", return_aux)
    check_impl(impl)
    if impl == "auto":
        return _automatic(problem, return_aux)
    return IMPLEMENTATIONS[impl](problem, return_aux)


def with_bias(problem: Problem, bias: Bias) -> Problem:
    """The problem with its bias resolved; a resolved policy must fit like any other tensor."""
    if isinstance(bias, BiasPolicy):
        policy, bias = bias, arguments.scalar(bias.resolve(problem))
        if not isinstance(bias, Tensor) and not arguments.is_number(bias):
            raise ValueError(
                f"bias: {type(policy).__name__}.resolve must answer a number or a tensor, "
                f"got {arguments.shown(bias)}"
            )
    if isinstance(bias, Tensor):
        validation.bias_tensor(bias, problem.shape, problem.device)
    return dataclasses.replace(problem, bias=bias)


@overload
def sigmoid_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    bias: Bias | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    enable_gqa: bool = False,
    dropout_p: float = 0.0,
    skip_tolerance: float | Literal["rounding"] = "rounding",
    impl: str = "auto",
    return_aux: Literal[False] = False,
) -> Tensor: ...


@overload
def sigmoid_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    bias: Bias | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    enable_gqa: bool = False,
    dropout_p: float = 0.0,
    skip_tolerance: float | Literal["rounding"] = "rounding",
    impl: str = "auto",
    return_aux: Literal[True],
) -> tuple[Tensor, AttentionAux]: ...


@overridable
def sigmoid_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    bias: Bias | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    enable_gqa: bool = False,
    dropout_p: float = 0.0,
    skip_tolerance: float | Literal["rounding"] = "rounding",
    impl: str = "auto",
    return_aux: bool = False,
) -> Answer:
    r"""Attention in which every key is weighed by a sigmoid of its own logit.

    .. math::
        O_i = \sum_j \sigma(u_{ij})\, v_j, \qquad
        u_{ij} = \mathrm{cap}(s\, q_i \cdot k_j) + b_{ij} + m_{ij} - a_h\, |i + N_k - N_q - j|

    over the keys j that query i may see; s is ``scale``, b ``bias``, m a float ``attn_mask``,
    a ``alibi_slopes`` and cap(x) = ``softcap`` tanh(x / ``softcap``). Nothing is normalised: a
    query that sees no key gets exact zeros, and partial results over disjoint keys add up.
    Source: P1 (arXiv 2409.04431), section 2 and appendix E for the bias.

    Under autocast the answer is the same, in the precision of the inputs. Only where query, key
    and value differ in dtype, as after a rotation in fp32, are they cast to autocast's, like those
    of torch's ``scaled_dot_product_attention``; without autocast they must agree.

    Args:
        query: (batch, heads, queries, head_dim), fp16, bf16, fp32 or fp64.
        key: (batch, key_heads, keys, head_dim).
        value: (batch, key_heads, keys, value_dim).
        attn_mask: broadcastable to (batch, heads, queries, keys); boolean, True = attend, or
            floating, added to the logit (-inf hides a key). Combines with causality and window.
        bias: a number, a tensor broadcastable to (batch, heads, queries, 1 or keys), or a policy
            (:class:`Constant`, :class:`NegLogLength`, :class:`NegLogVisible`,
            :class:`NegLogEffectiveLength`, :class:`Learned`, :class:`RowLSE`). None stands for
            ``NegLogLength(keys)`` where there are as many queries as keys, and no mask. It suits
            a model whose calls all have one length; calls of several lengths are warned about.
        scale: factor of the dot product, by default 1 / sqrt(head_dim).
        is_causal: a query sees no key to its right; the last query stands on the last key.
        window_size: (left, right) keys that a query sees beside its own, -1 for no limit.
        alibi_slopes: (heads,) or (batch, heads); the distance is counted in full.
        softcap: bounds the scaled dot product smoothly to (-softcap, softcap).
        enable_gqa: let ``heads`` be a multiple of ``key_heads``.
        dropout_p: probability with which a weight is dropped; the others grow by 1 / (1 - p).
        skip_tolerance: what an implementation may leave out. "rounding": keys whose weights
            together are provably below what rounding the row's other weights to the output's
            dtype costs; a number t: an error of at most t max|value|; 0: nothing that is visible.
        impl: "auto", "cpu" and "triton" (the fused kernels of CPUs and GPUs), "gluon" (those of
            Hopper GPUs; only when asked for, as no GPU has run them yet), "tiled" (PyTorch by
            tiles, linear memory), "flex" (PyTorch's FlexAttention; only when asked for, and on a
            CPU without gradients) or "reference" (the definition; skips nothing).
        return_aux: also return the rows' mass, largest weight and number of visible keys.

    Returns:
        (batch, heads, queries, value_dim) in the dtype of the inputs; with ``return_aux`` a pair
        of that and an :class:`AttentionAux`.

    Raises:
        ValueError: an argument does not fit; the sentence names it.
        NotImplementedError: the forced ``impl`` does not offer what was asked for.

    Example:
        >>> import torch
        >>> from sigmoid_attention import NegLogLength, sigmoid_attention
        >>> q, k, v = torch.randn(3, 1, 4, 16, 32).unbind(0)
        >>> out = sigmoid_attention(q, k, v, bias=NegLogLength(16), is_causal=True)
        >>> cached = sigmoid_attention(q[:, :, -1:], k, v, bias=NegLogLength(16), is_causal=True)
        >>> torch.allclose(out[:, :, -1:], cached, atol=1e-6)
        True
    """
    seen, bias = None, once_called(bias)
    if return_aux is False and type(dropout_p) is float and not dropout_p:
        tensors = (query, key, value, None, alibi_slopes, bias, attn_mask, None)
        settings = (scale, is_causal, softcap, enable_gqa, skip_tolerance)
        seen = call_cache.look(impl, *tensors, window_size, *settings)
        if (out := call_cache.again(seen)) is not None:
            return out
    names = ("query", "key", "value")
    query, key, value = validation.same_kind(query, key, value, names)
    validation.dense_shapes(query, key, value, names)
    validation.head_groups(query.shape[1], key.shape[1], enable_gqa)
    batch, heads, queries, head_dim = query.shape
    keys = key.shape[2]
    scale, softcap, window = validation.settings(
        head_dim,
        scale=scale,
        softcap=softcap,
        is_causal=is_causal,
        window_size=window_size,
        dropout_p=dropout_p,
    )
    validation.mask(attn_mask, (batch, heads, queries, keys), query.device)
    validation.slopes(alibi_slopes, batch, heads, query.device)
    tolerance, relative = validation.tolerance(skip_tolerance, query.dtype)
    if bias is None:
        if queries != keys or attn_mask is not None:
            raise ValueError(
                f"bias: None means -log(number of keys) only where there are as many queries as "
                f"keys and no mask, here {queries} queries, {keys} keys, "
                f"{'no' if attn_mask is None else 'a'} mask; give the training length, "
                f"e.g. bias=NegLogLength(1024)"
            )
        bias = default_bias(keys)
    bias = validation.bias_kind(bias)
    problem = Problem(
        query=query,
        key=key,
        value=value,
        scale=scale,
        softcap=softcap,
        bias=0.0,
        attn_mask=attn_mask,
        alibi_slopes=alibi_slopes,
        window=window,
        dropout_p=dropout_p,
        tolerance=tolerance,
        tolerance_is_relative=relative,
    )
    problem = with_bias(problem, bias)
    call_cache.remember(seen, problem)
    return run(problem, impl, return_aux)
