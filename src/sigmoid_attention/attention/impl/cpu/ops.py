"""The fused kernel as operators of torch's library: forward, backward, and the backward of that.

Shape letters: B sequences, H query heads, G key heads, Q queries, K keys, D head dim, E value dim,
I query blocks, S parts of the keys.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sigmoid_attention.attention import torch_state
from sigmoid_attention.attention.impl.cpu.abi import (
    BLOCK_KEYS,
    BLOCK_QUERIES,
    Arguments,
    gradient_fields,
    loaded,
    run,
    supports,
    unpack,
)
from sigmoid_attention.attention.impl.cpu.second_order import backward_of_backward
from sigmoid_attention.attention.impl.layout import (
    empty_gradients,
    empty_output,
    only_wanted,
    with_contiguous_rows,
)
from sigmoid_attention.attention.impl.term_gradients import TermGradients, pair_heads
from sigmoid_attention.attention.problem import Problem
from sigmoid_attention.attention.tracing import constant_when_traced, known

# Units of work for each thread, at least, so that threads finish at about the same time.
_UNITS_A_THREAD = 4


def attend(problem: Problem) -> Tensor:
    """The operator on a checked problem, in the layout of its query.

    Raises:
        NotImplementedError: dropout, fp64, another device, no kernel on this machine,
            forward-mode derivatives, or gradients of a paged cache.
    """
    arguments, straight = operands(problem)
    return compute(None, None, *arguments) if straight else forward(*arguments)[0]


def operands(problem: Problem) -> tuple[tuple[Any, ...], bool]:
    """The arguments of ``forward``, and whether ``compute`` may be called directly.

    Raises ``NotImplementedError`` as ``attend`` does.
    """
    refuse(problem)
    own = problem.sequences
    tensors, number = problem.operands()
    arguments = (
        *tensors,
        None if own is None else own.offsets_and_lengths_4B,
        None if own is None else own.block_table_BM,
        *_pack(problem, number),
    )
    return arguments, problem.device.type == "cpu" and torch_state.bypasses_dispatcher(tensors)


def argument_block(problem: Problem, out: Tensor, mass: Tensor | None) -> bytes:
    """The kernel's argument block for a call without backward pass, whose tensors need no copies.

    The address of the lengths of a cache's sequences is left out.
    """
    tensors, number = problem.operands()
    arguments: tuple[Any, ...] = (*tensors, *unpack(None, None, *_pack(problem, number)))
    return Arguments(*arguments).bytes(out, None, mass)


def _pack(problem: Problem, constant) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Sizes and numbers in two tuples: torch checks every argument of an operator."""
    own = problem.sequences
    sizes = (
        *problem.shape[2:],
        int(own is not None and own.packed),
        *problem.window,
        _block_queries(problem),
        int(problem.tolerance_is_relative),
    )
    return sizes, (problem.scale, problem.softcap or 0.0, constant, problem.tolerance)


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
    """Whether this machine has a kernel, which is built at the first use."""
    return loaded() is not None


@constant_when_traced
def _threads() -> int:
    return torch.get_num_threads()


def _block_queries(problem: Problem) -> int:
    """Queries of a block: the kernel's maximum, or fewer to make blocks for all threads."""
    batch, heads, queries, _ = problem.shape
    block, threads = BLOCK_QUERIES, _threads()
    if threads > 1:
        wanted = threads * _UNITS_A_THREAD
        while block > BLOCK_QUERIES // 4 and known(batch * heads * -(-queries // block) < wanted):
            block //= 2
    return block


