"""The input sets of Jacobian bounds: every token lies in a ball, or in a box.

Shape letters: N tokens, C channels, O channels of an affine map.
"""

from dataclasses import dataclass
from numbers import Real
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments


@runtime_checkable
class Domain(Protocol):
    """A set that contains every token of an input; tokens vary independently."""

    @property
    def upper(self) -> float:
        """The largest norm of a token."""
        ...

    @property
    def lower(self) -> float:
        """The least norm of a token."""
        ...

    def reach(self, weight_OC: Tensor, offset_O: Tensor) -> float:
        """An upper bound on |W x + c| over tokens x of the set."""
        ...


@dataclass(frozen=True)
class Ball:
    """Tokens with lower <= |x| <= radius; without ``lower`` the whole ball around zero.

    A norm layer has a large Jacobian near zero, so a positive ``lower`` gives smaller bounds for
    networks with norms. Raises ``TypeError`` unless both are numbers, and ``ValueError`` unless
    0 <= lower <= radius and 0 < radius.

    Example:
        >>> import torch
        >>> Ball(2.0).reach(torch.eye(3).double(), torch.zeros(3).double())
        2.0
    """

    radius: float
    lower: float = 0.0

    def __post_init__(self) -> None:
        arguments.instance("radius", self.radius, Real, "a number")
        arguments.instance("lower", self.lower, Real, "a number")
        if not 0 < self.radius < float("inf"):
            raise ValueError(f"radius must be positive and finite, got {self.radius}")
        if not 0 <= self.lower <= self.radius:
            raise ValueError(f"lower must lie between 0 and the radius, got {self.lower}")

    @property
    def upper(self) -> float:
        return self.radius

    def reach(self, weight_OC: Tensor, offset_O: Tensor) -> float:
        return spectral_norm(weight_OC) * self.radius + float(offset_O.norm())


@dataclass(frozen=True)
class Box:
    """Tokens with low <= x <= high in every channel, such as pixels or bounded features.

    With m the middle of the box and h half its width, each entry of |W x + c| is at most that of
    |W m + c| + |W| h. Raises ``TypeError`` unless both ends are tensors, and ``ValueError`` unless
    they are finite vectors with low <= high.

    Example:
        >>> import torch
        >>> box = Box(torch.zeros(2).double(), torch.ones(2).double())
        >>> box.lower, round(box.upper, 3)
        (0.0, 1.414)
    """

    low_C: Tensor
    high_C: Tensor

    def __post_init__(self) -> None:
        arguments.tensor("low_C", self.low_C)
        arguments.tensor("high_C", self.high_C)
        if self.low_C.dim() != 1 or self.low_C.shape != self.high_C.shape:
            raise ValueError(
                f"box: low and high must be vectors of one length, "
                f"got {tuple(self.low_C.shape)} and {tuple(self.high_C.shape)}"
            )
        if (
            not (self.low_C <= self.high_C).all()
            or not self.high_C.sub(self.low_C).isfinite().all()
        ):
            raise ValueError("box: low must be finite and nowhere above high")

    @property
    def upper(self) -> float:
        return float(torch.maximum(self.low_C.abs(), self.high_C.abs()).double().norm())

    @property
    def lower(self) -> float:
        nearest = torch.zeros_like(self.low_C).clamp(self.low_C, self.high_C)
        return float(nearest.double().norm())

    def reach(self, weight_OC: Tensor, offset_O: Tensor) -> float:
        middle = (self.low_C.double() + self.high_C.double()) / 2
        half = (self.high_C.double() - self.low_C.double()) / 2
        weight, offset = weight_OC.double(), offset_O.double()
        return float(((weight @ middle + offset).abs() + weight.abs() @ half).norm())


def spectral_norm(matrix: Tensor) -> float:
    """The largest singular value, in float64."""
    return float(torch.linalg.matrix_norm(matrix.double(), 2))
