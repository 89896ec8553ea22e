"""Attention under autocast: it computes in the precision of its inputs.

Autocast rounds the operands of every matrix product to bf16 or fp16, which suits linear layers.
Here it would leave two correct digits in logits and sums, so attention and all its derivatives
disable autocast. Only inputs of different dtypes are cast.
"""

import contextlib

import torch
from torch import Tensor

from sigmoid_attention.attention import torch_state

# The dtypes that autocast casts; float64 is not among them.
CAST = (torch.float16, torch.bfloat16, torch.float32)


def dtype_on(device: torch.device) -> torch.dtype | None:
    """Autocast's dtype for products on this device; None where autocast is off."""
    kind = device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which a layer multiplies this tensor."""
    dtype = dtype_on(tensor.device)
    return tensor.dtype if dtype is None or tensor.dtype not in CAST else dtype


def off(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which autocast is off for this device.

    It does not cover the backward pass of its operations, which runs later.
    """
    if dtype_on(device) is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def same_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, cast to autocast's dtype if autocast is on and their dtypes differ.

    torch's ``scaled_dot_product_attention`` does the same. Tensors of equal dtype are returned
    unchanged, and so are all three if one of them is float64.

    Example:
        >>> q, k, v = torch.randn(3, 1, 2, 5, 8).unbind(0)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     [x.dtype for x in same_dtype(q, k, v.bfloat16())]
        [torch.bfloat16, torch.bfloat16, torch.bfloat16]
    """
    tensors = query, key, value
    if query.dtype == key.dtype == value.dtype:
        return tensors
    dtype = dtype_on(query.device)
    if dtype is None or any(tensor.dtype not in CAST for tensor in tensors):
        return tensors
    return query.to(dtype), key.to(dtype), value.to(dtype)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right of equal leading sizes; all derivatives have the precision of the operands.

    Autocast rounds the backward pass of a plain product if that pass runs under autocast; in a
    compiled graph, also if only the forward pass does.
    """
    tracing = torch_state.in_jit_trace()
    if not (tracing or torch.compiler.is_compiling()):
        return _Product.apply(left, right)
    # Exported graphs and torch.func need PyTorch's own operations.
    kept = tracing or torch.compiler.is_exporting() or torch_state.in_functorch()
    if kept or dtype_on(left.device) is None:
        with off(left.device):
            return left @ right
    return compiled_product(left, right)


class _Product(torch.autograd.Function):
    """The product as an autograd function whose derivatives are such products too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(left: Tensor, right: Tensor) -> Tensor:
        with off(left.device):
            return left @ right

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        left, right = ctx.saved_tensors
        return (
            product(grad, right.mT) if ctx.needs_input_grad[0] else None,
            product(left.mT, grad) if ctx.needs_input_grad[1] else None,
        )

    @staticmethod
    def jvp(ctx, along_left, along_right):
        left, right = ctx.saved_tensors
        parts = []
        if along_left is not None:
            parts.append(product(along_left, right))
        if along_right is not None:
            parts.append(product(left, along_right))
        return sum(parts[1:], start=parts[0])


@torch.library.custom_op("sigmoid_attention::product", mutates_args=())
def compiled_product(left: Tensor, right: Tensor) -> Tensor:
    """The product as a custom op: opaque to compiled graphs, with its own derivative."""
    with off(left.device):
        return left @ right


@compiled_product.register_fake
def _(left, right):
    return left.new_empty(*left.shape[:-1], right.shape[-1])


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad):
    left, right = ctx.saved_tensors
    return compiled_product(grad, right.mT), compiled_product(left.mT, grad)


compiled_product.register_autograd(_gradients, setup_context=_save)
