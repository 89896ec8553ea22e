"""Biases that depend on the input of their attention layer.

Shape letters: B batch, H query heads, N tokens, C channels of the layer's input.
"""

import torch
from torch import Tensor, nn

from sigmoid_attention.attention import arguments, autocast
from sigmoid_attention.attention.bias import BiasPolicy, RowContext
from sigmoid_attention.attention.keep_fp32 import keep_fp32
from sigmoid_attention.nn.sizes import positive_whole, switch


class InputBias(BiasPolicy):
    """Base class of the policies that depend on the input of their attention layer."""

    def resolve(self, rows: RowContext, input_BNC: Tensor | None = None) -> float | Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not say how it is resolved")

    def with_input(self, input_BNC: Tensor | None) -> BiasPolicy:
        """The policy for one call of the layer with this input."""
        return _WithInput(self, input_BNC)

    def for_call(self, input_BNC: Tensor | None = None) -> BiasPolicy:
        return self if input_BNC is None else self.with_input(input_BNC)


class _WithInput(BiasPolicy):
    def __init__(self, bias: InputBias, input_BNC: Tensor | None) -> None:
        self.bias, self.input_BNC = bias, input_BNC

    def resolve(self, rows: RowContext) -> float | Tensor:
        return self.bias.resolve(rows, self.input_BNC)


class StateBias(nn.Module, InputBias):
    r"""A learned bias for each head and query, linear in the input of the attention layer:

    .. math::
        b_i = o_h - a_h \log n_i + w_h \cdot x_i

    with x_i the token's channels before the projections, a row of the input (B, N, C), and n_i the
    number of keys that it may see. It reads no key, so a cache, chunks and padding change nothing.
    With w = 0 and a = 0, the initial values, it is a bias for each head; with a = 1 it is
    ``NegLogVisible`` with an offset. `Attention` leaves out the term with n_i
    (``log_visible=False``); conversions have it. This policy is the project's own.

    Args:
        offset_H: the initial o, (heads,).
        dim: C, the channels of the input.
        log_visible: with the parameter a; False leaves its term out.

    Attributes:
        offset, slope, weight: the parameters o (H,), a (H,) and w (H, C). They stay in fp32 when
            the model is cast to a narrower dtype.

    Raises:
        TypeError: an argument of another kind.
        ValueError: offsets of another shape, or a call without the input.
            ``Attention(state_bias=True)`` and converted models give it, and ``bias.with_input(x)``
            is the policy with an input x.

    Example:
        >>> import torch
        >>> from sigmoid_attention import NegLogVisible, sigmoid_attention
        >>> from sigmoid_attention.nn import StateBias
        >>> q, k, v = torch.randn(3, 1, 2, 5, 8).unbind(0)
        >>> bias = StateBias(torch.zeros(2), dim=16)
        >>> bias.slope.data.fill_(1.0).shape
        torch.Size([2])
        >>> with_input = bias.with_input(torch.randn(1, 5, 16))
        >>> out = sigmoid_attention(q, k, v, bias=with_input, is_causal=True)
        >>> other = sigmoid_attention(q, k, v, bias=NegLogVisible(), is_causal=True)
        >>> torch.allclose(out, other, atol=1e-5)
        True
    """

    def __init__(self, offset_H: Tensor, dim: int, *, log_visible: bool = True) -> None:
        super().__init__()
        arguments.dense("StateBias: offset_H", offset_H)
        if offset_H.dim() != 1 or not offset_H.is_floating_point():
            raise ValueError(
                f"StateBias: offset_H must be floating of shape (heads,), "
                f"got {arguments.shown(offset_H)}"
            )
        dim = positive_whole("StateBias: dim", dim)
        zeros = offset_H.detach().new_zeros(offset_H.numel(), dim, dtype=torch.float32)
        self.offset = nn.Parameter(offset_H.detach().clone().float())
        self.slope: nn.Parameter | None = None
        if switch("StateBias: log_visible", log_visible):
            self.slope = nn.Parameter(zeros[:, 0].clone())
        self.weight = nn.Parameter(zeros)

    def forward(self, input_BNC: Tensor, rows: RowContext) -> Tensor:
        """The biases of these rows, (B, H, Q, 1)."""
        # Autocast would leave a logarithm of hundreds two or three digits.
        input_BNC = input_BNC.to(rows.device, rows.dtype)
        product_TH = autocast.product(input_BNC.flatten(0, -2), self.weight.T.to(rows.dtype))
        linear_BNH = product_TH.view(*input_BNC.shape[:-1], len(self.weight)) + self.offset
        bias = rows.aligned(linear_BNH.mT[..., None])
        if self.slope is None:
            return bias
        log_m = rows.visible_counts().clamp(min=1).to(rows.dtype).log()
        return bias - self.slope[:, None, None] * log_m

    def resolve(self, rows: RowContext, input_BNC: Tensor | None = None) -> Tensor:
        if input_BNC is None:
            raise ValueError(
                "bias: StateBias needs the input of its layer; use Attention(state_bias=True), a "
                "converted model, or bias.with_input(hidden_states)"
            )
        return self(input_BNC, rows)

    def extra_repr(self) -> str:
        slope = "" if self.slope is not None else ", log_visible=False"
        return f"heads={self.weight.shape[0]}, dim={self.weight.shape[1]}{slope}"


keep_fp32(StateBias, "offset", "slope", "weight")
