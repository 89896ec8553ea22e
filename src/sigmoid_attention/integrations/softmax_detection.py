"""Which modules of a model run, and which of them run a softmax, seen from below.

What a model's classes are called says little about what they compute. This looks at the operators
that reach torch's dispatcher, whichever way they came: a softmax written out, a fused attention
kernel, or a fast path that skips the module it speaks for.
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
class Seen:
    """Names of modules: those that ran, and of those with a softmax the operator that it was in."""

    ran: set[str] = field(default_factory=set)
    softmaxes: dict[str, str] = field(default_factory=dict)


class _Watch(TorchDispatchMode):
    def __init__(self, seen: Seen, running: list[str]) -> None:
        super().__init__()
        self.seen, self.running = seen, running

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if any(part in name for part in SOFTMAXES):
            self.seen.softmaxes.setdefault(self.running[-1], name)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def watch(model: nn.Module, run: Callable[[], Any]) -> Seen:
    """Call ``run``, which is to run the model, in evaluation mode, and tell what was seen.

    A softmax is put down to the innermost module that was running; the model itself is "". Modes
    and hooks of the model are afterwards what they were.

    Example:
        >>> layer = nn.MultiheadAttention(8, 2)
        >>> x = torch.zeros(3, 1, 8)
        >>> watch(layer, lambda: layer(x, x, x)).softmaxes
        {'': 'aten::_softmax'}
    """
    seen, running = Seen(), [""]
    training = {module: module.training for module in model.modules()}

    def enter(name: str):
        def hook(*_):
            running.append(name)
            seen.ran.add(name)

        return hook

    def leave(*_):
        running.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        model.eval()
        with _Watch(seen, running):
            run()
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return seen
