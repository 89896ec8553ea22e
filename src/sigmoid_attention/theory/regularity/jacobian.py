"""Measured norms of a Jacobian: exact, by Lanczos, and at the input where the norm is largest.

Every number here is attained, so that it bounds the Lipschitz constant from below.

Shape letters: M numbers of the input or the output.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Map = Callable[[Tensor], Tensor]

# The norm has settled when a step of Lanczos adds less than this share of it.
SETTLED = 1e-3


@dataclass(frozen=True)
class JacobianNorm:
    """A norm of a Jacobian, the direction of the input that attains it, and how it was found."""

    value: float
    direction: Tensor
    steps: int
    settled: bool


def jacobian_norm(function: Map, x: Tensor) -> JacobianNorm:
    """The spectral norm of the whole Jacobian at x, which is formed: for small inputs.

    Example:
        >>> import torch
        >>> round(jacobian_norm(lambda x: 3 * x, torch.ones(2, 2)).value, 6)
        3.0
    """
    jacobian = torch.autograd.functional.jacobian(function, x.detach())
    assert isinstance(jacobian, Tensor)
    _, values, right = torch.linalg.svd(jacobian.reshape(-1, x.numel()), full_matrices=False)
    return JacobianNorm(float(values[0]), right[0].reshape(x.shape), 0, True)


def largest_gain(
    function: Map, x: Tensor, *, steps: int = 30, seconds: float = math.inf, seed: int = 0
) -> JacobianNorm:
    """The same from products with the Jacobian and its transpose alone, which is never formed.

    Lanczos (1950) on J'J, with every vector made orthogonal to all earlier ones, which takes far
    fewer products than a power iteration. The map is evaluated once. The value grows with each
    step and passes the norm by rounding only; ``settled``: whether it had stopped growing.

    Args:
        function: a map that torch can differentiate twice in reverse mode.
        x: where.
        steps: at most this many products with J, and as many with its transpose.
        seconds: of wall time after which no further step begins.

    Raises:
        ValueError: fewer than one step.

    Example:
        >>> import torch
        >>> stretch = torch.linspace(0.5, 3.0, 50)
        >>> found = largest_gain(lambda x: stretch * x, torch.zeros(50))
        >>> found.settled, abs(found.value - 3.0) < 1e-2
        (True, True)
    """
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    begun = time.monotonic()
    x = x.detach()
    push, pull = _products(function, x)
    rng = torch.Generator(x.device).manual_seed(seed)
    basis = [_unit(torch.randn(x.shape, generator=rng, dtype=x.dtype, device=x.device))]
    middle, beside = [], []
    value, settled = 0.0, False
    while True:
        image = pull(push(basis[-1]))
        middle.append(float((image * basis[-1]).sum()))
        values, vectors = torch.linalg.eigh(_tridiagonal(middle, beside))
        before, value = value, math.sqrt(max(float(values[-1]), 0.0))
        rest = _without(image, basis)
        beside.append(float(rest.norm()))
        # Without a rest the basis holds all that x sees.
        settled = value - before <= SETTLED * value or beside[-1] <= 1e-6 * value**2
        late = time.monotonic() - begun >= seconds
        if settled or late or len(basis) in (steps, x.numel()):
            break
        basis.append(rest / beside[-1])
    direction = torch.zeros_like(x)
    for coefficient, vector in zip(vectors[:, -1].tolist(), basis, strict=True):
        direction += coefficient * vector
    return JacobianNorm(value, direction, len(basis), settled)


def _products(function: Map, x: Tensor) -> tuple[Map, Map]:
    """v -> J v and u -> J'u at x. The first is the second's own transpose, in reverse mode.

    Forward mode would do too, but torch's fused softmax attention has none, nor second
    derivatives, so that its plain form is used.
    """
    x = x.detach().requires_grad_(True)
    with sdpa_kernel(SDPBackend.MATH):
        answer = function(x)
        u = torch.zeros_like(answer, requires_grad=True)
        (pulled,) = torch.autograd.grad(answer, x, u, create_graph=True)

    def push(v: Tensor) -> Tensor:
        return torch.autograd.grad(pulled, u, v, retain_graph=True)[0]

    def pull(w: Tensor) -> Tensor:
        return torch.autograd.grad(answer, x, w, retain_graph=True)[0]

    return push, pull


def _tridiagonal(middle: list[float], beside: list[float]) -> Tensor:
    matrix = torch.diag(torch.tensor(middle, dtype=torch.float64))
    if beside:
        off = torch.diag(torch.tensor(beside, dtype=torch.float64), 1)
        matrix += off + off.T
    return matrix


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def _without(vector: Tensor, others: list[Tensor]) -> Tensor:
    """What is orthogonal to the others; twice, since once leaves rounding of the size of both."""
    for _ in range(2):
        for other in others:
            vector = vector - (vector * other).sum() * other
    return vector


def max_jacobian_norm(
    function: Map,
    x: Tensor,
    project: Callable[[Tensor], Tensor],
    *,
    steps: int = 50,
    step_size: float = 0.1,
) -> tuple[Tensor, JacobianNorm]:
    """The largest Jacobian norm over a set, by projected gradient ascent from x.

    With the directions u and v that attain the norm at x, the gradient of the norm is that of
    u'J(x)v (Danskin). A step goes ``step_size`` along it and back into the set; the next is half
    as long again where the norm grew, and half as long where it did not. The result
    is the best point of the ascent and the norm there, a lower bound on the maximum over the set.

    Args:
        function: differentiable twice.
        project: the point of the set that is nearest, such as `onto_ball`.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> project = partial(onto_ball, radius=1.0)
        >>> x, norm = max_jacobian_norm(torch.exp, torch.zeros(1, 2), project)
        >>> round(norm.value, 2)  # e at the edge
        2.72
    """
    best = project(x.detach())
    norm = jacobian_norm(function, best)
    for _ in range(steps):
        slope = _unit(_slope(function, best, norm))
        candidate = project(best + step_size * slope)
        new = jacobian_norm(function, candidate)
        if new.value > norm.value:
            best, norm, step_size = candidate, new, 1.5 * step_size
        else:
            step_size /= 2
    return best, norm


def _slope(function: Map, x: Tensor, norm: JacobianNorm) -> Tensor:
    left = _products(function, x)[0](norm.direction)
    x = x.detach().requires_grad_(True)
    with sdpa_kernel(SDPBackend.MATH):
        (pulled,) = torch.autograd.grad(function(x), x, left, create_graph=True)
    return torch.autograd.grad((pulled * norm.direction).sum(), x)[0]


def onto_ball(x: Tensor, radius: float) -> Tensor:
    """Every token (last dimension) longer than the radius is brought back to it."""
    return x * (radius / x.norm(dim=-1, keepdim=True).clamp(min=radius))
