"""Norms and scales: RMSNorm, the per-head norms of QK-norm, and LayerScale.

Shape letters: B batch, N tokens, C model dim, H heads, D head dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigmoid_attention.nn.sizes import finite_number, one_of, positive_number, positive_whole


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * gain over the last dimension, returned in the dtype of x.

    Sums are kept in fp32 by ``torch.nn.functional.rms_norm``. The gain starts at one
    (Zhang and Sennrich 2019). Raises ``TypeError`` or ``ValueError`` unless dim is a positive whole
    number and eps a positive number.

    Example:
        >>> RMSNorm(2)(torch.tensor([3.0, 3.0])).tolist()
        [0.9999994039535522, 0.9999994039535522]
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(positive_whole("dim", dim)))
        self.eps = positive_number("eps", eps)

    def forward(self, x: Tensor) -> Tensor:
        # Torch's fused path needs gains of the activations' dtype; otherwise it warns.
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


NORMS = {"rms": RMSNorm, "layer": nn.LayerNorm}


class QKNorm(nn.Module):
    """Normalise each head's query and key, each with its own trained gain, before any rotation.

    ``kind`` is "rms", "layer" (both from Ramapuram et al. 2024) or None for no norm. Takes and
    returns query (B, H, N, D) and key (B, H, N, D) in the dtype of the query. One gain per channel
    is shared by all heads. Raises ``ValueError`` for any other kind.

    Example:
        >>> q = k = torch.randn(1, 2, 3, 8)
        >>> [x.shape for x in QKNorm("rms", head_dim=8)(q, k)]
        [torch.Size([1, 2, 3, 8]), torch.Size([1, 2, 3, 8])]
    """

    def __init__(self, kind: str | None, head_dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        one_of("qk_norm", kind, (*NORMS, None), "'rms', 'layer' or None")
        self.query = NORMS[kind](head_dim, eps=eps) if kind else nn.Identity()
        self.key = NORMS[kind](head_dim, eps=eps) if kind else nn.Identity()

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        # Under autocast some norms return fp32; the operator takes one dtype for all three inputs.
        return self.query(query).to(query.dtype), self.key(key).to(query.dtype)


class LayerScale(nn.Module):
    """gamma * x with a trained gamma per channel that starts small (Touvron et al. 2021, eq. 4).

    Raises ``TypeError`` or ``ValueError`` unless dim is a positive whole number and init a finite
    number.

    Example:
        >>> LayerScale(3, init=0.5)(torch.ones(3)).tolist()
        [0.5, 0.5, 0.5]
    """

    def __init__(self, dim: int, init: float = 1e-4) -> None:
        super().__init__()
        # Converted to float, since a whole number would make an integer tensor.
        start = float(finite_number("init", init))
        self.gamma = nn.Parameter(torch.full((positive_whole("dim", dim),), start))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x
