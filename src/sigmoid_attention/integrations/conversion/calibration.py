r"""A closed-form bias for each head, by least squares from the rows of the softmax itself.

What the bias has to predict from the query alone is minus the row's log-sum-exp:

    -LSE_i - log g  ~  o_h - a_h log m_i - s q_i . t_h,

with m_i the keys that query i may see. The normal equations of every head are summed while batches
run through the model, in float64, so that no row has to be kept.

Shape letters: B batch, H query heads, Q queries, D head dim, F features (2 + D), N rows.
"""

import math

import torch
from torch import Tensor, nn

from sigmoid_attention.attention.bias import BiasPolicy, Learned, RowContext, RowLSE
from sigmoid_attention.integrations.transformers import ThresholdBias


class Calibration(nn.Module, BiasPolicy):
    """Stands in for a bias while it watches: answers with ``start``, and sums what a fit needs.

    Rows that see nothing have no log-sum-exp and count for nothing.

    Example:
        >>> from sigmoid_attention import sigmoid_attention
        >>> from sigmoid_attention.integrations.conversion.schedule import SoftmaxStart
        >>> q, k, v = torch.randn(3, 1, 2, 64, 4).unbind(0)
        >>> watching = Calibration(SoftmaxStart(1.0), gain=1.0)
        >>> _ = sigmoid_attention(q, k, v, bias=watching)
        >>> final = Learned(0.0, heads=2)
        >>> watching.solve(final)
        >>> lse = (q @ k.mT / 2).logsumexp(-1)
        >>> torch.allclose(final.value, -lse.mean((0, 2)), atol=1e-5)
        True
    """

    def __init__(self, start: BiasPolicy, gain: float, ridge: float = 1e-3) -> None:
        super().__init__()
        self.start = start
        self.log_gain = math.log(gain)
        self.ridge = ridge
        self.rows = 0
        self.gram_HFF: Tensor | float = 0.0
        self.moment_HF: Tensor | float = 0.0

    def resolve(self, rows: RowContext) -> float | Tensor:
        with torch.no_grad():
            self._watch(rows)
        return self.start.resolve(rows)

    def _watch(self, rows: RowContext) -> None:
        target_BHQ1 = RowLSE().resolve(rows) - self.log_gain
        queries_BHQD = rows.scaled_queries()
        counts = rows.visible_counts().expand_as(target_BHQ1)
        ones = torch.ones_like(target_BHQ1)
        log_m = counts.clamp(min=1).to(target_BHQ1.dtype).log()
        features_BHQF = torch.cat([ones, -log_m, -queries_BHQD], dim=-1)
        seen = (counts > 0).to(target_BHQ1.dtype)
        features_HNF = _by_head(features_BHQF * seen)
        target_HN1 = _by_head(target_BHQ1 * seen)
        self.rows += features_HNF.shape[1]
        self.gram_HFF = self.gram_HFF + features_HNF.mT @ features_HNF
        self.moment_HF = self.moment_HF + (features_HNF.mT @ target_HN1)[..., 0]

    def solve(self, final: nn.Module) -> None:
        """Put the best values into ``final``, a :class:`Learned` or a :class:`ThresholdBias`.

        The ridge keeps the slope and the threshold small where the rows do not determine them, as
        with rows that all see as many keys; the offset is free of it.
        """
        assert isinstance(self.gram_HFF, Tensor) and isinstance(self.moment_HF, Tensor)
        with torch.no_grad():
            if isinstance(final, Learned):
                final.value.copy_(self.moment_HF[:, 0] / self.gram_HFF[:, 0, 0])
                return
            assert isinstance(final, ThresholdBias)
            size_F = self.gram_HFF.diagonal(dim1=1, dim2=2).clone()
            size_F[:, 0] = 0
            # In units of the features' own size: no head with small queries is flattened.
            mean_size = size_F[:, 2:].mean(-1, keepdim=True)
            penalty_HF = self.ridge * torch.cat(
                [size_F[:, :1], size_F[:, 1:2], mean_size.expand(-1, size_F.shape[1] - 2)], dim=1
            )
            gram_HFF = self.gram_HFF + torch.diag_embed(penalty_HF)
            # Where rows leave a direction open, as with one key in all, it stays at zero.
            inverse_HFF = torch.linalg.pinv(gram_HFF, hermitian=True)
            solved_HF = (inverse_HFF @ self.moment_HF[..., None])[..., 0]
            final.offset.copy_(solved_HF[:, 0])
            final.slope.copy_(solved_HF[:, 1])
            final.threshold.copy_(solved_HF[:, 2:])


def _by_head(x_BHQF: Tensor) -> Tensor:
    """(H, N, F) in float64."""
    return x_BHQF.transpose(0, 1).flatten(1, 2).double()
