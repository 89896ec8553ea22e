"""Synthetic retrieval tasks, which can separate models of equal language-modelling loss."""

from sigmoid_attention.training.tasks.copying import Copying
from sigmoid_attention.training.tasks.recall import MultiQueryRecall

__all__ = ["Copying", "MultiQueryRecall"]
