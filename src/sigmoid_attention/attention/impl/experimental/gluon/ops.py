"""The Hopper kernels as operators of torch's library: forward and backward.

Gradients that these kernels do not compute come from the portable kernels, whose operators take the
same arguments and follow the same plan.

Shape letters: B batch, H query heads, Q queries, D head dim.
"""

import torch
from torch import Tensor

from sigmoid_attention.attention.impl.experimental.gluon.call import HopperCall
from sigmoid_attention.attention.impl.experimental.gluon.configs import HEAD_DIMS
from sigmoid_attention.attention.impl.layout import empty_output
from sigmoid_attention.attention.impl.triton import activation
from sigmoid_attention.attention.impl.triton import ops as portable
from sigmoid_attention.attention.problem import Problem
from sigmoid_attention.attention.torch_state import bypasses_dispatcher
from sigmoid_attention.attention.tracing import constant_when_traced

OPERATORS = torch.ops.sigmoid_attention
DTYPES = (torch.bfloat16, torch.float16)

_FORWARD, _BACKWARD = (
    str(getattr(OPERATORS, f"triton_{which}").default._schema).split("(", 1)[1]
    for which in ("forward", "backward")
)
torch.library.define("sigmoid_attention::gluon_forward", f"({_FORWARD}")
torch.library.define("sigmoid_attention::gluon_backward", f"({_BACKWARD}")


def attend(problem: Problem) -> Tensor:
    """The operator on a checked problem, in the layout of its query.

    Raises:
        NotImplementedError: what the portable kernels refuse, and: a GPU other than Hopper,
            other dtypes than bf16 and fp16, head dims other than 64 and 128, packed or cached
            sequences, a mask, a softcap, a bias of rows or keys, nothing to compute, the
            hardware's tanh.
    """
    refuse(problem)
    tensors, arguments = portable.arguments(problem)
    return (
        _forward(*arguments)
        if bypasses_dispatcher(tensors)
        else OPERATORS.gluon_forward(*arguments)
    )


def refuse(problem: Problem) -> None:
    """Raise ``NotImplementedError`` for what these kernels do not do."""
    query, value, bias = problem.query, problem.value, problem.bias
    if query.dtype not in DTYPES:
        raise NotImplementedError(f"query: the Hopper kernels have no {query.dtype}")
    if query.shape[3] not in HEAD_DIMS or value.shape[3] != query.shape[3]:
        raise NotImplementedError(
            f"query: the Hopper kernels take head dims {HEAD_DIMS}, the same for value, "
            f"got {query.shape[3]} and {value.shape[3]}"
        )
    if problem.sequences is not None:
        raise NotImplementedError("key: the Hopper kernels take no packed or cached sequences")
    if problem.attn_mask is not None:
        raise NotImplementedError("attn_mask: the Hopper kernels take none")
    if problem.softcap is not None:
        raise NotImplementedError("softcap: the Hopper kernels have none")
    if isinstance(bias, Tensor) and any(size > 1 for size in bias.shape[-2:]):
        raise NotImplementedError(
            f"bias: the Hopper kernels take one for each head, got the shape {tuple(bias.shape)}"
        )
    if 0 in query.shape or 0 in problem.key.shape:
        raise NotImplementedError("query: the Hopper kernels need something to compute")
    if activation.tanh_is_used():
        raise NotImplementedError("activation: the Hopper kernels have the accurate one only")
    if (reason := _unfit(query.device)) is not None:
        raise NotImplementedError(f"query: is on {reason}, the Hopper kernels need capability 9.0")
    portable.refuse(problem)


@constant_when_traced
def _unfit(device: torch.device) -> str | None:
    """The reason for which a device cannot run the kernels, None for one that can."""
    if device.type != "cuda" or torch.version.hip is not None:
        return str(device)
    major, minor = torch.cuda.get_device_capability(device)
    return None if (major, minor) == (9, 0) else f"{device} of capability {major}.{minor}"


def _forward(
    query, key, value, bias, attn_mask, alibi_slopes, offsets_and_lengths, sizes, numbers
) -> Tensor:
    """Output (B, H, Q, D)."""
    layout, settings = portable.unpacked(offsets_and_lengths, sizes, numbers)
    out = empty_output(query, value.shape[3])
    HopperCall(query, key, value, bias, attn_mask, alibi_slopes, layout, settings).forward(out)
    return out


def _backward(grad_out, bias_wanted, mask_wanted, slopes_wanted, query, key, value, *rest):
    """Gradients of query, key, value, bias, float mask and slopes; empty for what is not wanted."""
    if (
        bias_wanted
        or slopes_wanted
        or torch.are_deterministic_algorithms_enabled()
        or query.dtype == torch.float16
    ):
        # Only the portable kernels sum gradients of terms, add in order, and scale for fp16.
        wanted = (bias_wanted, mask_wanted, slopes_wanted)
        return OPERATORS.triton_backward(grad_out, *wanted, query, key, value, *rest)
    bias, attn_mask, alibi_slopes, offsets_and_lengths, sizes, numbers = rest
    layout, settings = portable.unpacked(offsets_and_lengths, sizes, numbers)
    unscaled = empty_output(query, query.shape[3], torch.float32).zero_()
    on_query, on_key, on_value = (empty_output(x, x.shape[3]) for x in (query, key, value))
    call = HopperCall(query, key, value, bias, attn_mask, alibi_slopes, layout, settings)
    call.keys_pass(grad_out, unscaled, on_key, on_value)
    torch.mul(unscaled, settings.scale, out=on_query)
    return on_query, on_key, on_value, *(query.new_empty(0) for _ in range(3))


def _forward_gradients(ctx, grad_out):
    return portable.forward_gradients(ctx, grad_out, "gluon_backward")


for _name, _compute, _fake in (
    ("gluon_forward", _forward, portable.fake_forward),
    ("gluon_backward", _backward, portable.fake_backward),
):
    torch.library.impl(f"sigmoid_attention::{_name}", "cuda", _compute)
    torch.library.register_fake(f"sigmoid_attention::{_name}", _fake)
torch.library.register_autograd(
    "sigmoid_attention::gluon_forward", _forward_gradients, setup_context=portable.save_forward
)
torch.library.register_autograd(
    "sigmoid_attention::gluon_backward",
    portable.backward_gradients,
    setup_context=portable.save_backward,
)
