"""Values of a layer mixed with those of the model's first layer."""

import torch
from torch import Tensor, nn

from sigmoid_attention.attention import arguments
from sigmoid_attention.attention.keep_fp32 import keep_fp32


class ValueResidual(nn.Module):
    """(1 - λ) v + λ v_first, with the first layer's values of the same tokens.

    Both are (B, key heads, N, D). The parameter ``share`` (1,) is λ, 0.5 at the start. It stays in
    fp32 when the model is cast to a narrower dtype. Source: Zhou et al. 2024 (arXiv 2410.17897);
    that the two shares sum to one is this project's choice.

    Example:
        >>> import torch
        >>> from sigmoid_attention.nn.value_residual import ValueResidual
        >>> ValueResidual()(torch.tensor([2.0]), torch.tensor([4.0])).tolist()
        [3.0]
    """

    def __init__(self) -> None:
        super().__init__()
        # Of one dimension, since torch's `fully_shard` takes no scalars.
        self.share = nn.Parameter(torch.tensor([0.5], dtype=torch.float32))

    def forward(self, value: Tensor, first_value: Tensor) -> Tensor:
        return value + self.share.to(value.dtype) * (first_value - value)


keep_fp32(ValueResidual, "share")


def check_first_value(first_value: Tensor | None, value: Tensor, wanted: bool) -> None:
    """Refuse values of the first layer that a layer does not take or that do not fit its own."""
    if not wanted:
        if first_value is not None:
            raise ValueError("first_value: this layer has no value_residual, which would read it")
        return
    if first_value is None:
        raise ValueError(
            "first_value must be given to a layer with value_residual: the values that the first "
            "layer returns with return_value=True"
        )
    arguments.dense("first_value", first_value)
    if (first_value.shape, first_value.dtype) != (value.shape, value.dtype):
        raise ValueError(
            f"first_value must be like the values of this layer, {value.dtype} of shape "
            f"{tuple(value.shape)}, got {first_value.dtype} of shape {tuple(first_value.shape)}"
        )
    if first_value.device != value.device:
        raise ValueError(f"first_value must be on {value.device}, got {first_value.device}")
