"""Synthetic retrieval tasks, in which models of equal language-modelling loss can differ."""

from sigmoid_attention.training.tasks.copying import Copying
from sigmoid_attention.training.tasks.recall import MultiQueryRecall

__all__ = ["Copying", "MultiQueryRecall"]
