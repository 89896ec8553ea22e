"""Error budgets: the exact output in float64, and the rounding errors of plain computations.

``eager`` is the formula in torch, in a given precision. ``one_by_one`` sums its products in order,
as torch's products of large matrices do along a dot product, while those of small ones do not.
``floor`` is the least error of a matrix product in the dtype: everything is exact, except that
weights, gradients of the scores and results are rounded to the dtype, since such a product takes
operands in it.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim, E value dim.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Named = dict[str, Tensor]


@dataclass(frozen=True)
class Inputs:
    """The tensors of a call and of its gradient; ``terms`` may hold bias, mask and slopes."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor
    terms: Named = field(default_factory=dict)
    is_causal: bool = False
    constant: float = 0.0

    def to(self, dtype: torch.dtype) -> "Inputs":
        tensors = (self.query, self.key, self.value, self.grad_out)
        terms = {name: term.to(dtype) for name, term in self.terms.items()}
        return Inputs(*(x.to(dtype) for x in tensors), terms, self.is_causal, self.constant)

    def leaves(self) -> Named:
        """What gets a gradient."""
        return {"query": self.query, "key": self.key, "value": self.value, **self.terms}

    def spread(self, keys: Tensor) -> Tensor:
        """(B, G, ...) to (B, H, ...)."""
        return keys.repeat_interleave(self.query.shape[1] // self.key.shape[1], 1)

    def gathered(self, heads: Tensor) -> Tensor:
        """(B, H, ...) to (B, G, ...)."""
        return heads.unflatten(1, (self.key.shape[1], -1)).sum(2)

    def distance(self) -> Tensor:
        queries, keys = self.query.shape[2], self.key.shape[2]
        return (torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)).abs()

    def hidden(self) -> Tensor:
        queries, keys = self.query.shape[2], self.key.shape[2]
        return torch.ones(queries, keys, dtype=torch.bool).triu(1 + keys - queries)


Product = Callable[[Tensor, Tensor], Tensor]


def in_order(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, one product after the other."""
    total = left[..., :1] * right[..., :1, :]
    for k in range(1, left.shape[-1]):
        total = total + left[..., k : k + 1] * right[..., k : k + 1, :]
    return total


def weights(inputs: Inputs, product: Product = torch.matmul) -> Tensor:
    """(B, H, Q, K), in the precision of the inputs."""
    logits = product(inputs.query, inputs.spread(inputs.key).mT) * inputs.query.shape[3] ** -0.5
    for name in ("bias", "mask"):
        if name in inputs.terms:
            logits = logits + inputs.terms[name]
    if "slopes" in inputs.terms:
        slopes = inputs.terms["slopes"][:, None, None]
        logits = logits - slopes * inputs.distance().to(slopes.dtype)
    weights = torch.sigmoid(logits + inputs.constant)
    return weights.masked_fill(inputs.hidden(), 0) if inputs.is_causal else weights


def eager(inputs: Inputs) -> Named:
    """Output and gradients, by torch and its autograd."""
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in inputs.leaves().items()}
    terms = {name: leaves[name] for name in inputs.terms}
    tensors = (leaves["query"], leaves["key"], leaves["value"], inputs.grad_out)
    tracked = Inputs(*tensors, terms, inputs.is_causal, inputs.constant)
    out = weights(tracked) @ tracked.spread(tracked.value)
    grads = torch.autograd.grad(out, list(leaves.values()), inputs.grad_out)
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def by_hand(inputs: Inputs, product: Product, rounded: Callable[[Tensor], Tensor]) -> Named:
    """The five products of a forward and a backward pass, their operands and results rounded."""
    scale = inputs.query.shape[3] ** -0.5
    weight = weights(inputs, product)
    grad = product(inputs.grad_out, inputs.spread(inputs.value).mT)
    grad = rounded(grad * weight * (1 - weight))
    weight = rounded(weight)
    results = {
        "out": product(weight, inputs.spread(inputs.value)),
        "query": product(grad, inputs.spread(inputs.key)) * scale,
        "key": inputs.gathered(product(grad.mT, inputs.query)) * scale,
        "value": inputs.gathered(product(weight.mT, inputs.grad_out)),
    }
    for name, term in inputs.terms.items():
        summed = -(grad * inputs.distance()).sum((2, 3)) if name == "slopes" else grad
        results[name] = summed.sum_to_size(term.shape)
    return {name: rounded(result) for name, result in results.items()}


def one_by_one(inputs: Inputs) -> Named:
    """In the precision of the inputs."""
    return by_hand(inputs, in_order, lambda result: result)


def floor(inputs: Inputs) -> Named:
    """For inputs in a narrow dtype."""
    dtype = inputs.query.dtype
    return by_hand(inputs.to(torch.float64), torch.matmul, lambda result: result.to(dtype).double())


def error(actual: Tensor, exact: Tensor) -> float:
    """Relative, in the Euclidean norm; of a batch, the root mean square over its sequences.

    In short sequences a few large weights decide; no single one of them decides for the others.
    """
    rows = exact.shape[0] if exact.dim() == 4 else 1
    wrong = (actual.double() - exact).reshape(rows, -1).norm(dim=1)
    return float((wrong / exact.reshape(rows, -1).norm(dim=1)).square().mean().sqrt())


def normal(*sizes: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64, the same wherever they are asked for."""
    chance = torch.Generator("cpu").manual_seed(seed + math.prod(sizes))
    return torch.randn(sizes, generator=chance, dtype=torch.float64, device="cpu")


def drawn(
    length: int,
    *,
    batch: int = 1,
    heads: int = 1,
    head_dim: int = 64,
    spread: float = 1.0,
    constant: float = 0.0,
    is_causal: bool = False,
    seed: int = 0,
) -> Inputs:
    """Self-attention whose scaled products have the standard deviation ``spread``."""
    sizes = (batch, heads, length, head_dim)
    query, key, value, grad_out = (normal(*sizes, seed=seed + i) for i in range(4))
    return Inputs(query * spread, key, value, grad_out, {}, is_causal, constant)
