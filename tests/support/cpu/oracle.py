"""The reference in float64 with gradients, and bounds on rounding errors.

Each element has its own bound, so a pair that is lost or counted twice shows in the smallest
gradient. ``size`` is the sum of the magnitudes of an element's terms.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim, E value dim.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sigmoid_attention.attention import sigmoid_attention
from tests.support.cpu.budgets import normal

Named = dict[str, Tensor]

# In half units of the dtype's precision: what the output, its weights and their logits lose. In
# fp32 all operations round, in the others the operands and results of products alone.
ROUNDINGS = {torch.float32: 48.0, torch.bfloat16: 2.5, torch.float16: 2.5}

# Where all weights are below this, a result may err by what this rounds to: near the end of fp32's
# range a kernel need not tell small weights apart.
LEAST_WEIGHT = 1e-29


def is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def real_arguments(arguments: dict) -> Named:
    return {name: value for name, value in arguments.items() if is_real(value)}


def in_float64(value):
    return value.double() if is_real(value) else value


def direction(out: Tensor) -> Tensor:
    """A gradient of the output, the same in every dtype."""
    return normal(*out.shape, seed=1).bfloat16().to(out.dtype)


def differentiated(operator: Callable[..., Tensor], positional: tuple, arguments: dict) -> Named:
    """The output, and the gradients of query, key, value and every real argument."""
    leaves = dict(zip(("query", "key", "value"), positional, strict=False))
    leaves |= real_arguments(arguments)
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    query, key, value, *others = leaves.values()
    changed = arguments | dict(zip(list(leaves)[3:], others, strict=True))
    out = operator(query, key, value, *positional[3:], **changed)
    grads = torch.autograd.grad(out, list(leaves.values()), direction(out))
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def exactly(operator: Callable[..., Tensor], positional: tuple, arguments: dict) -> Named:
    """The same by the reference in float64."""
    wide = tuple(in_float64(value) for value in positional)
    return differentiated(
        operator,
        wide,
        {name: in_float64(value) for name, value in arguments.items()} | {"impl": "reference"},
    )


def sizes(positional: tuple, arguments: dict) -> Named:
    """What the terms of every element amount to, for a dense call."""
    query, key, value = (tensor.double() for tensor in positional)
    group, keys = query.shape[1] // key.shape[1], key.shape[2]
    identity = torch.eye(keys, dtype=torch.float64).expand(*key.shape[:2], keys, keys)
    wide = {name: in_float64(value) for name, value in arguments.items()}
    exact_weights = sigmoid_attention(query, key, identity, **wide, impl="reference")
    weights = exact_weights.clamp(min=LEAST_WEIGHT)
    # The farther a logit is from 0, the coarser are the numbers there.
    weights = weights * (1 - weights.log() / 16)
    spread = [tensor.abs().repeat_interleave(group, 1) for tensor in (key, value)]
    out = weights @ spread[1]
    grad_out = direction(out).abs()
    steep = weights * (1 - exact_weights) * (grad_out @ spread[1].mT)
    scale = arguments.get("scale")
    scale = query.shape[3] ** -0.5 if scale is None else abs(scale)
    distance = torch.arange(query.shape[2])[:, None] + keys - query.shape[2] - torch.arange(keys)
    by_name = {
        "out": out,
        "query": steep @ spread[0] * scale,
        "key": (steep.mT @ query.abs() * scale).unflatten(1, (-1, group)).sum(2),
        "value": (weights.mT @ grad_out).unflatten(1, (-1, group)).sum(2),
    }
    for name, term in real_arguments(arguments).items():
        if name == "alibi_slopes":
            summed = (steep * distance.abs()).sum((2, 3))
            by_name[name] = summed if term.dim() == 2 else summed.sum(0)
        else:
            by_name[name] = steep.sum_to_size((1,) * (4 - term.dim()) + term.shape).view(term.shape)
    return by_name


def assert_within_rounding(actual: Named, exact: Named, size: Named, dtype: torch.dtype) -> None:
    for name, expected in exact.items():
        result = actual[name]
        assert result.shape == expected.shape, name
        dtype_of_result = max((dtype, result.dtype), key=lambda kind: torch.finfo(kind).eps)
        unit = torch.finfo(dtype_of_result).eps / 2
        smallest = torch.finfo(dtype_of_result).smallest_normal * torch.finfo(dtype_of_result).eps
        budget = ROUNDINGS[dtype_of_result] * (unit * size[name] + smallest)
        excess = (result.double() - expected).abs() - budget
        wrong = ~(excess <= 0)
        assert not wrong.any(), (
            f"{name}: {int(wrong.sum())} of {wrong.numel()} elements err by more than rounding, "
            f"first at {wrong.nonzero()[0].tolist()}: {result[wrong][0]} for {expected[wrong][0]}"
        )


def assert_close_in_norm(actual: Named, exact: Named, dtype: torch.dtype) -> None:
    """Where sizes are not at hand: against the largest element."""
    for name, expected in exact.items():
        dtype_of_result = max((dtype, actual[name].dtype), key=lambda kind: torch.finfo(kind).eps)
        if expected.numel():
            budget = (
                4
                * ROUNDINGS[dtype_of_result]
                * torch.finfo(dtype_of_result).eps
                / 2
                * expected.abs().max()
            )
            wrong = (actual[name].double() - expected).abs().max()
            assert wrong <= budget + math.ulp(0.0), f"{name}: errs by {wrong}, may by {budget}"
