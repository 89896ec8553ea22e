"""The kernels as operators of torch's library: forward, backward, and the backward of that.

Nothing is saved for a backward pass but the inputs: what the forward pass visited is planned again
from them, by the same kernels, and so comes out the same.

Shape letters: B sequences, H query heads, Q queries, E value dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sigmoid_attention.attention import torch_state
from sigmoid_attention.attention.impl import double_backward
from sigmoid_attention.attention.impl.cpu.abi import Layout
from sigmoid_attention.attention.impl.cpu.abi import Settings as TileSettings
from sigmoid_attention.attention.impl.cpu.ops import like
from sigmoid_attention.attention.impl.triton import configs
from sigmoid_attention.attention.impl.triton.activation import INTERPRETED
from sigmoid_attention.attention.impl.triton.call import (
    DTYPES,
    Call,
    Gradients,
    Settings,
    readable,
)
from sigmoid_attention.attention.impl.triton.sums import Sums
from sigmoid_attention.attention.problem import Problem
from sigmoid_attention.attention.tracing import constant_when_traced

OPERATORS = torch.ops.sigmoid_attention

_CALL = (
    "Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? attn_mask, "
    "Tensor? alibi_slopes, Tensor? places, SymInt[] sizes, float[] numbers"
)
_SIX, _SEVEN = (f"({', '.join(['Tensor'] * count)})" for count in (6, 7))
torch.library.define("sigmoid_attention::triton_forward", f"({_CALL}) -> Tensor")
torch.library.define(
    "sigmoid_attention::triton_backward",
    f"(Tensor grad_out, bool bias_wanted, bool mask_wanted, bool slopes_wanted, {_CALL}) -> {_SIX}",
)
torch.library.define(
    "sigmoid_attention::triton_double_backward",
    "(Tensor on_query, Tensor on_key, Tensor on_value, Tensor on_bias, Tensor on_mask, "
    f"Tensor on_slopes, Tensor grad_out, {_CALL}, bool[] wanted) -> {_SEVEN}",
)

# Of the tiles in which second derivatives are computed.
_BLOCK_Q = 192


def attend(problem: Problem) -> Tensor:
    """The operator on a checked problem, in the layout of its query.

    Raises:
        NotImplementedError: dropout, a dtype, head dim or device that the kernels are
            not made for, or forward-mode derivatives.
    """
    refuse(problem)
    own = problem.sequences
    if own is not None and own.raw_lengths_and_table()[1] is not None:
        # Pages are put in their order first: that copies keys, but makes no score for each pair.
        problem = problem.padded()
    tensors, given = arguments(problem)
    # On its way through torch's dispatcher a short call would take longer than its kernel.
    return (
        _forward(*given)
        if torch_state.bypasses_dispatcher(tensors)
        else OPERATORS.triton_forward(*given)
    )


def arguments(problem: Problem) -> tuple[tuple[Tensor | None, ...], tuple]:
    """The tensors of a call that autograd follows, and all arguments of the operator."""
    own = problem.sequences
    tensors, number = problem.operands()
    packed = int(own is not None and own.packed)
    sizes = (*problem.shape[2:], packed, *problem.window, int(problem.tolerance_is_relative))
    numbers = (problem.scale, problem.softcap or 0.0, number, problem.tolerance)
    return tensors, (*tensors, None if own is None else own.offsets_and_lengths_4B, sizes, numbers)


def refuse(problem: Problem, widest: int | None = None) -> None:
    """Raise ``NotImplementedError`` for what no kernel of this folder does.

    ``widest`` is the largest head dim, what the device's configurations hold if it is not given.
    """
    query = problem.query
    if problem.dropout_p > 0:
        raise NotImplementedError("dropout_p: the Triton kernels have no dropout")
    if query.dtype not in DTYPES:
        raise NotImplementedError(f"query: the Triton kernels have no {query.dtype}")
    if not INTERPRETED.value and (reason := _unfit(query.device)):
        raise NotImplementedError(
            f"query: is on {reason}, the Triton kernels need an NVIDIA GPU of capability 8.0"
        )
    widest = _widest(query.device, query.dtype) if widest is None else widest
    for name, tensor in (("query", query), ("value", problem.value)):
        if tensor.shape[3] > widest:
            raise NotImplementedError(
                f"{name}: in {query.dtype} the Triton kernels take head dims up to {widest} on "
                f"this GPU, got {tensor.shape[3]}"
            )
    if torch_state.in_forward_mode():
        raise NotImplementedError("query: the Triton kernels have no forward-mode derivative")


@constant_when_traced
def _unfit(device: torch.device) -> str | None:
    """What is wrong with a device."""
    if device.type != "cuda" or torch.version.hip is not None:
        return str(device)
    major, minor = configs.of(device).capability
    return f"{device} of capability {major}.{minor}" if major < 8 else None


@constant_when_traced
def _widest(device: torch.device, dtype: torch.dtype) -> int:
    return configs.widest(configs.of(device), dtype)


def unpacked(sizes: Sequence[int], numbers: Sequence[float]) -> Settings:
    max_q, max_k, packed, left, right, relative = sizes
    scale, softcap, constant, tolerance = map(float, numbers)
    return Settings(
        max_q, max_k, bool(packed), left, right, bool(relative), scale, softcap, constant, tolerance
    )


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    places: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
) -> Tensor:
    """Output (B, H, Q, E)."""
    settings = unpacked(sizes, numbers)
    out = like(query, value.shape[3])
    if settings.packed:
        out.zero_()  # behind the last sequence there may be rows that belong to none
    if out.numel():
        Call(query, key, value, bias, attn_mask, alibi_slopes, places, settings).forward(out)
    return out


def _backward(
    grad_out: Tensor,
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
    sizes: Sequence[int],
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, bias, float mask and slopes; empty for what is not wanted."""
    settings = unpacked(sizes, numbers)
    in_order = torch.are_deterministic_algorithms_enabled()
    call = Call(query, key, value, bias, attn_mask, alibi_slopes, places, settings)
    on_query, on_key, on_value = (like(x, x.shape[3]) for x in (query, key, value))
    if places is not None:
        # A cache is longer than what it holds, and packed rows may belong to no sequence.
        for grad in (on_query, on_key, on_value):
            grad.zero_()
    sums = Sums(
        query,
        (call.sequences, query.shape[1], settings.max_q, settings.max_k),
        call.configs.backward.block_k,
        bias if bias_wanted else None,
        attn_mask if mask_wanted else None,
        alibi_slopes if slopes_wanted else None,
        in_order,
    )
    total = on_query
    if not in_order:
        total = like(query, query.shape[3], torch.float32).zero_()
    into = Gradients(
        total, on_key, on_value, sums.rows, sums.columns, sums.pairs, sums.pairs_shared,
        sums.parts_of_slopes,
    )  # fmt: skip
    call.backward(readable(grad_out), into, in_order=in_order)
    if not in_order:
        torch.mul(total, settings.scale, out=on_query)
    return on_query, on_key, on_value, sums.of_bias(), sums.of_mask(), sums.of_slopes()


