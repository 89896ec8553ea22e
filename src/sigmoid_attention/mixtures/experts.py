"""The expert functions of a mixture.

Shape letters: Q inputs, d their dimension, k experts, E parameters of an expert.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.mixtures.parts import Parametric, named


class Expert(Parametric):
    """A function h(x, eta) of an input and an expert's parameters."""

    @abstractmethod
    def value(self, parameters_kE: Tensor, inputs_Qd: Tensor) -> Tensor:
        """h, (..., Q, k)."""

    @abstractmethod
    def value_and_slopes(self, parameters_kE: Tensor, inputs_Qd: Tensor) -> tuple[Tensor, Tensor]:
        """h, (..., Q, k), and its derivatives by eta, (..., Q, k, E)."""


# The activation of z and its derivative.
Activation = Callable[[Tensor], tuple[Tensor, Tensor]]


def _relu(z: Tensor) -> tuple[Tensor, Tensor]:
    return z.relu(), (z > 0).to(z.dtype)


def _gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    below = torch.special.ndtr(z)
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return z * below, below + z * density


def _tanh(z: Tensor) -> tuple[Tensor, Tensor]:
    t = z.tanh()
    return t, 1 - t * t


def _silu(z: Tensor) -> tuple[Tensor, Tensor]:
    w = z.sigmoid()
    return z * w, w * (1 + z * (1 - w))


def _identity(z: Tensor) -> tuple[Tensor, Tensor]:
    return z, torch.ones_like(z)


def _power(degree: int) -> Activation:
    return lambda z: (z**degree, degree * z ** (degree - 1))


@dataclass(frozen=True)
class RidgeFunction(Expert):
    """h = phi(a . x + b), or phi(a . x) without bias: a feed-forward expert of one unit.

    With ``scale`` it is c phi(...), where the outgoing weight c is a parameter too. With a bias
    dh/da = x dh/db, so no such expert is strongly identifiable, though Nguyen et al. 2024 have
    ReLU and GELU with a bias as the example of definition 1. Without a bias GELU and tanh are
    strongly identifiable in one dimension (docs/mixtures.md has the check). ReLU with a scale is
    not even weakly identifiable, since r phi(a . x / r) = phi(a . x) for r > 0.
    """

    name: str
    activation: Activation
    bias: bool = False
    scale: bool = False

    def parts(self, dim: int) -> dict[str, int]:
        return {"a": dim} | ({"b": 1} if self.bias else {}) | ({"c": 1} if self.scale else {})

    def value(self, parameters_kE: Tensor, inputs_Qd: Tensor) -> Tensor:
        value, _ = self.activation(self._argument(parameters_kE, inputs_Qd))
        return parameters_kE[..., None, :, -1] * value if self.scale else value

    def _argument(self, parameters_kE: Tensor, inputs_Qd: Tensor) -> Tensor:
        dim = inputs_Qd.shape[-1]
        z = inputs_Qd @ parameters_kE[..., :dim].mT
        return z + parameters_kE[..., None, :, dim] if self.bias else z

    def value_and_slopes(self, parameters_kE: Tensor, inputs_Qd: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = self.activation(self._argument(parameters_kE, inputs_Qd))
        slopes = slope[..., None] * inputs_Qd[..., :, None, :]
        if self.bias:
            slopes = torch.cat((slopes, slope[..., None]), -1)
        if self.scale:
            factor = parameters_kE[..., None, :, -1]
            slopes = torch.cat((factor[..., None] * slopes, value[..., None]), -1)
            value = factor * value
        return value, slopes


@dataclass(frozen=True)
class ConstantExpert(Expert):
    """h = c: the input-independent expert of Nguyen et al. 2024."""

    name = "constant"

    def parts(self, dim: int) -> dict[str, int]:
        return {"c": 1}

    def value(self, parameters_kE: Tensor, inputs_Qd: Tensor) -> Tensor:
        return parameters_kE[..., None, :, 0].expand(
            *parameters_kE.shape[:-2], inputs_Qd.shape[-2], parameters_kE.shape[-2]
        )

    def value_and_slopes(self, parameters_kE: Tensor, inputs_Qd: Tensor) -> tuple[Tensor, Tensor]:
        value = self.value(parameters_kE, inputs_Qd)
        return value, torch.ones_like(value)[..., None]


_ACTIVATIONS: dict[str, Activation] = {
    "relu": _relu, "gelu": _gelu, "tanh": _tanh, "silu": _silu,
}  # fmt: skip

EXPERTS: dict[str, Expert] = {
    **{name: RidgeFunction(name, activation) for name, activation in _ACTIVATIONS.items()},
    **{
        f"{name}+bias": RidgeFunction(f"{name}+bias", activation, bias=True)
        for name, activation in _ACTIVATIONS.items()
    },
    **{
        f"{name}{bias}+scale": RidgeFunction(
            f"{name}{bias}+scale", _ACTIVATIONS[name], bool(bias), True
        )
        for name in ("relu", "gelu")
        for bias in ("", "+bias")
    },
    "linear": RidgeFunction("linear", _identity, bias=True),
    **{f"poly{p}": RidgeFunction(f"poly{p}", _power(p), bias=True) for p in (2, 3, 4)},
    "constant": ConstantExpert(),
}


def expert(name: str) -> Expert:
    """The expert of this name; ``ValueError`` with the list of names for any other."""
    return named("expert", EXPERTS, name)
