"""Synthetic retrieval tasks: what equal language-model loss can hide."""

from sigmoid_attention.training.tasks.copying import Copying
from sigmoid_attention.training.tasks.recall import MultiQueryRecall

__all__ = ["Copying", "MultiQueryRecall"]
