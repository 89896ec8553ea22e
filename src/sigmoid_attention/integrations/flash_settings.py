"""Translate flash-attn's arguments into those of the operator."""

from typing import Any

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments, validation
from sigmoid_attention.attention.api import Bias


def check_four_dimensional(name: str, tensor: Tensor) -> None:
    """Raise ``ValueError`` unless the tensor is (batch, seqlen, heads, head_dim)."""
    arguments.dense(name, tensor)
    if tensor.dim() != 4:
        raise ValueError(
            f"{name} must be (batch, seqlen, heads, head_dim), got {tuple(tensor.shape)}"
        )


def operator_settings(
    softmax_scale: float | None,
    causal: bool,
    window_size: Any,
    softcap: float,
    alibi_slopes: Tensor | None,
    sigmoid_bias: Bias | None,
    heads: int,
) -> dict[str, Any]:
    """The keyword arguments that the dense, packed and cached operators share.

    Raises, in flash-attn's names, ``TypeError`` for what is no number or no boolean, and
    ``ValueError`` for a bias of unexpected heads; the operator checks the rest.
    """
    if not arguments.is_number(arguments.scalar(softcap)):
        raise TypeError(
            f"softcap must be a number, 0.0 for none, got {arguments.shown(softcap)}; "
            f"FlashSigmoid has alibi_slopes in this place "
            f"(sigmoid_attention.integrations.flash_sigmoid)"
        )
    if softmax_scale is not None:
        instead = "multiply q by a factor that is to learn, and give softmax_scale=1"
        wanted = "a finite number, or None"
        softmax_scale = arguments.number("softmax_scale", softmax_scale, wanted, instead)
    return {
        "bias": _operator_bias(sigmoid_bias, heads),
        "scale": softmax_scale,
        "is_causal": arguments.switch("causal", causal),
        "window_size": operator_window(window_size),
        "alibi_slopes": alibi_slopes,
        "softcap": None if softcap == 0 else softcap,
        "enable_gqa": True,
    }


def operator_window(window_size: Any) -> Any:
    """The operator's window; None, which newer versions use for no limit, becomes -1.

    flash-attn also takes a tensor or an array of two.
    """
    sides = window_size
    if isinstance(sides, Tensor):
        listed = sides.dim() == 1 and sides.dtype in (torch.int32, torch.int64)
        sides = sides.tolist() if listed else sides
    elif hasattr(sides, "tolist"):
        sides = sides.tolist()
    if not isinstance(sides, tuple | list):
        return window_size
    return tuple(-1 if side is None else side for side in sides)


def _operator_bias(sigmoid_bias: Bias | None, heads: int) -> Bias | None:
    """Reshape a bias (heads,) or (batch, heads) so that it broadcasts; leave others as they are."""
    if sigmoid_bias is not None:
        sigmoid_bias = validation.bias_kind(sigmoid_bias, "sigmoid_bias")
    if isinstance(sigmoid_bias, Tensor):
        arguments.dense("sigmoid_bias", sigmoid_bias)
    if not isinstance(sigmoid_bias, Tensor) or sigmoid_bias.dim() not in (1, 2):
        return sigmoid_bias
    if sigmoid_bias.shape[-1] != heads:
        raise ValueError(
            f"sigmoid_bias must be (heads,) or (batch, heads) with {heads} heads, "
            f"got {tuple(sigmoid_bias.shape)}"
        )
    return sigmoid_bias[..., None, None]
