"""Measured Jacobian norms: exact, by Lanczos iteration, and maximised over the input.

Every measured norm is attained at some input, so it is a lower bound on the Lipschitz constant.

Shape letters: M numbers of the input or the output.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sigmoid_attention.attention import arguments

Map = Callable[[Tensor], Tensor]

# The norm has settled when a Lanczos step increases it by less than this share.
SETTLED = 1e-3


@dataclass(frozen=True)
class JacobianNorm:
    """A Jacobian norm, the input direction that attains it, and the course of its computation."""

    value: float
    direction: Tensor
    steps: int
    settled: bool


def jacobian_norm(function: Map, x: Tensor) -> JacobianNorm:
    """The spectral norm of the Jacobian at x, from the full matrix; suitable for small inputs.

    Example:
        >>> import torch
        >>> round(jacobian_norm(lambda x: 3 * x, torch.ones(2, 2)).value, 6)
        3.0
    """
    _check(function, x)
    jacobian = torch.autograd.functional.jacobian(function, x.detach())
    assert isinstance(jacobian, Tensor)
    _, values, right = torch.linalg.svd(jacobian.reshape(-1, x.numel()), full_matrices=False)
    return JacobianNorm(float(values[0]), right[0].reshape(x.shape), 0, True)


def largest_gain(
    function: Map, x: Tensor, *, steps: int = 30, seconds: float = math.inf, seed: int = 0
) -> JacobianNorm:
    """The spectral norm of the Jacobian at x, from products with J and J' only.

    Lanczos (1950) iteration on J'J, with every vector made orthogonal to all earlier ones. It takes
    far fewer products than a power iteration. The map is evaluated once. The value grows with each
    step and exceeds the norm by rounding only. ``settled`` is True if it had stopped growing.

    Args:
        function: a map that torch can differentiate twice in reverse mode.
        x: the input.
        steps: the largest number of products with J, and of products with its transpose.
        seconds: wall time after which no further step begins.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: fewer than one step.

    Example:
        >>> import torch
        >>> stretch = torch.linspace(0.5, 3.0, 50)
        >>> found = largest_gain(lambda x: stretch * x, torch.zeros(50))
        >>> found.settled, abs(found.value - 3.0) < 1e-2
        (True, True)
    """
    _check(function, x)
    arguments.whole("steps", steps, 1, "1 or more")
    arguments.instance("seconds", seconds, Real, "a number")
    arguments.instance("seed", seed, Integral, "a whole number")
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
        # Without a remainder the basis spans the whole Krylov space.
        settled = value - before <= SETTLED * value or beside[-1] <= 1e-6 * value**2
        late = time.monotonic() - begun >= seconds
        if settled or late or len(basis) in (steps, x.numel()):
            break
        basis.append(rest / beside[-1])
    direction = torch.zeros_like(x)
    for coefficient, vector in zip(vectors[:, -1].tolist(), basis, strict=True):
        direction += coefficient * vector
    return JacobianNorm(value, direction, len(basis), settled)


def _check(function: Map, x: Tensor) -> None:
    arguments.instance("function", function, Callable, "a function of a tensor")
    arguments.tensor("x", x)


def _products(function: Map, x: Tensor) -> tuple[Map, Map]:
    """v -> J v and u -> J'u at x; the first is the transpose of the second, by reverse mode.

    Torch's fused softmax attention has no forward mode and no second derivatives, so its plain form
    is used.
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
    """The part orthogonal to the other vectors; projected twice, to remove rounding errors."""
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
    u'J(x)v (Danskin). A step of length ``step_size`` along the gradient is projected onto the set.
    The next step is 1.5 times as long if the norm grew, and half as long if it did not. The result
    is the best point of the ascent and its norm, a lower bound on the maximum over the set.

    Args:
        function: differentiable twice.
        project: maps a point to the nearest point of the set, such as `onto_ball`.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> project = partial(onto_ball, radius=1.0)
        >>> x, norm = max_jacobian_norm(torch.exp, torch.zeros(1, 2), project)
        >>> round(norm.value, 2)  # e at the edge
        2.72
    """
    _check(function, x)
    arguments.instance("project", project, Callable, "a function of a tensor")
    arguments.whole("steps", steps, 0, "0 or more")
    arguments.instance("step_size", step_size, Real, "a number")
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
    """Tokens (last dimension) longer than the radius are scaled to the radius."""
    arguments.tensor("x", x)
    arguments.instance("radius", radius, Real, "a number")
    return x * (radius / x.norm(dim=-1, keepdim=True).clamp(min=radius))
