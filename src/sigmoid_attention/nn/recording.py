"""Which recordings of routings a thread has open, and their gradients under checkpoints.

A checkpoint with ``use_reentrant=True`` runs its part of a model without a graph, and again when
it is differentiated. What is recorded the first time stands in for what is computed the second
time: the gradient that comes for the one is left in a letter box, and added to that of the other.
"""

import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn


class _Recordings(threading.local):
    def __init__(self) -> None:
        # Routers, and the list of what they decide.
        self.open: tuple[tuple[tuple[nn.Module, ...], list[Any]], ...] = ()


recordings = _Recordings()

# Those whose first computation is still part of a graph, by their ids.
_boxes: "weakref.WeakValueDictionary[int, _Box]" = weakref.WeakValueDictionary()
_LOST = (
    "record_routing: a gradient of what was recorded inside of a checkpoint with "
    "use_reentrant=True must come in one backward pass with that of the checkpoint's output; "
    "add the losses up, or use checkpoint(..., use_reentrant=False)"
)


def recomputing() -> bool:
    """Whether activations are computed again for a backward pass, so that tokens count twice."""
    # torch's own sign of a running backward pass: checkpointing of either kind recomputes inside
    # of one. A compiler cannot follow it.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def stand_ins(router: nn.Module, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What is recorded of a router's tensors, logits first, when they are first computed."""
    # The forward pass of an autograd.Function, such as a reentrant checkpoint, switches off
    # gradients of both modes; no_grad leaves those of forward mode on.
    if (
        torch.compiler.is_compiling()
        or torch._C._is_fwd_grad_enabled()
        or torch.is_inference_mode_enabled()
    ):
        return tensors
    box = _Box(router, tensors[0])
    with torch.enable_grad():
        return _StandIn.apply(box, *(tensor.detach().requires_grad_() for tensor in tensors))


def recomputed(router: nn.Module, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same tensors computed again, with the gradient of what stood in for them."""
    if torch.is_grad_enabled():
        # A list, where another thread may add to what is iterated.
        for reference in _boxes.valuerefs():
            box = reference()
            if box and box.router is router and torch.equal(box.logits, tensors[0]):
                return _Recomputed.apply(box, *tensors)
    return tensors


class _Box:
    """The gradient of one routing, between the two."""

    def __init__(self, router: nn.Module, logits: Tensor) -> None:
        self.router, self.logits = router, logits
        self.gradients: tuple[Tensor | None, ...] | None = None
        self.opened = False
        _boxes[id(self)] = self

    def put(self, gradients: tuple[Tensor | None, ...]) -> None:
        if self.opened:
            raise ValueError(_LOST)
        self.gradients = gradients
        torch.autograd.Variable._execution_engine.queue_callback(self._check)

    def take(self) -> tuple[Tensor | None, ...] | None:
        gradients, self.gradients = self.gradients, None
        self.opened = gradients is None
        return gradients

    def _check(self) -> None:
        if self.gradients is not None:
            raise ValueError(_LOST)


class _StandIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, box: _Box, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.box = box
        ctx.set_materialize_grads(False)
        return tuple(tensor.clone() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        ctx.box.put(gradients)
        return (None,) * (1 + len(gradients))


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, box: _Box, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.box = box
        ctx.set_materialize_grads(False)
        return tuple(tensor.clone() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        others = ctx.box.take() or (None,) * len(gradients)
        return None, *(
            one if other is None else other if one is None else one + other
            for one, other in zip(gradients, others, strict=True)
        )
