"""The fused kernel as operators of torch's library: forward, backward, and the backward of that.

Shape letters: B sequences, H query heads, G key heads, Q queries, K keys, D head dim, E value dim,
I query blocks, S parts of the keys.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sigmoid_attention.attention import torch_state
from sigmoid_attention.attention.impl import double_backward, term_gradients
from sigmoid_attention.attention.impl.cpu.abi import (
    BLOCK_QUERIES,
    Arguments,
    Gradients,
    Layout,
    Settings,
    loaded,
    readable,
    run,
    supports,
)
from sigmoid_attention.attention.problem import Problem, known
from sigmoid_attention.attention.tracing import constant_when_traced

# Blocks of queries a thread should find, so that the last one to finish is not waited for long.
_BLOCKS_A_THREAD = 4


def attend(problem: Problem) -> Tensor:
    """The operator on a checked problem, in the layout of its query.

    Raises:
        NotImplementedError: dropout, fp64, another device, no kernel on this machine,
            forward-mode derivatives, or gradients of a paged cache.
    """
    refuse(problem)
    own = problem.sequences
    tensors, number = problem.operands()
    arguments: tuple[Any, ...] = (
        *tensors,
        None if own is None else own.offsets_and_lengths_4B,
        None if own is None else own.block_table_BM,
        *_pack(problem, number),
    )
    straight = problem.device.type == "cpu" and torch_state.bypasses_dispatcher(tensors)
    return _compute(None, *arguments) if straight else forward(*arguments)[0]


def struct(problem: Problem) -> bytes:
    """The kernel's struct for a call without backward pass, whose tensors need no copies.

    Where the sequences of a cache end is left out.
    """
    tensors, number = problem.operands()
    layout, settings = _unpack(None, None, *_pack(problem, number))
    out = like(problem.query, problem.value.shape[3])
    arguments: tuple[Any, ...] = (*tensors, layout, settings)
    return Arguments(*arguments).bytes(out, None)


def _pack(problem: Problem, constant) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Sizes and numbers: an operator's schema is walked once for each of its arguments."""
    own = problem.sequences
    sizes = (
        *problem.shape[2:],
        int(own is not None and own.packed),
        *problem.window,
        _block_queries(problem),
        int(problem.tolerance_is_relative),
    )
    return sizes, (problem.scale, problem.softcap or 0.0, constant, problem.tolerance)


def _unpack(
    places: Tensor | None,
    block_table: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
) -> tuple[Layout, Settings]:
    """What ``_pack`` packed."""
    max_q, max_k, packed, left, right, block_q, relative = sizes
    layout = Layout(places, block_table, max_q, max_k, bool(packed))
    return layout, Settings(left, right, block_q, bool(relative), *numbers)


def refuse(problem: Problem) -> None:
    """Raise ``NotImplementedError`` for what the kernel does not do."""
    if problem.dropout_p > 0:
        raise NotImplementedError("dropout_p: the CPU kernel has no dropout")
    if problem.device.type not in ("cpu", "meta"):
        raise NotImplementedError(f"query: is on {problem.device}, the CPU kernel needs the CPU")
    if not supports(problem.query.dtype):
        raise NotImplementedError(f"query: the CPU kernel has no {problem.query.dtype}")
    if not available():
        raise NotImplementedError("impl: there is no CPU kernel on this machine (see the log)")
    if torch_state.in_forward_mode():
        raise NotImplementedError("query: the CPU kernel has no forward-mode derivative")
    own = problem.sequences
    paged = own is not None and own.block_table_BM is not None
    learns = problem.key.requires_grad or problem.value.requires_grad
    if paged and learns and torch.is_grad_enabled():
        # Sequences may share a page: two units of work would write one gradient.
        raise NotImplementedError("key_cache: the CPU kernel has no gradient of a paged cache")


@constant_when_traced
def available() -> bool:
    """Whether this machine has a kernel; builds it where that was not done yet."""
    return loaded() is not None


@constant_when_traced
def _threads() -> int:
    return torch.get_num_threads()


def _block_queries(problem: Problem) -> int:
    """Rows of a block: as many as the kernel takes, fewer where threads would find too few."""
    batch, heads, queries, _ = problem.shape
    block, threads = BLOCK_QUERIES, _threads()
    if threads > 1:
        wanted = threads * _BLOCKS_A_THREAD
        while block > BLOCK_QUERIES // 4 and known(batch * heads * -(-queries // block) < wanted):
            block //= 2
    return block


