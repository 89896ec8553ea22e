"""Mixtures of Gaussian experts: conditional densities, and their maximum likelihood by EM."""

from sigmoid_attention.mixtures.gaussian.em import EM, em, maximise
from sigmoid_attention.mixtures.gaussian.family import (
    GaussianExperts,
    SharedExperts,
    TrueGaussianExperts,
)
from sigmoid_attention.mixtures.gaussian.likelihood import GaussianDeviance, expected
from sigmoid_attention.mixtures.gaussian.start import near_truth

__all__ = [
    "EM", "GaussianDeviance", "GaussianExperts", "SharedExperts", "TrueGaussianExperts", "em",
    "expected", "maximise", "near_truth",
]  # fmt: skip
