"""Finds the first module with a non-finite value after a training run diverged."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Diverged(RuntimeError):
    """The loss, a gradient or a parameter is not finite; `step` and `where` locate it."""

    def __init__(self, step: int, loss: float, where: str) -> None:
        super().__init__(
            f"training diverged at step {step} (loss {loss:.4g}): "
            f"the first value that is not finite is {where}"
        )
        self.step = step
        self.where = where


def first_non_finite(model: nn.Module, compute_loss: Callable[[], Tensor]) -> str:
    """Run one step again and return where the first non-finite value appears.

    Checks every module's output in the forward pass, then the gradients of these outputs in the
    backward pass, then the parameters' gradients. The repeated step's gradients stay in `.grad`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> _ = nn.init.constant_(model[1].weight, float("nan"))
        >>> first_non_finite(model, lambda: model(torch.ones(1, 2)).sum())
        'the output of 1'
    """
    faults: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        label = name or "the model"

        def on_gradient(gradient: Tensor) -> None:
            if not gradient.isfinite().all():
                faults.append(f"the gradient at the output of {label}")

        def on_output(_module: nn.Module, _inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not tensor.isfinite().all():
                    faults.append(f"the output of {label}")
                if tensor.requires_grad:
                    tensor.register_hook(on_gradient)

        return on_output

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        model.zero_grad(set_to_none=True)
        loss = compute_loss()
        if not faults and not loss.isfinite():
            faults.append("the loss itself")
        if not faults:
            loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    return faults[0] if faults else f"the gradient of {_worst_gradient(model)}"


def non_finite_parameter(model: nn.Module) -> str | None:
    """The first parameter with a non-finite entry, if any."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return name
    return None


def _worst_gradient(model: nn.Module) -> str:
    """The parameter with the largest gradient: it is infinite, or the total norm overflows."""
    norms = {
        name: parameter.grad.norm().nan_to_num(nan=float("inf")).item()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return max(norms, key=norms.__getitem__)


def _tensors(output: Any) -> list[Tensor]:
    parts = output if isinstance(output, tuple | list) else [output]
    return [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]
