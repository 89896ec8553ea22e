"""Biases that depend on the input of their attention module.

Shape letters: B batch, H query heads, N tokens, C channels of the module's input.
"""

import threading
from typing import Any

import torch
from torch import Tensor, nn

from sigmoid_attention.attention import autocast
from sigmoid_attention.attention.bias import BiasPolicy, RowContext
from sigmoid_attention.attention.keep_fp32 import keep_fp32

_RECORDED = "sigmoid_input_watched"


class InputBias(BiasPolicy):
    """Base class of the policies that depend on the input of their attention module."""

    def resolve(self, rows: RowContext, input_BNC: Tensor | None = None) -> float | Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not say how it is resolved")

    def with_input(self, input_BNC: Tensor | None) -> BiasPolicy:
        """The policy for one call of the module with this input."""
        return _WithInput(self, input_BNC)


class _WithInput(BiasPolicy):
    def __init__(self, bias: InputBias, input_BNC: Tensor | None) -> None:
        self.bias, self.input_BNC = bias, input_BNC

    def resolve(self, rows: RowContext) -> float | Tensor:
        return self.bias.resolve(rows, self.input_BNC)


class LinearBias(nn.Module, InputBias):
    r"""A learned bias for each head and query, linear in the input of the attention module:

    .. math::
        b_i = o_h - a_h \log m_i + w_h \cdot x_i

    with x_i the token's channels in front of the projections and m_i the keys that it may see.
    Nothing is shared between keys: partial results add, and a cache, chunks and padding change
    nothing. It is no function of the position, as one of rotated queries would be. With w = 0 and
    a = 0 it is a bias per head, with a = 1 ``NegLogVisible`` with an offset. This policy is the
    project's own.

    Parameters: ``offset`` (H,), ``slope`` (H,) and ``weight`` (H, C). They stay in fp32 when the
    model is cast to less.

    Raises ``ValueError`` where it is not ``given`` the input of the call; `convert` sees to that.

    Example:
        >>> from sigmoid_attention import NegLogVisible, sigmoid_attention
        >>> q, k, v = torch.randn(3, 1, 2, 5, 8).unbind(0)
        >>> bias = LinearBias(torch.zeros(2), dim=16)
        >>> bias.slope.data.fill_(1.0).shape
        torch.Size([2])
        >>> given = bias.with_input(torch.randn(1, 5, 16))
        >>> out = sigmoid_attention(q, k, v, bias=given, is_causal=True)
        >>> other = sigmoid_attention(q, k, v, bias=NegLogVisible(), is_causal=True)
        >>> torch.allclose(out, other, atol=1e-5)
        True
    """

    def __init__(self, offset_H: Tensor, dim: int) -> None:
        super().__init__()
        zeros = offset_H.detach().new_zeros(offset_H.numel(), 1 + dim, dtype=torch.float32)
        self.offset = nn.Parameter(offset_H.detach().clone().float())
        self.slope = nn.Parameter(zeros[:, 0].clone())
        self.weight = nn.Parameter(zeros[:, 1:].clone())

    def forward(self, input_BNC: Tensor, log_m: Tensor) -> tuple[Tensor, Tensor]:
        """o_h + w_h x_i, (B, H, N, 1), and a_h log m_i, in the dtype of ``log_m`` (..., Q, 1)."""
        # Autocast would leave a logarithm of hundreds two or three digits.
        input_BNC = input_BNC.to(log_m.device, log_m.dtype)
        product_TH = autocast.product(input_BNC.flatten(0, -2), self.weight.T.to(log_m.dtype))
        linear_BNH = product_TH.view(*input_BNC.shape[:-1], len(self.weight)) + self.offset
        return linear_BNH.mT[..., None], self.slope[:, None, None] * log_m

    def resolve(self, rows: RowContext, input_BNC: Tensor | None = None) -> Tensor:
        if input_BNC is None:
            raise ValueError(
                "bias: LinearBias needs the input of its module; use it in the attention modules "
                "of a converted model, or as bias.with_input(hidden_states)"
            )
        log_m = rows.visible_counts().clamp(min=1).to(rows.dtype).log()
        linear_BHN1, visible = self(input_BNC, log_m)
        return rows.aligned(linear_BHN1) - visible

    def extra_repr(self) -> str:
        return f"heads={self.weight.shape[0]}, dim={self.weight.shape[1]}"


keep_fp32(LinearBias, "offset", "slope", "weight")


class _Calls(threading.local):
    """The running calls of recorded modules in this thread, the innermost first."""

    def __init__(self) -> None:
        # The module, its input and the call around this one.
        self.innermost: tuple[nn.Module, Tensor | None, Any] | None = None


_calls = _Calls()


def record_input(module: nn.Module) -> None:
    """Record the input of an attention module, for `recorded_input`."""
    if not hasattr(module, _RECORDED):
        setattr(module, _RECORDED, True)
        # Prepended, so that every call that is left was entered.
        module.register_forward_pre_hook(_enter, with_kwargs=True, prepend=True)
        module.register_forward_hook(_leave, always_call=True)


def recorded_input(module: nn.Module) -> Tensor | None:
    """The input of a recorded module in the running call of this thread."""
    call = _calls.innermost
    return call[1] if call is not None and call[0] is module else None


def _enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _calls.innermost = (module, first_input(args, kwargs), _calls.innermost)


def _leave(module: nn.Module, *_: Any) -> None:
    call = _calls.innermost
    if call is not None and call[0] is module:
        _calls.innermost = call[2]


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The hidden states among the arguments of a module of transformers."""
    found = args[0] if args else kwargs.get("hidden_states")
    return found if isinstance(found, Tensor) else None
