"""Which recordings of routings a thread has open, and their gradients under checkpoints.

A checkpoint with ``use_reentrant=True`` runs its part of a model without a graph, and again when
it is differentiated. What is recorded the first time stands in for what is computed the second
time: the gradient of the one is kept, and added to that of the other.
"""

import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from sigmoid_attention.attention import torch_state


class _Recordings(threading.local):
    def __init__(self) -> None:
        # Routers, and the list of what they decide.
        self.open: tuple[tuple[tuple[nn.Module, ...], list[Any]], ...] = ()


recordings = _Recordings()

# Those whose first computation is still part of a graph, by their ids.
_kept: "weakref.WeakValueDictionary[int, _KeptGradient]" = weakref.WeakValueDictionary()
_LOST = (
    "record_routing: a gradient of what was recorded inside of a checkpoint with "
    "use_reentrant=True must come in one backward pass with that of the checkpoint's output; "
    "add the losses up, or use checkpoint(..., use_reentrant=False)"
)


def recomputing() -> bool:
    """Whether activations are computed again for a backward pass, so that tokens count twice."""
    # torch's own sign of a running backward pass: checkpointing of either kind recomputes inside
    # of one. A compiler cannot follow it.
    return not torch.compiler.is_compiling() and torch_state.in_backward_pass()


def stand_ins(router: nn.Module, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What is recorded of a router's tensors, logits first, when they are first computed."""
    # The forward pass of an autograd.Function, such as a reentrant checkpoint, switches off
    # gradients of both modes; no_grad leaves those of forward mode on.
    if (
        torch.compiler.is_compiling()
        or torch_state.forward_gradients_are_enabled()
        or torch.is_inference_mode_enabled()
    ):
        return tensors
    kept = _KeptGradient(router, tensors[0])
    with torch.enable_grad():
        return _StandIn.apply(kept, *(tensor.detach().requires_grad_() for tensor in tensors))


def recomputed(router: nn.Module, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same tensors computed again, with the gradient of what stood in for them."""
    # A list of them, since another thread may add to what is iterated.
    own = [
        kept for reference in _kept.valuerefs() if (kept := reference()) and kept.router is router
    ]
    if not own or not torch.is_grad_enabled():
        return tensors
    # Equal numbers come of equal tokens, whose gradients may stand for one another.
    equal = [kept for kept in own if torch.equal(kept.logits, tensors[0])]
    return _Recomputed.apply(equal, *tensors)


class _KeptGradient:
    """The gradient of one routing, from its stand-in to what is computed again."""

    def __init__(self, router: nn.Module, logits: Tensor) -> None:
        self.router, self.logits = router, logits
        self.gradients: tuple[Tensor | None, ...] | None = None
        self.too_late = False
        _kept[id(self)] = self

    def put(self, gradients: tuple[Tensor | None, ...]) -> None:
        if self.too_late:
            raise ValueError(_LOST)
        self.gradients = gradients
        torch.autograd.Variable._execution_engine.queue_callback(self._check)

    def _check(self) -> None:
        if self.gradients is not None:
            raise ValueError(_LOST)


class _StandIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kept: _KeptGradient, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.kept = kept
        ctx.set_materialize_grads(False)
        return tuple(tensor.clone() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        ctx.kept.put(gradients)
        return (None,) * (1 + len(gradients))


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, equal: list[_KeptGradient], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.equal = equal
        ctx.set_materialize_grads(False)
        return tuple(tensor.clone() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        for kept in ctx.equal:
            if kept.gradients is not None:
                others, kept.gradients = kept.gradients, None
                return None, *map(_sum, gradients, others)
        for kept in ctx.equal:
            kept.too_late = True
        return None, *gradients


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other
