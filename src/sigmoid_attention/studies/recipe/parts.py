"""Changes to an attention layer that only the recipe study makes.

Each is applied to a finished model, so that the other parameters start at the same values.

Shape letters: B batch, H heads, N tokens, D head dim.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from sigmoid_attention.attention import BiasPolicy, Learned, LearnedCentring, NegLogEffectiveLength
from sigmoid_attention.attention.bias import RowContext, once_called
from sigmoid_attention.attention.key_means import mean_logits
from sigmoid_attention.attention.problem import Problem
from sigmoid_attention.nn import Attention, RoPEWithALiBi
from sigmoid_attention.nn.position import slope_numbers

WINDOW = 64
# The share of a batch in the running mean of `BatchCentring`.
SHARE = 0.01


class Term(nn.Module, BiasPolicy):
    """A bias from which a term is subtracted, times a trained number a head, first ``init``."""

    def __init__(self, bias: BiasPolicy, num_heads: int, init: float = 1.0) -> None:
        super().__init__()
        self.bias = bias
        self.factor = nn.Parameter(torch.full((num_heads,), init))

    def resolve(self, rows: RowContext) -> Tensor:
        assert isinstance(rows, Problem)
        factor = self.factor.view(1, -1, 1, 1)
        return rows.resolved(once_called(self.bias)) - factor * self.term(rows)

    def term(self, problem: Problem) -> Tensor:
        """(..., N, 1)."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it subtracts")


class LogPosition(Term):
    """log(n_i / n), with n_i the keys that query i sees and n those of the last one in training.

    A row's mass then grows less with its length.
    """

    def __init__(self, bias: BiasPolicy, num_heads: int, max_seq_len: int) -> None:
        super().__init__(bias, num_heads)
        self.max_seq_len = max_seq_len

    def term(self, problem: Problem) -> Tensor:
        return torch.log(problem.visible_counts() / self.max_seq_len)


class SecondMoment(Term):
    """(Σ_c q_c² var_c(k) / D - 1) / 2: half the variance of the row's logits, by channels."""

    def term(self, problem: Problem) -> Tensor:
        seen = problem.visible_counts()
        means = problem.key.cumsum(2) / seen
        head_dim = problem.query.shape[-1]
        squares = replace(
            problem, query=problem.query.square(), key=problem.key.square(), scale=1 / head_dim
        )
        own = (squares.query * means.square()).sum(-1, keepdim=True) / head_dim
        return (mean_logits(squares, None) - own - 1) / 2


class WindowCentring(Term):
    """s q_i · k̄_i with the mean of the last ``WINDOW`` keys."""

    def term(self, problem: Problem) -> Tensor:
        return mean_logits(replace(problem, window=(WINDOW - 1, 0)), None)


class VectorCentring(Term):
    """s q_i · c with a trained vector c a head, 0 at first, in place of a mean of keys."""

    def __init__(self, bias: BiasPolicy, num_heads: int, head_dim: int) -> None:
        super().__init__(bias, num_heads)
        # Weight decay acts on matrices; this is a vector until the product.
        self.vector = nn.Parameter(torch.zeros(num_heads * head_dim))

    def term(self, problem: Problem) -> Tensor:
        vector_HD = self.vector.view(self.factor.numel(), -1)
        return problem.scale * (problem.query * vector_HD[:, None]).sum(-1, keepdim=True)


class BatchCentring(Term):
    """s q_i · c with c the running mean of all keys of the batches before this one."""

    mean_HD: Tensor

    def __init__(self, bias: BiasPolicy, num_heads: int, head_dim: int) -> None:
        super().__init__(bias, num_heads)
        self.register_buffer("mean_HD", torch.zeros(num_heads, head_dim))

    def term(self, problem: Problem) -> Tensor:
        mean_HD = self.mean_HD
        if self.training:
            of_batch = problem.key.detach().mean((0, 2))
            self.mean_HD = mean_HD + SHARE * (of_batch - mean_HD)
        return problem.scale * (problem.query * mean_HD[:, None]).sum(-1, keepdim=True)


class HeadGain(nn.Module):
    """Multiplies the queries of each head by a trained number, after the QK-norm."""

    def __init__(self, norm: nn.Module, num_heads: int) -> None:
        super().__init__()
        self.norm = norm
        self.gain = nn.Parameter(torch.ones(num_heads))

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        query, key = self.norm(query, key)
        return query * self.gain[:, None, None], key


def log_position(layer: Attention) -> None:
    layer.bias = LogPosition(_bias(layer), layer.num_heads, layer.max_seq_len)


def second_moment(layer: Attention) -> None:
    layer.bias = SecondMoment(_bias(layer), layer.num_heads)


def window_centring(layer: Attention) -> None:
    layer.bias = WindowCentring(_bias(layer), layer.num_heads)


def vector_centring(layer: Attention) -> None:
    layer.bias = VectorCentring(_bias(layer), layer.num_heads, layer.head_dim)


def batch_centring(layer: Attention) -> None:
    layer.bias = BatchCentring(_bias(layer), layer.num_heads, layer.head_dim)


def head_gain(layer: Attention) -> None:
    layer.add_module("qk_norm", HeadGain(layer.qk_norm, layer.num_heads))


def slopes_on_all_heads(layer: Attention) -> None:
    """Slopes on every head, and under a sigmoid a learned bias from the length that each sees."""
    layer.position = RoPEWithALiBi(heads=(True,) * layer.num_heads)
    bias = layer.bias.bias if isinstance(layer.bias, LearnedCentring) else layer.bias
    if isinstance(bias, Learned):
        lengths = NegLogEffectiveLength(slope_numbers(layer.num_heads), layer.max_seq_len)
        bias.value = Learned(lengths, layer.num_heads).value


def _bias(layer: Attention) -> BiasPolicy:
    assert isinstance(layer.bias, BiasPolicy)
    return layer.bias
