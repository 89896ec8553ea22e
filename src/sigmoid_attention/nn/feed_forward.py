"""Feed-forward layers: SwiGLU and GELU, without linear biases.

Shape letters: B batch, N tokens, C model dim, F hidden dim.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sigmoid_attention.nn.sizes import positive_whole


def swiglu_hidden(dim: int) -> int:
    """8/3 of dim, rounded up to a multiple of 256: the width of Ramapuram et al. 2024.

    Example:
        >>> [swiglu_hidden(dim) for dim in (768, 2048, 4096)]
        [2048, 5632, 11008]
    """
    return -(-8 * positive_whole("dim", dim) // (3 * 256)) * 256


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), three matrices (Shazeer 2020, eq. 6).

    Raises ``TypeError`` for a size that is no whole number and ``ValueError`` for one that is not
    positive, as `GELUFeedForward` does.

    Example:
        >>> import torch
        >>> SwiGLU(8, 24)(torch.randn(1, 2, 8)).shape
        torch.Size([1, 2, 8])
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        dim, hidden = positive_whole("dim", dim), positive_whole("hidden", hidden)
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BNC)) * self.up(x_BNC))


class GELUFeedForward(nn.Module):
    """down(gelu(up(x))), two matrices.

    Example:
        >>> import torch
        >>> GELUFeedForward(8, 32)(torch.randn(1, 2, 8)).shape
        torch.Size([1, 2, 8])
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        dim, hidden = positive_whole("dim", dim), positive_whole("hidden", hidden)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BNC)))


FEED_FORWARDS = {"swiglu": SwiGLU, "gelu": GELUFeedForward}
