"""flash-attn's settings in the operator's words, for the files that carry its names."""

from typing import Any

from torch import Tensor

from sigmoid_attention.attention.api import Bias


def four_dimensional(name: str, tensor: Tensor) -> None:
    """Refuse what is not (batch, seqlen, heads, head_dim)."""
    if tensor.dim() != 4:
        raise ValueError(
            f"{name}: must be (batch, seqlen, heads, head_dim), got {tuple(tensor.shape)}"
        )


def operator_settings(
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    alibi_slopes: Tensor | None,
    sigmoid_bias: Bias | None,
    heads: int,
) -> dict[str, Any]:
    """Keyword arguments that the dense, the packed and the cached operator share.

    Raises ``ValueError`` for a softcap that is no number and a bias of unexpected heads; the
    operator looks at the rest.
    """
    if not isinstance(softcap, int | float) or isinstance(softcap, bool):
        raise ValueError(
            f"softcap: must be a number, 0.0 for none, got {type(softcap).__name__}; FlashSigmoid "
            f"has alibi_slopes in this place (sigmoid_attention.integrations.flash_sigmoid)"
        )
    return {
        "bias": _operators_bias(sigmoid_bias, heads),
        "scale": softmax_scale,
        "is_causal": causal,
        "window_size": window_size,
        "alibi_slopes": alibi_slopes,
        "softcap": None if softcap == 0 else softcap,
        "enable_gqa": True,
    }


def _operators_bias(sigmoid_bias: Bias | None, heads: int) -> Bias | None:
    """A bias of (heads,) or (batch, heads) in the shape that broadcasts; any other as it is."""
    if not isinstance(sigmoid_bias, Tensor) or sigmoid_bias.dim() not in (1, 2):
        return sigmoid_bias
    if sigmoid_bias.shape[-1] != heads:
        raise ValueError(
            f"sigmoid_bias: must be (heads,) or (batch, heads) with {heads} heads, "
            f"got {tuple(sigmoid_bias.shape)}"
        )
    return sigmoid_bias[..., None, None]
