"""A gate on the output of attention.

Shape letters: B batch, N tokens, C model dim, H heads, D head dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GATES = (None, "head", "element")


class Gate(nn.Module):
    """Factors 2 sigmoid(W x) for the output of attention, one for each head or each element.

    W is zero at the start, where every factor is 1. ``weight`` is (heads, dim) for ``kind`` "head",
    and (heads * head_dim, dim) for "element". x is the input (B, N, dim) of the attention layer.
    Source: Qiu et al. 2025 (arXiv 2505.06708), without the factor 2.

    Args:
        kind: "head" or "element"; the layer checks it.
        dim: channels of the layer's input.
        num_heads, head_dim: query heads, and channels of a head's output.

    Example:
        >>> import torch
        >>> from sigmoid_attention.nn.gate import Gate
        >>> gate = Gate("head", dim=8, num_heads=2, head_dim=4)
        >>> gate(torch.randn(1, 3, 8)).flatten().tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, kind: str, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.kind, self.num_heads = kind, num_heads
        # No nn.Linear, which would draw random weights: a model has the same start without a gate.
        outputs = num_heads * (head_dim if kind == "element" else 1)
        self.weight = nn.Parameter(torch.zeros(outputs, dim))

    def forward(self, x_BNC: Tensor) -> Tensor:
        """(B, H, N, 1) or (B, H, N, D)."""
        factors = 2 * torch.sigmoid(F.linear(x_BNC, self.weight))
        return factors.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"{self.kind}, dim={self.weight.shape[1]}, num_heads={self.num_heads}"
