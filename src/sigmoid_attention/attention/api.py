"""`sigmoid_attention`, the public function for batches in which each row is one sequence."""

from typing import Unpack

from torch import Tensor

from sigmoid_attention.attention import call_cache, dispatch, validation
from sigmoid_attention.attention.bias import Bias, once_called
from sigmoid_attention.attention.default_bias import default_bias
from sigmoid_attention.attention.dispatch import Implementation
from sigmoid_attention.attention.problem import Options, Problem
from sigmoid_attention.attention.torch_function import overridable
from sigmoid_attention.attention.validation import SkipTolerance


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
    skip_tolerance: SkipTolerance = "rounding",
    impl: Implementation = "auto",
) -> Tensor:
    r"""Attention in which the weight of each key is the sigmoid of its own logit.

    .. math::
        O_i = \sum_j \sigma(u_{ij})\, v_j, \qquad
        u_{ij} = \mathrm{cap}(s\, q_i \cdot k_j) + b_{ij} + m_{ij} - a_h\, |i + N_k - N_q - j|

    over the keys j that query i may see; s is ``scale``, b ``bias``, m a float ``attn_mask``,
    a ``alibi_slopes`` and cap(x) = ``softcap`` tanh(x / ``softcap``). The weights are not
    normalised: the output of a query without visible keys is exactly zero, and the output over a
    union of disjoint sets of keys is the sum of the outputs over these sets.
    Source: Ramapuram et al. 2024 (arXiv 2409.04431), section 2; appendix E for the bias.

    Autocast does not change the result: the function computes in the precision of its inputs. The
    exception is a query, key and value of different dtypes, as after a rotation in fp32. Autocast
    casts these to its own dtype, as for torch's ``scaled_dot_product_attention``. Without autocast
    their dtypes must be equal.

    Args:
        query: (batch, heads, queries, head_dim), fp16, bf16, fp32 or fp64.
        key: (batch, key_heads, keys, head_dim).
        value: (batch, key_heads, keys, value_dim).
        attn_mask: broadcastable to (batch, heads, queries, keys); boolean, True = attend, or
            floating, added to the logit (-inf hides a key). Combines with causality and window.
        bias: a number, a tensor (heads,), a tensor broadcastable to (batch, heads, queries, 1 or
            keys), or a policy (:class:`Constant`, :class:`NegLogLength`, :class:`NegLogVisible`,
            :class:`NegLogEffectiveLength`, :class:`Learned`, :class:`RowLSE`). None stands for
            ``NegLogLength(keys)``. It needs as many queries as keys, and no mask. It suits a model
            whose calls all have one length; calls of several lengths cause a warning.
        scale: factor of the dot product, by default 1 / sqrt(head_dim).
        is_causal: a query sees no key to its right; the last query has the last key's position.
        window_size: (left, right), how many keys on each side of its own position a query sees,
            -1 for no limit.
        alibi_slopes: (heads,) or (batch, heads), factors of the full distance |i + N_k - N_q - j|.
        softcap: bounds the scaled dot product smoothly to (-softcap, softcap).
        enable_gqa: let ``heads`` be a multiple of ``key_heads``.
        dropout_p: probability with which a weight is dropped; the others are multiplied by
            1 / (1 - p).
        skip_tolerance: limit of the error from skipped keys. "rounding": the sum of their weights
            is provably at most the error of rounding the row's other weights to the output's
            dtype; a number t: the error is at most t max|value|; 0: no visible key is skipped.
        impl: "auto", "cpu" and "triton" (the fused kernels for CPUs and GPUs), "gluon" (kernels for
            Hopper GPUs; "auto" does not take them, as no GPU has run them yet), "tiled" (PyTorch
            by tiles, linear memory), "flex" (PyTorch's FlexAttention; "auto" does not take it, and
            on a CPU it has no gradients) or "reference" (the definition; skips no key).

    Returns:
        (batch, heads, queries, value_dim) in the dtype of the inputs. :func:`attention_statistics`
        returns the mass, the largest weight and the number of visible keys of each row, and
        :func:`explain` the implementation that "auto" takes; both take the same arguments.

    Raises:
        TypeError: an argument has the wrong type; the message names it.
        ValueError: an argument has an invalid value; the message names it.
        NotImplementedError: the implementation that ``impl`` names does not support the call.

    Example:
        >>> import torch
        >>> from sigmoid_attention import NegLogLength, sigmoid_attention
        >>> q, k, v = torch.randn(3, 1, 4, 16, 32).unbind(0)
        >>> out = sigmoid_attention(q, k, v, bias=NegLogLength(16), is_causal=True)
        >>> cached = sigmoid_attention(q[:, :, -1:], k, v, bias=NegLogLength(16), is_causal=True)
        >>> torch.allclose(out[:, :, -1:], cached, atol=1e-6)
        True
    """
    call, bias = None, once_called(bias)
    if type(dropout_p) is float and not dropout_p:
        tensors = (query, key, value, None, alibi_slopes, bias, attn_mask, None)
        options = (scale, is_causal, softcap, enable_gqa, skip_tolerance)
        call = call_cache.call_key(impl, *tensors, window_size, *options)
        if (out := call_cache.run_cached(call)) is not None:
            return out
    problem = checked(
        query,
        key,
        value,
        attn_mask,
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
    out = call_cache.cache_and_run(call, problem)
    return dispatch.run(problem, impl) if out is None else out


def checked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    bias: Bias | None = None,
    enable_gqa: bool = False,
    **options: Unpack[Options],
) -> Problem:
    """The validated problem of a `sigmoid_attention` call; raises the errors of the call."""
    names = ("query", "key", "value")
    query, key, value = validation.same_kind(query, key, value, names)
    validation.dense_shapes(query, key, value, names)
    validation.head_groups(query.shape[1], key.shape[1], enable_gqa)
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    validation.mask(attn_mask, (batch, heads, queries, keys), query.device)
    if bias is None:
        if queries != keys or attn_mask is not None:
            raise ValueError(
                f"bias: None means -log(number of keys) only where there are as many queries as "
                f"keys and no mask, here {queries} queries, {keys} keys, "
                f"{'no' if attn_mask is None else 'a'} mask; give the training length, "
                f"e.g. bias=NegLogLength(1024)"
            )
        bias = default_bias(keys)
    return Problem.checked(query, key, value, attn_mask=attn_mask, bias=bias, **options)