def key_splits(units: int, threads: int, keys: int) -> int:
    """Into how many parts each key head is cut, so that ``units`` key heads occupy all threads."""
    blocks = max(1, -(-keys // BLOCK_KEYS))
    splits, enough = 1, threads * _UNITS_A_THREAD
    while splits < blocks and units * splits < enough and (units * splits) % threads:
        splits += 1
    return splits


def empty_visits(
    query: Tensor,
    offsets_and_lengths: Tensor | None,
    block_table: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
) -> Tensor:
    """Zeros for the number of key blocks that each query block visits, (B, H, I)."""
    layout, _, block_queries = unpack(offsets_and_lengths, block_table, sizes, numbers)
    # Twice as many blocks as needed: torch specialises a size of 1, and a compiled graph would be
    # valid for short or for long sequences only.
    blocks = 2 * ((layout.max_q + block_queries - 1) // block_queries)
    return query.new_zeros(layout.sequences(query), query.shape[1], blocks, dtype=torch.int64)


def compute(
    visits: Tensor | None,
    mass: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    offsets_and_lengths: Tensor | None,
    block_table: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
) -> Tensor:
    """Output (B, H, Q, E).

    Fills, where they are given, ``visits`` for a backward pass and the ``mass`` (B, H, Q, 1).
    """
    layout, settings, block_queries = unpack(offsets_and_lengths, block_table, sizes, numbers)
    tensors = (query, key, value, bias, attn_mask, alibi_slopes)
    call = Arguments(*tensors, layout.fitted(), settings, block_queries)
    out = empty_output(query, value.shape[3])
    if out.numel() or (mass is not None and mass.numel()):
        run("sigmoid_attention_forward", call.bytes(out, visits, mass))
    return out


@torch.library.custom_op("sigmoid_attention::cpu_forward", mutates_args=())
def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    offsets_and_lengths: Tensor | None,
    block_table: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Output (B, H, Q, E), and the number of key blocks that each query block visits, (B, H, I)."""
    settings = (offsets_and_lengths, block_table, sizes, numbers)
    visits = empty_visits(query, *settings)
    tensors = (query, key, value, bias, attn_mask, alibi_slopes)
    return compute(visits, None, *tensors, *settings), visits


@forward.register_fake
def _(query, key, value, *arguments):
    return empty_output(query, value.shape[3]), empty_visits(query, *arguments[3:])


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
    offsets_and_lengths: Tensor | None,
    block_table: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
    grad_mass: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, bias, float mask and slopes; empty for what is not wanted.

    ``grad_mass`` (B, H, Q, 1) is given after a forward pass with the mass.
    """
    layout, settings, block_queries = unpack(offsets_and_lengths, block_table, sizes, numbers)
    layout = layout.fitted(bias, attn_mask)
    tensors = (query, key, value, bias, attn_mask, alibi_slopes)
    if grad_out.numel() == 0 and (grad_mass is None or grad_mass.numel() == 0):
        gradients = empty_gradients((bias_wanted, mask_wanted, slopes_wanted), tensors)
        return tuple(x.zero_() for x in gradients)  # pyright: ignore[reportReturnType]
    on_query, on_key, on_value = (empty_output(x, x.shape[3]) for x in (query, key, value))
    if offsets_and_lengths is not None and not layout.packed:
        on_key.zero_()  # a cache has rows past its tokens
        on_value.zero_()
    learned = (
        bias if bias_wanted else None,
        attn_mask if mask_wanted else None,
        alibi_slopes if slopes_wanted else None,
    )
    sequences, key_heads = visits.shape[0], key.shape[1]
    units = sequences * key_heads
    if (outer := pair_heads(*learned[:2])) is not None:
        # Units that add to the same gradient run one after the other.
        units = (sequences if outer[0] > 1 else 1) * (key_heads if outer[1] > 1 else 1)
    splits = key_splits(max(1, units), torch.get_num_threads(), layout.max_k)
    terms = TermGradients(
        query,
        (sequences, query.shape[1], layout.max_q, layout.max_k),
        *learned,
        heads_as="rows",
        row_parts=splits,
        slope_parts=splits,
        slope_dtype=torch.float64,
    )
    upstream = with_contiguous_rows(grad_out)
    on_rows = (on_query, on_key, on_value)
    fields = gradient_fields(upstream, *on_rows, grad_mass, terms, layout.packed)
    call = Arguments(*tensors, layout, settings, block_queries)
    run("sigmoid_attention_backward", call.bytes(None, visits, None, fields))
    return *on_rows, *terms.reduced()


@backward.register_fake
def _(grad_out, visits, bias_wanted, mask_wanted, slopes_wanted, *arguments):
    return empty_gradients((bias_wanted, mask_wanted, slopes_wanted), arguments[:6])


def save_forward(ctx, inputs, output):
    """Save a forward pass, whose last result are the visits, for ``forward_gradients``."""
    ctx.save_for_backward(output[-1], *inputs[:8])
    ctx.settings = inputs[8:]
    ctx.mark_non_differentiable(output[-1])


def forward_gradients(ctx, grad_out, *others):
    """The gradients of a forward pass; between grad_out and the visits' there may be grad_mass."""
    *grad_mass, _grad_visits = others
    visits, *tensors = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:6]
    gradients = backward(grad_out, visits, *wanted[3:], *tensors, *ctx.settings, *grad_mass)
    return *only_wanted(gradients, wanted), *([None] * 4)


def _save_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2], inputs[15], *inputs[5:13])
    ctx.settings = inputs[13:15]


def _backward_gradients(ctx, *directions):
    grad_out, visits, grad_mass, *tensors = ctx.saved_tensors
    wanted = ctx.needs_input_grad[5:11]
    *gradients, on_grad_out, on_grad_mass = backward_of_backward(
        *directions, grad_out, visits, *tensors, *ctx.settings, wanted[3:], grad_mass
    )
    others = (*only_wanted(gradients, wanted), *([None] * 4))
    return on_grad_out, *([None] * 4), *others, None if grad_mass is None else on_grad_mass


forward.register_autograd(forward_gradients, setup_context=save_forward)
backward.register_autograd(_backward_gradients, setup_context=_save_backward)
