"""Finds faults of sigmoid attention in a model or in its training, and the change that mends each.

`diagnose` runs a few batches and reads the records of a training; the command `sigmoid-attention
diagnose` does the same for a folder.
"""

from sigmoid_attention.diagnosis.diagnose import Diagnosis, diagnose
from sigmoid_attention.diagnosis.evidence import Evidence
from sigmoid_attention.diagnosis.finding import Finding

__all__ = ["Diagnosis", "Evidence", "Finding", "diagnose"]
