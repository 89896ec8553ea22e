"""Mixtures of experts as statistics: families, data, estimates, losses, identifiability, rates."""

from sigmoid_attention.mixtures.data import FiniteDesign, RawData, binned
from sigmoid_attention.mixtures.experts import EXPERTS
from sigmoid_attention.mixtures.gates import GATES
from sigmoid_attention.mixtures.model import Mixture
from sigmoid_attention.mixtures.scores import SCORES

__all__ = ["EXPERTS", "GATES", "SCORES", "FiniteDesign", "Mixture", "RawData", "binned"]