def _double_backward(
    on_query: Tensor,
    on_key: Tensor,
    on_value: Tensor,
    on_bias: Tensor,
    on_mask: Tensor,
    on_slopes: Tensor,
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    places: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of ``_backward``'s results, weighted by ``on_...``, for its inputs.

    Of bias, mask and slopes those that are absent or not ``wanted`` are empty.

    In tiles of PyTorch, all that are visible: what a plan left out of the first two passes is
    within their tolerance.
    """
    own = unpacked(sizes, numbers)
    sequences = query.shape[0] if places is None else places.shape[1]
    visits = query.new_full(
        (sequences, query.shape[1], -(-own.max_q // _BLOCK_Q)), own.max_k, dtype=torch.int64
    )
    return double_backward.gradients(
        (on_query, on_key, on_value, on_bias, on_mask, on_slopes),
        grad_out,
        visits,
        (query, key, value, bias, attn_mask, alibi_slopes),
        Layout(places, None, own.max_q, own.max_k, own.packed),
        TileSettings(
            own.left, own.right, _BLOCK_Q, own.relative, own.scale, own.softcap, own.constant,
            own.tolerance,
        ),
        wanted,
    )  # fmt: skip


def fake_forward(query, key, value, *arguments):
    return like(query, value.shape[3])


def _like_or_empty(wanted: bool, tensor: Tensor | None, query: Tensor) -> Tensor:
    if tensor is None or not wanted:
        return query.new_empty(0)
    return tensor.new_empty(tensor.shape)


def fake_backward(grad_out, bias_wanted, mask_wanted, slopes_wanted, *arguments):
    query, key, value, bias, mask, slopes = arguments[:6]
    return (
        *(like(x, x.shape[3]) for x in (query, key, value)),
        _like_or_empty(bias_wanted, bias, query),
        _like_or_empty(mask_wanted, mask, query),
        _like_or_empty(slopes_wanted, slopes, query),
    )


def _fake_double_backward(*arguments):
    grad_out, tensors, wanted = arguments[6], arguments[7:13], arguments[-1]
    given = zip((True, True, True, *wanted), tensors, strict=True)
    return *(_like_or_empty(want, x, grad_out) for want, x in given), torch.empty_like(grad_out)


def _wanted(grads, tensors) -> list[Tensor | None]:
    return [
        grad if tensor is not None and tensor.is_floating_point() else None
        for grad, tensor in zip(grads, tensors, strict=True)
    ]


def save_forward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:7])
    ctx.settings = inputs[7:]


def forward_gradients(ctx, grad_out, backward: str = "triton_backward"):
    tensors = ctx.saved_tensors
    wanted = ctx.needs_input_grad[3:6]
    grads = getattr(OPERATORS, backward)(grad_out, *wanted, *tensors, *ctx.settings)
    found = _wanted(grads, tensors[:6])
    found[3:] = [grad if want else None for grad, want in zip(found[3:], wanted, strict=True)]
    return *found, None, None, None


def save_backward(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], *inputs[4:11])
    ctx.settings = inputs[11:]


def backward_gradients(ctx, *directions):
    grad_out, *tensors = ctx.saved_tensors
    wanted = ctx.needs_input_grad[4:10]
    answer = OPERATORS.triton_double_backward(
        *directions, grad_out, *tensors, *ctx.settings, wanted[3:]
    )
    found = [grad if want else None for grad, want in zip(answer[:6], wanted, strict=True)]
    return answer[6], None, None, None, *found, None, None, None


for _name, _compute, _fake in (
    ("triton_forward", _forward, fake_forward),
    ("triton_backward", _backward, fake_backward),
    ("triton_double_backward", _double_backward, _fake_double_backward),
):
    # On the CPU, too: there Triton's interpreter runs the kernels, and nothing else gets here.
    torch.library.impl(f"sigmoid_attention::{_name}", ("cuda", "cpu"), _compute)
    torch.library.register_fake(f"sigmoid_attention::{_name}", _fake)
torch.library.register_autograd(
    "sigmoid_attention::triton_forward", forward_gradients, setup_context=save_forward
)
torch.library.register_autograd(
    "sigmoid_attention::triton_backward", backward_gradients, setup_context=save_backward
)
