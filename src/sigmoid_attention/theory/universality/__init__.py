"""The universal approximation theorem of sigmoid attention as a program; see `construction`."""

from sigmoid_attention.theory.universality.construction import (
    Construction,
    Design,
    build,
    design,
    universal_transformer,
)
from sigmoid_attention.theory.universality.equivariance import check_equivariance
from sigmoid_attention.theory.universality.functions import FUNCTIONS, Function, function
from sigmoid_attention.theory.universality.grid import Grid
from sigmoid_attention.theory.universality.layers import HeavisideAttention, Network
from sigmoid_attention.theory.universality.measure import ErrorEstimate
from sigmoid_attention.theory.universality.plan import Plan, layer_counts

__all__ = [
    "FUNCTIONS",
    "Construction",
    "Design",
    "ErrorEstimate",
    "Function",
    "Grid",
    "HeavisideAttention",
    "Network",
    "Plan",
    "build",
    "check_equivariance",
    "design",
    "function",
    "layer_counts",
    "universal_transformer",
]
