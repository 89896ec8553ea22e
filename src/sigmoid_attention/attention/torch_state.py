"""Queries of torch's state: active tracers, dispatch modes, transforms and autograd.

Most of these names are private. If a release of torch changes one, only this file must change.
"""

import sys

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _current_graph_task_id,
    _get_tracing_state,
    _is_fwd_grad_enabled,
    _len_torch_dispatch_stack,
)
from torch._subclasses.fake_tensor import is_fake
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn import Parameter

# Subclasses are excluded, because they may redefine any operation.
_PLAIN = (Tensor, Parameter)


def bypasses_dispatcher(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether neither autograd nor a tracer nor a mode takes part in a call with these tensors.

    Such a call starts its kernel directly, because torch's dispatcher takes as long as a short
    decoding step.
    """
    learning = torch.is_grad_enabled()
    return is_eager() and all(x is None or is_plain_tensor(x, learning) for x in tensors)


def is_eager() -> bool:
    """Whether no tracer, dispatch mode or transform is active."""
    return not (
        is_compiling()
        or _get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or _len_torch_dispatch_stack()
        or _are_functorch_transforms_active()
    )


def is_plain_tensor(tensor: Tensor, learning: bool) -> bool:
    """Whether kernels may read the tensor's memory directly, without autograd or a subclass.

    ``learning`` is true while autograd records gradients.
    """
    return (
        type(tensor) in _PLAIN
        and not (learning and tensor.requires_grad)
        # The memory of a negated view has the opposite sign; torch's dispatcher resolves it.
        and not tensor.is_neg()
    )


def needs_definition() -> bool:
    """Whether torch.func, forward mode, a trace or an export to ONNX is active.

    They need PyTorch's own operations, of which the definition consists.
    """
    if exporting_to_onnx():
        return True
    if is_compiling():
        return False
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0 or in_jit_trace()


def in_forward_mode() -> bool:
    """Whether forward-mode derivatives are active; a compiled graph computes none."""
    return not is_compiling() and forward_ad._current_level >= 0


def in_jit_trace() -> bool:
    """Whether torch.jit.trace is active."""
    return _get_tracing_state() is not None


def in_functorch() -> bool:
    """Whether a transform of torch.func, such as vmap, is active."""
    return _are_functorch_transforms_active()


def in_dispatch_mode() -> bool:
    """Whether a dispatch mode, such as that of fake tensors, is active."""
    return _len_torch_dispatch_stack() > 0


def results_may_be_kept() -> bool:
    """Whether a tensor made now may be cached; one made under a tracer or mode may not."""
    return not (is_compiling() or in_dispatch_mode() or in_functorch())


def in_backward_pass() -> bool:
    """Whether autograd is running a backward pass in this thread."""
    return _current_graph_task_id() != -1


def forward_gradients_are_enabled() -> bool:
    """Whether forward mode is enabled; inside an autograd.Function it is not."""
    return _is_fwd_grad_enabled()


def has_values(tensor: Tensor) -> bool:
    """Whether the tensor has values; meta, fake and traced tensors have none."""
    return not (is_compiling() or tensor.is_meta or is_fake(tensor))


def exporting_to_onnx() -> bool:
    """Whether torch.onnx.export is active; this does not import torch.onnx.

    ONNX has no custom op of this library, but translations of all operations of the definition.
    """
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and onnx.is_in_onnx_export()
