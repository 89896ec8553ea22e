"""The plan of a call by the portable tier's own kernels, which Triton interprets in another Python.

Shape letters: B batch, H query heads, I units of queries, J units of keys.
"""

from torch import Tensor

from sigmoid_attention.attention.triton.call import Call


def spans(of_keys: bool, *given) -> Tensor | None:
    """Ranges of keys, (4, B, H, I), or of queries, (4, B, H, J), with the shipped tiles."""
    return Call(*given).spans(of_keys=of_keys)
