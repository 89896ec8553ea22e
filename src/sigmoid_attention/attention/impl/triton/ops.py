"""The kernels as operators of torch's library: forward, backward, and the backward of that.

Only the inputs are saved for a backward pass. From them the same kernels make the same plan again,
so that both passes visit the same tiles.

Shape letters: B sequences, H query heads, Q queries, E value dim.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sigmoid_attention.attention import torch_state
from sigmoid_attention.attention.impl import double_backward
from sigmoid_attention.attention.impl.layout import (
    Layout,
    LogitSettings,
    empty_gradient,
    empty_gradients,
    empty_output,
    only_wanted,
)
from sigmoid_attention.attention.impl.term_gradients import TermGradients
from sigmoid_attention.attention.impl.triton import configs
from sigmoid_attention.attention.impl.triton.activation import INTERPRETED
from sigmoid_attention.attention.impl.triton.call import DTYPES, Call, cdiv, readable
from sigmoid_attention.attention.problem import Problem
from sigmoid_attention.attention.tracing import constant_when_traced

OPERATORS = torch.ops.sigmoid_attention

_CALL = (
    "Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? attn_mask, "
    "Tensor? alibi_slopes, Tensor? offsets_and_lengths, SymInt[] sizes, float[] numbers"
)
_SIX, _EIGHT = (f"({', '.join(['Tensor'] * count)})" for count in (6, 8))
torch.library.define("sigmoid_attention::triton_forward", f"({_CALL}) -> Tensor")
torch.library.define(
    "sigmoid_attention::triton_forward_with_mass", f"({_CALL}) -> (Tensor, Tensor)"
)
torch.library.define(
    "sigmoid_attention::triton_backward",
    f"(Tensor grad_out, bool bias_wanted, bool mask_wanted, bool slopes_wanted, {_CALL}, "
    f"Tensor? grad_mass=None) -> {_SIX}",
)
torch.library.define(
    "sigmoid_attention::triton_double_backward",
    "(Tensor on_query, Tensor on_key, Tensor on_value, Tensor on_bias, Tensor on_mask, "
    f"Tensor on_slopes, Tensor grad_out, {_CALL}, bool[] wanted, Tensor? grad_mass=None) "
    f"-> {_EIGHT}",
)

# The tiles of second derivatives.
_BLOCK_Q, _BLOCK_K = 192, 128


def attend(problem: Problem) -> Tensor:
    """The operator on a checked problem, in the layout of its query.

    Raises:
        NotImplementedError: dropout, a dtype, head dim or device that the kernels are
            not made for, or forward-mode derivatives.
    """
    return _attend(problem, _forward, "triton_forward")


def attend_with_mass(problem: Problem) -> tuple[Tensor, Tensor]:
    """The same and the mass of each row, the sum of its weights: (B, H, Q) or (1, H, T) in fp32.

    Raises what ``attend`` raises.
    """
    out, mass_BHQ1 = _attend(problem, _forward_with_mass, "triton_forward_with_mass")
    return out, mass_BHQ1[..., 0]


def _attend(problem: Problem, compute: Callable, operator: str) -> Any:
    refuse(problem)
    own = problem.sequences
    if own is not None and own.raw_lengths_and_table()[1] is not None:
        # The pages are copied in their order, which needs no memory for each pair.
        problem = problem.padded()
    tensors, given = arguments(problem)
    # On its way through torch's dispatcher a short call would take longer than its kernel.
    bypass = torch_state.bypasses_dispatcher(tensors)
    return (compute if bypass else getattr(OPERATORS, operator))(*given)


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
    """The reason for which a device cannot run the kernels, None for one that can."""
    if device.type != "cuda" or torch.version.hip is not None:
        return str(device)
    major, minor = configs.of(device).capability
    return f"{device} of capability {major}.{minor}" if major < 8 else None


@constant_when_traced
def _widest(device: torch.device, dtype: torch.dtype) -> int:
    return configs.widest(configs.of(device), dtype)


def unpacked(
    offsets_and_lengths: Tensor | None, sizes: Sequence[int], numbers: Sequence[float]
) -> tuple[Layout, LogitSettings]:
    max_q, max_k, packed, left, right, relative = sizes
    scale, softcap, constant, tolerance = map(float, numbers)
    layout = Layout(offsets_and_lengths, None, max_q, max_k, bool(packed))
    return layout, LogitSettings(left, right, bool(relative), scale, softcap, constant, tolerance)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    attn_mask: Tensor | None,
    alibi_slopes: Tensor | None,
    offsets_and_lengths: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
    mass: Tensor | None = None,
) -> Tensor:
    """Output (B, H, Q, E); ``mass`` (B, H, Q, 1), if there is one, is filled."""
    layout, settings = unpacked(offsets_and_lengths, sizes, numbers)
    out = empty_output(query, value.shape[3])
    if layout.packed:
        out.zero_()  # rows past the last sequence belong to none
    if (out if mass is None else mass).numel():
        Call(query, key, value, bias, attn_mask, alibi_slopes, layout, settings).forward(out, mass)
    return out


def _forward_with_mass(query: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    mass = query.new_zeros(*query.shape[:3], 1, dtype=torch.float32)
    return _forward(query, *arguments, mass=mass), mass


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
    offsets_and_lengths: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
    grad_mass: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, bias, float mask and slopes; empty for what is not wanted.

    ``grad_mass`` (B, H, Q, 1) is given after a forward pass with the mass.
    """
    layout, settings = unpacked(offsets_and_lengths, sizes, numbers)
    in_order = torch.are_deterministic_algorithms_enabled()
    call = Call(query, key, value, bias, attn_mask, alibi_slopes, layout, settings)
    on_query, on_key, on_value = (empty_output(x, x.shape[3]) for x in (query, key, value))
    if offsets_and_lengths is not None:
        # Rows of a cache past its tokens, and packed rows past the last sequence, get zeros.
        for grad in (on_query, on_key, on_value):
            grad.zero_()
    terms = TermGradients(
        query,
        (call.sequences, query.shape[1], layout.max_q, layout.max_k),
        bias if bias_wanted else None,
        attn_mask if mask_wanted else None,
        alibi_slopes if slopes_wanted else None,
        heads_as="columns",
        row_parts=1,
        slope_parts=cdiv(layout.max_k, call.configs.backward.block_k),
        slope_dtype=torch.float32,
        share_pairs=not in_order,
    )
    unscaled = on_query
    if not in_order:
        unscaled = empty_output(query, query.shape[3], torch.float32).zero_()
    gradients = unscaled, on_key, on_value
    call.backward(readable(grad_out), grad_mass, gradients, terms, in_order=in_order)
    if not in_order:
        torch.mul(unscaled, settings.scale, out=on_query)
    return on_query, on_key, on_value, *terms.reduced()


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
    offsets_and_lengths: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
    wanted: Sequence[bool],
    grad_mass: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of ``_backward``'s results, weighted by ``on_...``, for its inputs.

    The last two are for ``grad_out`` and ``grad_mass``. Of bias, mask, slopes and ``grad_mass``
    those that are absent or not ``wanted`` are empty.

    It is computed in tiles by PyTorch, over all visible tiles. Those that the plan skipped in the
    first two passes are within the tolerance.
    """
    layout, settings = unpacked(offsets_and_lengths, sizes, numbers)
    blocks = (layout.sequences(query), query.shape[1], cdiv(layout.max_q, _BLOCK_Q))
    visits = query.new_full(blocks, layout.max_k, dtype=torch.int64)
    return double_backward.gradients_with_mass(
        (on_query, on_key, on_value, on_bias, on_mask, on_slopes),
        grad_out,
        grad_mass,
        visits,
        (query, key, value, bias, attn_mask, alibi_slopes),
        layout,
        settings,
        wanted,
        block_q=_BLOCK_Q,
        block_k=_BLOCK_K,
    )


def fake_forward(query, key, value, *arguments):
    return empty_output(query, value.shape[3])


def _fake_forward_with_mass(query, key, value, *arguments):
    mass = query.new_empty(*query.shape[:3], 1, dtype=torch.float32)
    return fake_forward(query, key, value), mass


def fake_backward(grad_out, bias_wanted, mask_wanted, slopes_wanted, *arguments):
    return empty_gradients((bias_wanted, mask_wanted, slopes_wanted), arguments[:6])


def _fake_double_backward(*arguments):
    # A default is not among the arguments.
    grad_out, (wanted, *grad_mass) = arguments[6], arguments[16:]
    gradients = double_backward.fake_gradients(grad_out, arguments[7:13], wanted)
    return *gradients, empty_gradient(True, grad_mass[0] if grad_mass else None, grad_out)


def save_forward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:7])
    ctx.settings = inputs[7:]


def forward_gradients(ctx, grad_out, backward: str = "triton_backward", *grad_mass: Tensor):
    tensors = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:6]
    arguments = grad_out, *wanted[3:], *tensors, *ctx.settings, *grad_mass
    gradients = getattr(OPERATORS, backward)(*arguments)
    return *only_wanted(gradients, wanted), None, None, None


def _gradients_with_mass(ctx, grad_out, grad_mass):
    return forward_gradients(ctx, grad_out, "triton_backward", grad_mass)


def save_backward(ctx, inputs, output):
    grad_mass, *_ = *inputs[13:], None  # the gluon operator has none
    ctx.save_for_backward(inputs[0], grad_mass, *inputs[4:11])
    ctx.settings = inputs[11:13]


def backward_gradients(ctx, *directions):
    grad_out, grad_mass, *tensors = ctx.saved_tensors
    wanted = ctx.needs_input_grad[4:10]
    *gradients, on_grad_out, on_grad_mass = OPERATORS.triton_double_backward(
        *directions, grad_out, *tensors, *ctx.settings, wanted[3:], grad_mass
    )
    others = (*only_wanted(gradients, wanted), None, None, None)
    return on_grad_out, None, None, None, *others, None if grad_mass is None else on_grad_mass


for _name, _compute, _fake in (
    ("triton_forward", _forward, fake_forward),
    ("triton_forward_with_mass", _forward_with_mass, _fake_forward_with_mass),
    ("triton_backward", _backward, fake_backward),
    ("triton_double_backward", _double_backward, _fake_double_backward),
):
    # Also on the CPU, where only Triton's interpreter runs the kernels.
    torch.library.impl(f"sigmoid_attention::{_name}", ("cuda", "cpu"), _compute)
    torch.library.register_fake(f"sigmoid_attention::{_name}", _fake)
for _name, _gradients, _save in (
    ("triton_forward", forward_gradients, save_forward),
    ("triton_forward_with_mass", _gradients_with_mass, save_forward),
    ("triton_backward", backward_gradients, save_backward),
):
    torch.library.register_autograd(f"sigmoid_attention::{_name}", _gradients, setup_context=_save)
