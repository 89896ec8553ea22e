"""The open recordings of routings of each thread, and their gradients under checkpoints.

A checkpoint with ``use_reentrant=True`` runs its part of a model without a graph, and computes it
again in the backward pass. The first run records stand-ins for the tensors of the second run: the
gradient of a stand-in is kept, and added to the gradient of the recomputed tensor.
"""

import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from sigmoid_attention.attention import torch_state


class _Recordings(threading.local):
    def __init__(self) -> None:
        # Pairs of the recorded routers and the list of their routings.
        self.open: tuple[tuple[tuple[nn.Module, ...], list[Any]], ...] = ()


recordings = _Recordings()

# The gradients of routings whose stand-ins are still part of a graph, by id.
_kept: "weakref.WeakValueDictionary[int, _KeptGradient]" = weakref.WeakValueDictionary()
_LOST = (
    "record_routing: the gradient of a routing recorded inside a checkpoint with "
    "use_reentrant=True must come in one backward pass with that of the checkpoint's output; "
    "add the losses up, or use checkpoint(..., use_reentrant=False)"
)


def recomputing() -> bool:
    """True while a backward pass recomputes activations, where tokens would count twice."""
    # Checkpointing of either kind recomputes inside a backward pass. A compiler cannot trace this.
    return not torch.compiler.is_compiling() and torch_state.in_backward_pass()


def stand_ins(router: nn.Module, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Stand-ins to record for a router's tensors, logits first, in their first computation."""
    # An autograd.Function, such as a reentrant checkpoint, turns off gradients of both modes in its
    # forward pass; no_grad leaves forward-mode gradients on.
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
    """The recomputed tensors, with the gradients of their stand-ins."""
    # A list of the references, since another thread may add to the dictionary meanwhile.
    own_gradients = [
        kept for reference in _kept.valuerefs() if (kept := reference()) and kept.router is router
    ]
    if not own_gradients or not torch.is_grad_enabled():
        return tensors
    # Equal logits come from equal tokens, whose gradients are interchangeable.
    equal = [kept for kept in own_gradients if torch.equal(kept.logits, tensors[0])]
    return _Recomputed.apply(equal, *tensors)


class _KeptGradient:
    """The gradient of one routing, passed from its stand-in to the recomputed tensors."""

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


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    return a + b
