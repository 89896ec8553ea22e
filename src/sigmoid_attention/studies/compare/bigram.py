"""Bigram baseline: bits per byte of a bigram model over bytes.

A model whose loss is not below this baseline has learnt nothing that needs attention. Two such
models do not show which attention is better.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sigmoid_attention.training.data.corpus import Document

BYTES = 256


def bigram_bits_per_byte(train: Sequence[Document], heldout: Sequence[Document]) -> float:
    """Bits per byte of `heldout` under p(byte | previous byte), with counts from `train`.

    Every count starts at one (Laplace smoothing). The first byte of a document has no previous
    byte and is not scored.

    Raises ``ValueError`` if no document of `heldout` has two bytes.

    Example:
        >>> train, heldout = [Document("a", b"ab" * 1000)], [Document("b", b"abab")]
        >>> round(bigram_bits_per_byte(train, heldout), 2)
        0.33
    """
    scored = _pair_counts(heldout)
    if scored.sum() == 0:
        raise ValueError("the held-out text has no two bytes in a row")
    counts = _pair_counts(train) + 1
    probability = counts / counts.sum(1, keepdim=True)
    return float(-(scored * probability.log2()).sum() / scored.sum())


def _pair_counts(documents: Sequence[Document]) -> Tensor:
    """The counts of byte pairs within documents, (256 previous, 256 next)."""
    total = torch.zeros(BYTES * BYTES, dtype=torch.float64)
    for document in documents:
        if len(document.text) > 1:
            text = torch.frombuffer(bytearray(document.text), dtype=torch.uint8).long()
            total += torch.bincount(text[:-1] * BYTES + text[1:], minlength=BYTES * BYTES)
    return total.view(BYTES, BYTES)
