"""A bias with a threshold key: what takes the place of a softmax's normaliser in a converted model.

Shape letters: B batch, H query heads, Q queries, D head dim.
"""

import torch
from torch import Tensor, nn

from sigmoid_attention.attention.bias import BiasPolicy, RowContext


class ThresholdBias(nn.Module, BiasPolicy):
    r"""A learned bias for each head and query, from the query alone:

    .. math::
        b_i = o_h - a_h \log m_i - s\, q_i \cdot t_h

    with m_i the keys that query i may see and s the scale of the logits, so that a key's weight is
    sigmoid(s q_i . (k_j - t_h) + o_h - a_h log m_i): how far the query prefers this key to the
    head's threshold key t_h. Nothing is shared between keys: partial results add, and a cache,
    chunks and padding change nothing. With t = 0 and a = 0 it is a bias per head, with a = 1 it is
    ``NegLogVisible`` with an offset. This policy is the project's own.

    Parameters, fp32: ``offset`` (H,), ``slope`` (H,) and ``threshold`` (H, D).

    Example:
        >>> from sigmoid_attention import sigmoid_attention
        >>> q, k, v = torch.randn(3, 1, 2, 5, 8).unbind(0)
        >>> bias = ThresholdBias(torch.zeros(2), head_dim=8)
        >>> bias.threshold.data.normal_().shape
        torch.Size([2, 8])
        >>> out = sigmoid_attention(q, k, v, bias=bias, is_causal=True)
        >>> shifted = sigmoid_attention(q, k - bias.threshold[:, None], v, bias=0.0, is_causal=True)
        >>> torch.allclose(out, shifted, atol=1e-5)
        True
    """

    def __init__(self, offset_H: Tensor, head_dim: int) -> None:
        super().__init__()
        heads = offset_H.numel()
        self.offset = nn.Parameter(offset_H.detach().clone().float())
        self.slope = nn.Parameter(torch.zeros(heads, device=offset_H.device))
        self.threshold = nn.Parameter(torch.zeros(heads, head_dim, device=offset_H.device))

    def resolve(self, rows: RowContext) -> Tensor:
        log_m = rows.visible_counts().clamp(min=1).to(rows.dtype).log()
        offset_H11, slope_H11 = self.offset[:, None, None], self.slope[:, None, None]
        threshold_HD1 = self.threshold[..., None].to(rows.dtype)
        return offset_H11 - slope_H11 * log_m - rows.scaled_queries() @ threshold_HD1

    def extra_repr(self) -> str:
        return f"heads={self.offset.numel()}, head_dim={self.threshold.shape[1]}"
