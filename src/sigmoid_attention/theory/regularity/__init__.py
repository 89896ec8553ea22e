"""Bounds on and measurements of the Jacobian of attention."""

from sigmoid_attention.theory.regularity.at_input import attention_bound_at
from sigmoid_attention.theory.regularity.attention import (
    Bound,
    attention_bound,
    mean_norm_bound,
)
from sigmoid_attention.theory.regularity.domain import Ball, Box
from sigmoid_attention.theory.regularity.jacobian import (
    JacobianNorm,
    jacobian_norm,
    largest_gain,
    max_jacobian_norm,
    onto_ball,
)
from sigmoid_attention.theory.regularity.network import LayerBound, composed, network_bound
from sigmoid_attention.theory.regularity.network_point import network_bound_at

__all__ = [
    "Ball",
    "Bound",
    "Box",
    "JacobianNorm",
    "LayerBound",
    "attention_bound",
    "attention_bound_at",
    "composed",
    "jacobian_norm",
    "largest_gain",
    "max_jacobian_norm",
    "mean_norm_bound",
    "network_bound",
    "network_bound_at",
    "onto_ball",
]
