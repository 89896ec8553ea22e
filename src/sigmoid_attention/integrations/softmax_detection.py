"""Trace which modules of a model run, and which of them call a softmax operator.

Class names do not tell what a module computes. So the trace is taken at torch's dispatcher, which
every operator reaches: a plain softmax, a fused attention kernel, or a fast path that skips the
forward of its module.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

# Parts of the names of operators in which torch computes a softmax over keys.
SOFTMAXES = (
    "softmax",
    "scaled_dot_product",
    "flash_attention",
    "efficient_attention",
    "multi_head_attention",
    "transformer_encoder_layer",
)


@dataclass
class SoftmaxTrace:
    """The names of the modules that ran, and the softmax operator of those that called one."""

    ran: set[str] = field(default_factory=set)
    softmaxes: dict[str, str] = field(default_factory=dict)


class _SoftmaxRecorder(TorchDispatchMode):
    def __init__(self, trace: SoftmaxTrace, running: list[str]) -> None:
        super().__init__()
        self.trace, self.running = trace, running

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if any(part in name for part in SOFTMAXES):
            self.trace.softmaxes.setdefault(self.running[-1], name)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def trace_softmax(model: nn.Module, run: Callable[[], Any]) -> SoftmaxTrace:
    """Call ``run``, which runs the model, in evaluation mode, and return the trace.

    A softmax is attributed to the innermost module that runs; the model itself is "". Modes and
    hooks of the model are restored.

    Example:
        >>> layer = nn.MultiheadAttention(8, 2)
        >>> x = torch.zeros(3, 1, 8)
        >>> trace_softmax(layer, lambda: layer(x, x, x)).softmaxes
        {'': 'aten::_softmax'}
    """
    trace, running = SoftmaxTrace(), [""]
    training = {module: module.training for module in model.modules()}

    def enter(name: str):
        def hook(*_):
            running.append(name)
            trace.ran.add(name)

        return hook

    def leave(*_):
        running.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        model.eval()
        with _SoftmaxRecorder(trace, running):
            run()
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return trace
