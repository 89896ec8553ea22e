"""Second derivatives of a fused operator, compared with those of the reference in float64."""

import torch
from torch import Tensor

from tests.support.cpu.budgets import normal
from tests.support.cpu.oracle import (
    assert_close_in_norm,
    direction,
    in_float64,
    real_arguments,
)


def twice(operation, positional: tuple, arguments: dict, fixed: tuple[str, ...] = ()) -> dict:
    """Gradients of a random sum of all first gradients, for every real input and grad_out."""
    leaves = dict(zip(("query", "key", "value"), positional, strict=False))
    leaves |= real_arguments(arguments)
    leaves = {name: leaf.detach() for name, leaf in leaves.items()}
    moving = {name: leaf.requires_grad_() for name, leaf in leaves.items() if name not in fixed}
    query, key, value, *others = leaves.values()
    changed = arguments | dict(zip(list(leaves)[3:], others, strict=True))
    out = operation(query, key, value, *positional[3:], **changed)
    moving["grad_out"] = direction(out).requires_grad_()
    wanted = [name for name in moving if name != "grad_out"]
    grads = torch.autograd.grad(
        out, [moving[name] for name in wanted], moving["grad_out"], create_graph=True
    )
    along = sum(
        (grad * normal(*grad.shape, seed=7).to(grad.dtype)).double().sum() for grad in grads
    )
    return dict(zip(moving, torch.autograd.grad(along, list(moving.values())), strict=True))


def assert_second_right(operation, positional, arguments, dtype, fixed=()) -> None:
    def by_kernel(*tensors, **settings) -> Tensor:
        return operation(*tensors, **settings, impl="cpu")

    arguments = {"skip_tolerance": 0.0, **arguments}
    wide = {name: in_float64(argument) for name, argument in arguments.items()}
    assert_close_in_norm(
        twice(by_kernel, positional, arguments, fixed),
        twice(operation, tuple(map(in_float64, positional)), wide | {"impl": "reference"}, fixed),
        dtype,
    )
