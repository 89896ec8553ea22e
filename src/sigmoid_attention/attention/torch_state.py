"""All that this library reads of torch's state, most of it private: tracers, modes, transforms.

A release of torch that changes one of these names breaks this file and no other.
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

# A subclass may give any meaning to an operation.
_PLAIN = (Tensor, Parameter)


def bypasses_dispatcher(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether autograd, a tracer or a mode has no part in a call with these tensors.

    Such a call starts its kernel directly: torch's dispatcher takes as long as a short decoding
    step does.
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
    """Whether a tensor is only its memory; ``learning`` is true while gradients are recorded."""
    return (
        type(tensor) in _PLAIN
        and not (learning and tensor.requires_grad)
        # The memory of such a view has the other sign; torch's dispatcher resolves that.
        and not tensor.is_neg()
    )


def needs_definition() -> bool:
    """Whether torch.func, forward mode, a trace or an export to ONNX follows the call.

    They see through operations of torch alone, and the definition consists of these.
    """
    if exporting_to_onnx():
        return True
    if is_compiling():
        return False
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0 or in_jit_trace()


def in_forward_mode() -> bool:
    """Whether derivatives in forward mode are computed; a graph that is compiled computes none."""
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
    """Whether a tensor made now means the same later: one that a tracer makes does not."""
    return not (is_compiling() or in_dispatch_mode() or in_functorch())


def in_backward_pass() -> bool:
    """Whether autograd runs a backward pass in this thread."""
    return _current_graph_task_id() != -1


def forward_gradients_are_enabled() -> bool:
    """Whether forward mode may be used; within an autograd.Function it may not."""
    return _is_fwd_grad_enabled()


def has_values(tensor: Tensor) -> bool:
    """Whether the tensor's values exist: a meta or fake tensor, or one in a graph, has none."""
    return not (is_compiling() or tensor.is_meta or is_fake(tensor))


def exporting_to_onnx() -> bool:
    """Whether torch.onnx.export is active; that module is not loaded to find out.

    ONNX has no operator of this library, but a translation of all that the definition uses.
    """
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and onnx.is_in_onnx_export()
