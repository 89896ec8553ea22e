"""A bias that a module computes from its own input: what stands in for a softmax's normaliser.

Shape letters: B batch, H query heads, N tokens, C channels of the module's input.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sigmoid_attention.attention.bias import BiasPolicy, RowContext

_WATCHED = "sigmoid_input_watched"


class LinearBias(nn.Module, BiasPolicy):
    r"""A learned bias for each head and query, from what the attention module is given:

    .. math::
        b_i = o_h - a_h \log m_i + w_h \cdot x_i

    with x_i the token's channels in front of the projections and m_i the keys that it may see.
    Nothing is shared between keys: partial results add, and a cache, chunks and padding change
    nothing. It is no function of the position, as one of rotated queries would be. With w = 0 and
    a = 0 it is a bias per head, with a = 1 ``NegLogVisible`` with an offset. This policy is the
    project's own.

    Parameters, fp32: ``offset`` (H,), ``slope`` (H,) and ``weight`` (H, C).

    Raises ``ValueError`` where it was not shown the input of the call; `convert` sees to that.

    Example:
        >>> from sigmoid_attention import NegLogVisible, sigmoid_attention
        >>> q, k, v = torch.randn(3, 1, 2, 5, 8).unbind(0)
        >>> bias = LinearBias(torch.zeros(2), dim=16)
        >>> bias.slope.data.fill_(1.0).shape
        torch.Size([2])
        >>> bias.see(torch.randn(1, 5, 16))
        >>> out = sigmoid_attention(q, k, v, bias=bias, is_causal=True)
        >>> other = sigmoid_attention(q, k, v, bias=NegLogVisible(), is_causal=True)
        >>> torch.allclose(out, other, atol=1e-5)
        True
    """

    def __init__(self, offset_H: Tensor, dim: int) -> None:
        super().__init__()
        heads = offset_H.numel()
        self.offset = nn.Parameter(offset_H.detach().clone().float())
        zeros = partial(torch.zeros, dtype=torch.float32, device=offset_H.device)
        self.slope = nn.Parameter(zeros(heads))
        self.weight = nn.Parameter(zeros(heads, dim))
        self._input_BNC: Tensor | None = None

    def see(self, input_BNC: Tensor | None) -> None:
        """What the module is called with; None when the call is over."""
        self._input_BNC = input_BNC

    def resolve(self, rows: RowContext) -> Tensor:
        if self._input_BNC is None:
            raise ValueError(
                "bias: LinearBias was not shown what its module was called with; it works inside "
                "the attention modules of a converted model"
            )
        log_m = rows.visible_counts().clamp(min=1).to(rows.dtype).log()
        offset_H11, slope_H11 = self.offset[:, None, None], self.slope[:, None, None]
        # Autocast would leave a logarithm of hundreds two or three digits.
        with torch.autocast(self._input_BNC.device.type, enabled=False):
            weight_CH = self.weight.T.to(rows.dtype)
            linear_BHN1 = (self._input_BNC.to(rows.dtype) @ weight_CH).mT[..., None]
        return offset_H11 - slope_H11 * log_m + rows.aligned(linear_BHN1)

    def extra_repr(self) -> str:
        return f"heads={self.weight.shape[0]}, dim={self.weight.shape[1]}"


def watch_input(module: nn.Module) -> None:
    """Let an attention module's bias ``see`` what the module is called with, if it wants to."""
    if not hasattr(module, _WATCHED):
        setattr(module, _WATCHED, True)
        module.register_forward_pre_hook(_show, with_kwargs=True)
        module.register_forward_hook(_forget, always_call=True)


def _show(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    see = getattr(module.sigmoid_bias, "see", None)
    if see is not None:
        see(first_input(args, kwargs))


def _forget(module: nn.Module, *_: Any) -> None:
    see = getattr(module.sigmoid_bias, "see", None)
    if see is not None:
        see(None)


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The hidden states that a module of transformers is called with."""
    found = args[0] if args else kwargs.get("hidden_states")
    return found if isinstance(found, Tensor) else None
