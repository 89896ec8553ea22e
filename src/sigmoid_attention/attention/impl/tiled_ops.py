"""The tiled implementation as custom ops of torch: forward, backward and double backward.

The number of tiles that a block of queries visits depends on the computed weights, so the loop
cannot be traced. As custom ops the three passes are opaque to tracing, and work with compile,
export and second derivatives.

Shape letters: B batch, H query heads, Q queries, E value dim, I query blocks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sigmoid_attention.attention.impl import ones_column, reference, tiled
from sigmoid_attention.attention.impl.tiles import Tiles
from sigmoid_attention.attention.problem import Problem

BLOCK_Q = 256
BLOCK_K = 256


def attend(problem: Problem) -> Tensor:
    """The output of a validated problem; no dropout, and no packed or cached sequences."""
    refuse(problem)
    bias = problem.bias
    if not isinstance(bias, Tensor):
        dtype = reference.compute_dtype(problem.query.dtype)
        bias = torch.full((), bias, dtype=dtype, device=problem.query.device)
    out, _ = tiled_forward(
        problem.query,
        problem.key,
        problem.value,
        bias,
        problem.attn_mask,
        problem.alibi_slopes,
        problem.scale,
        problem.softcap,
        *problem.window,
        BLOCK_Q,
        BLOCK_K,
        problem.tolerance,
        problem.tolerance_is_relative,
    )
    return out


def attend_with_mass(problem: Problem) -> tuple[Tensor, Tensor]:
    """The output, and the sum of each row's weights, (B, H, Q)."""
    return ones_column.attend_with_mass(attend, problem)


def refuse(problem: Problem) -> None:
    """Raise ``NotImplementedError`` for a call that the tiled implementation does not support."""
    if problem.dropout_p > 0:
        raise NotImplementedError("dropout_p: the tiled implementation has no dropout")
    if problem.sequences is not None:
        raise NotImplementedError(
            "cu_seq_q, seqused_k: the tiled implementation takes one sequence a row"
        )


@torch.library.custom_op("sigmoid_attention::tiled_forward", mutates_args=())
def tiled_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    scale: float,
    softcap: float | None,
    left: int,
    right: int,
    block_q: int,
    block_k: int,
    tolerance: float,
    relative: bool,
) -> tuple[Tensor, Tensor]:
    """Output (B, H, Q, E), and the number of tiles that each query block visits, (B, H, I + 1).

    The last number is padding. torch specialises a size of 1, so without it a compiled graph would
    be valid for short or for long sequences only.
    """
    tiles = Tiles(
        query, key, value, bias, attn_mask, alibi_slopes, scale, softcap, left, right,
        block_q, block_k,
    )  # fmt: skip
    out, visits_BHI = tiled.forward(tiles, tolerance, relative)
    return out, torch.nn.functional.pad(visits_BHI, (0, 1))


@tiled_forward.register_fake
def _(query, key, value, *arguments):
    block_q = arguments[7]
    batch, heads, queries, _ = query.shape
    out = query.new_empty(batch, heads, queries, value.shape[3])
    blocks = (queries + block_q - 1) // block_q + 1
    return out, query.new_empty(batch, heads, blocks, dtype=torch.int64)


@torch.library.custom_op("sigmoid_attention::tiled_backward", mutates_args=())
def tiled_backward(
    grad_out: Tensor,
    visits: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    scale: float,
    softcap: float | None,
    left: int,
    right: int,
    block_q: int,
    block_k: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, bias, float mask and slopes.

    Of the last three, absent or not ``wanted`` ones are empty.
    """
    tiles = Tiles(
        query, key, value, bias, attn_mask, alibi_slopes, scale, softcap, left, right,
        block_q, block_k,
    )  # fmt: skip
    return tuple(tiled.backward(tiles, grad_out, visits, wanted))  # pyright: ignore[reportReturnType]


def _fake_gradients(query, key, value, bias, attn_mask, alibi_slopes, wanted):
    mask = None if attn_mask is None or attn_mask.dtype == torch.bool else attn_mask
    dtype = reference.compute_dtype(query.dtype)
    terms = zip((bias, mask, alibi_slopes), wanted, strict=True)
    learned = (term if want else None for term, want in terms)
    return tuple(
        query.new_empty((0,) if tensor is None else tensor.shape, dtype=dtype)
        for tensor in (query, key, value, *learned)
    )


@tiled_backward.register_fake
def _(grad_out, visits, *arguments):
    return _fake_gradients(*arguments[:6], wanted=arguments[-1])


@torch.library.custom_op("sigmoid_attention::tiled_double_backward", mutates_args=())
def tiled_double_backward(
    on_query: Tensor,
    on_key: Tensor,
    on_value: Tensor,
    on_bias: Tensor,
    on_mask: Tensor,
    on_slopes: Tensor,
    grad_out: Tensor,
    visits: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    scale: float,
    softcap: float | None,
    left: int,
    right: int,
    block_q: int,
    block_k: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``tiled_backward``, with ``on_...`` the gradients of its results."""
    tiles = Tiles(
        query, key, value, bias, attn_mask, alibi_slopes, scale, softcap, left, right,
        block_q, block_k,
    )  # fmt: skip
    directions = (on_query, on_key, on_value, on_bias, on_mask, on_slopes)
    answer = tiled.double_backward(tiles, grad_out, visits, directions, wanted)
    return tuple(answer)  # pyright: ignore[reportReturnType]


@tiled_double_backward.register_fake
def _(*arguments):
    grad_out = arguments[6]
    dtype = reference.compute_dtype(grad_out.dtype)
    return *_fake_gradients(*arguments[8:14], wanted=arguments[-1]), torch.empty_like(
        grad_out, dtype=dtype
    )


def _fitting(
    grads: Sequence[Tensor], tensors: Sequence[Tensor | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients in the dtypes of their tensors; None for those that are not wanted."""
    return [
        grad.to(tensor.dtype) if want and tensor is not None else None
        for grad, tensor, want in zip(grads, tensors, wanted, strict=True)
    ]


def _save_forward(ctx, inputs, output):
    *arguments, _tolerance, _relative = inputs
    ctx.save_for_backward(output[1], *arguments[:6])
    ctx.settings = arguments[6:]
    ctx.mark_non_differentiable(output[1])


def _forward_gradients(ctx, grad_out, _grad_visits):
    visits, *tensors = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:6]
    grads = tiled_backward(grad_out, visits, *tensors, *ctx.settings, wanted[3:])
    return *_fitting(grads, tensors, wanted), *([None] * 8)


def _save_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:8])
    ctx.settings = inputs[8:-1]


def _backward_gradients(ctx, *directions):
    grad_out, visits, *tensors = ctx.saved_tensors
    wanted = ctx.needs_input_grad[2:8]
    *gradients, on_grad_out = tiled_double_backward(
        *directions, grad_out, visits, *tensors, *ctx.settings, wanted[3:]
    )
    fitting = _fitting(gradients, tensors, wanted)
    return on_grad_out.to(grad_out.dtype), None, *fitting, *([None] * 7)


tiled_forward.register_autograd(_forward_gradients, setup_context=_save_forward)
tiled_backward.register_autograd(_backward_gradients, setup_context=_save_backward)
