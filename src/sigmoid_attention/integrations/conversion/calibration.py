r"""Fit the bias of each head in closed form, by least squares on the rows of the softmax.

The bias predicts minus the log-sum-exp of the row, without reading the keys:

    -LSE_i - log g  ~  o_h - a_h log m_i + w_h . x_i,

where m_i is the number of keys that query i may see, and x_i is the input of the module. The normal
equations are summed in float64 during the forward passes, so that no row is stored.

Shape letters: B batch, H query heads, N tokens, C channels, F features (2 + C), R rows.
"""

import math

import torch
from torch import Tensor, nn

from sigmoid_attention.attention.bias import BiasPolicy, Learned, RowContext, RowLSE
from sigmoid_attention.nn.state_bias import InputBias, StateBias


class Calibration(nn.Module, InputBias):
    """A bias during calibration: it resolves to ``start`` and accumulates the normal equations.

    Rows that see nothing have no log-sum-exp and count for nothing. Where it is not ``given`` the
    module's input it fits what needs none.

    Example:
        >>> from sigmoid_attention import sigmoid_attention
        >>> from sigmoid_attention.integrations.conversion.schedule import SoftmaxStart
        >>> q, k, v = torch.randn(3, 1, 2, 64, 4).unbind(0)
        >>> watching = Calibration(SoftmaxStart(1.0), gain=1.0)
        >>> _ = sigmoid_attention(q, k, v, bias=watching)
        >>> final = Learned(0.0, num_heads=2)
        >>> watching.solve(final)
        >>> lse = (q @ k.mT / 2).logsumexp(-1)
        >>> torch.allclose(final.value, -lse.mean((0, 2)), atol=1e-5)
        True
    """

    def __init__(self, start: BiasPolicy, gain: float, ridge: float = 1e-2) -> None:
        super().__init__()
        self.start = start
        self.log_gain = math.log(gain)
        self.ridge = ridge
        self.gram_FF: Tensor | float = 0.0
        self.moment_FH: Tensor | float = 0.0

    def resolve(self, rows: RowContext, input_BNC: Tensor | None = None) -> float | Tensor:
        with torch.no_grad():
            self._accumulate(rows, input_BNC)
        return self.start.resolve(rows)

    def _accumulate(self, rows: RowContext, input_BNC: Tensor | None) -> None:
        target_BHN1 = RowLSE().resolve(rows) - self.log_gain
        batch, heads, tokens, _ = target_BHN1.shape
        counts_BN1 = rows.visible_counts().expand(batch, heads, tokens, 1)[:, 0]
        seen_BN1 = (counts_BN1 > 0).double()
        features = [torch.ones_like(seen_BN1), -counts_BN1.clamp(min=1).double().log()]
        if input_BNC is not None:
            features.append(input_BNC.double())
        features_RF = (torch.cat(features, dim=-1) * seen_BN1).flatten(0, 1)
        target_RH = (target_BHN1[..., 0].mT.double() * seen_BN1).flatten(0, 1)
        self.gram_FF = self.gram_FF + features_RF.mT @ features_RF
        self.moment_FH = self.moment_FH + features_RF.mT @ target_RH

    def solve(self, final: nn.Module) -> None:
        """Put the best values into ``final``, a :class:`Learned` or a :class:`StateBias`.

        The ridge, in units of each feature's own size, keeps the slope and the weights small where
        the rows do not determine them, as with rows that all see as many keys; the offset is free
        of it.
        """
        assert isinstance(self.gram_FF, Tensor) and isinstance(self.moment_FH, Tensor)
        with torch.no_grad():
            if isinstance(final, Learned):
                final.value.copy_(self.moment_FH[0] / self.gram_FF[0, 0])
                return
            assert isinstance(final, StateBias) and final.slope is not None
            solved_FH = solve_ridge(self.gram_FF, self.moment_FH, self.ridge)
            final.offset.copy_(solved_FH[0])
            final.slope.copy_(solved_FH[1])
            final.weight.copy_(solved_FH[2:].T)


def solve_ridge(gram_FF: Tensor, moment_FH: Tensor, ridge: float) -> Tensor:
    """Solve ridge normal equations (..., F, H); the constant, the first feature, has no penalty."""
    size_F = gram_FF.diagonal(dim1=-2, dim2=-1).clone()
    size_F[..., 0] = 0
    # Where rows leave a direction open, as with one token in all, it stays at zero.
    return torch.linalg.pinv(gram_FF + torch.diag_embed(ridge * size_F), hermitian=True) @ moment_FH