def like(tensor: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Room for a result with the tensor's rows, and its order of heads and tokens in memory."""
    batch, heads, rows, _ = tensor.shape
    along = (dim, heads * dim) if tensor.stride(1) < tensor.stride(2) else (rows * dim, dim)
    stride = (heads * rows * dim, *along, 1)
    return tensor.new_empty_strided((batch, heads, rows, dim), stride, dtype=dtype)


def _visits(query: Tensor, layout: Layout, block_q: int) -> Tensor:
    # Twice as many blocks as there are: torch makes a size of 1 a case of its own, and a compiled
    # graph would serve short lengths or long ones.
    blocks = 2 * ((layout.max_q + block_q - 1) // block_q)
    return query.new_zeros(layout.sequences(query), query.shape[1], blocks, dtype=torch.int64)


def _compute(
    visits: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    places: Tensor | None,
    block_table: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
) -> Tensor:
    """Output (B, H, Q, E); ``visits`` are filled where a backward pass may want them."""
    layout, settings = _unpack(places, block_table, sizes, numbers)
    call = Arguments(query, key, value, bias, attn_mask, alibi_slopes, layout.fitted(), settings)
    out = like(query, value.shape[3])
    if out.numel():
        run("sigmoid_attention_forward", call.bytes(out, visits))
    return out


@torch.library.custom_op("sigmoid_attention::cpu_forward", mutates_args=())
def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    places: Tensor | None,
    block_table: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Output (B, H, Q, E), and how many key blocks each query block visits, (B, H, I)."""
    layout, settings = _unpack(places, block_table, sizes, numbers)
    visits = _visits(query, layout, settings.block_q)
    tensors = (query, key, value, bias, attn_mask, alibi_slopes, places, block_table)
    return _compute(visits, *tensors, sizes, numbers), visits


@forward.register_fake
def _(query, key, value, *arguments):
    layout, settings = _unpack(*arguments[3:])
    return like(query, value.shape[3]), _visits(query, layout, settings.block_q)


@torch.library.custom_op("sigmoid_attention::cpu_backward", mutates_args=())
def backward(
    grad_out: Tensor,
    visits: Tensor,
    bias_wanted: bool,
    mask_wanted: bool,
    slopes_wanted: bool,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    places: Tensor | None,
    block_table: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, bias, float mask and slopes; empty for what is not wanted."""
    layout, settings = _unpack(places, block_table, sizes, numbers)
    layout = layout.fitted(bias, attn_mask)
    call = Arguments(query, key, value, bias, attn_mask, alibi_slopes, layout, settings)
    on_query, on_key, on_value = (like(x, x.shape[3]) for x in (query, key, value))
    if grad_out.numel() == 0:
        terms = ((bias_wanted, bias), (mask_wanted, attn_mask), (slopes_wanted, alibi_slopes))
        on_terms = [_like_or_empty(*term, query) for term in terms]
        return tuple(x.zero_() for x in (on_query, on_key, on_value, *on_terms))  # pyright: ignore
    if places is not None and not layout.packed:
        on_key.zero_()  # a cache is longer than what it holds
        on_value.zero_()
    shape = (visits.shape[0], query.shape[1], layout.max_q, layout.max_k)
    room = term_gradients.Room(
        query,
        shape,
        key.shape[1],
        bias if bias_wanted else None,
        attn_mask if mask_wanted else None,
        alibi_slopes if slopes_wanted else None,
    )
    gradients = Gradients(
        readable(grad_out),
        on_query,
        on_key,
        on_value,
        room.splits,
        rows=room.rows,
        columns=room.columns,
        pairs=room.pairs,
        slopes=room.parts_of_slopes,
    )
    run("sigmoid_attention_backward", call.bytes(None, visits, gradients.places(layout.packed)))
    return on_query, on_key, on_value, room.of_bias(), room.of_mask(), room.of_slopes()


def _like_or_empty(wanted: bool, tensor: Tensor | None, query: Tensor) -> Tensor:
    if tensor is None or not wanted:
        return query.new_empty(0)
    return tensor.new_empty(tensor.shape)


@backward.register_fake
def _(grad_out, visits, bias_wanted, mask_wanted, slopes_wanted, *arguments):
    query, key, value, bias, mask, slopes = arguments[:6]
    return (
        *(like(x, x.shape[3]) for x in (query, key, value)),
        _like_or_empty(bias_wanted, bias, query),
        _like_or_empty(mask_wanted, mask, query),
        _like_or_empty(slopes_wanted, slopes, query),
    )


@torch.library.custom_op("sigmoid_attention::cpu_double_backward", mutates_args=())
def backward_of_backward(
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
    bias: Tensor | None,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    places: Tensor | None,
    block_table: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``backward``'s results, weighted by ``on_...``, for its inputs.

    Of bias, mask and slopes those that are absent or not ``wanted`` are empty.
    """
    return double_backward.gradients(  # pyright: ignore[reportReturnType]
        (on_query, on_key, on_value, on_bias, on_mask, on_slopes),
        grad_out,
        visits,
        (query, key, value, bias, attn_mask, alibi_slopes),
        *_unpack(places, block_table, sizes, numbers),
        wanted,
    )


@backward_of_backward.register_fake
def _(*arguments):
    grad_out, tensors, wanted = arguments[6], arguments[8:14], arguments[-1]
    given = zip((True, True, True, *wanted, True), (*tensors, grad_out), strict=True)
    return tuple(_like_or_empty(want, x, grad_out) for want, x in given)


def _wanted(grads, tensors) -> list[Tensor | None]:
    return [
        grad if tensor is not None and grad.numel() == tensor.numel() else None
        for grad, tensor in zip(grads, tensors, strict=True)
    ]


def _save_forward(ctx, inputs, output):
    ctx.save_for_backward(output[1], *inputs[:8])
    ctx.settings = inputs[8:]
    ctx.mark_non_differentiable(output[1])


def _forward_gradients(ctx, grad_out, _grad_visits):
    visits, *tensors = ctx.saved_tensors
    wanted = ctx.needs_input_grad[3:6]
    grads = backward(grad_out, visits, *wanted, *tensors, *ctx.settings)
    found = _wanted(grads, tensors[:6])
    found[3:] = [grad if want else None for grad, want in zip(found[3:], wanted, strict=True)]
    return *found, *([None] * 4)


def _save_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2], *inputs[5:13])
    ctx.settings = inputs[13:]


def _backward_gradients(ctx, *directions):
    grad_out, visits, *tensors = ctx.saved_tensors
    wanted = ctx.needs_input_grad[5:11]
    answer = backward_of_backward(
        *directions, grad_out, visits, *tensors, *ctx.settings, wanted[3:]
    )
    found = [grad if want else None for grad, want in zip(answer[:6], wanted, strict=True)]
    return answer[6], None, None, None, None, *found, *([None] * 4)


forward.register_autograd(_forward_gradients, setup_context=_save_forward)
backward.register_autograd(_backward_gradients, setup_context=_save_backward)
