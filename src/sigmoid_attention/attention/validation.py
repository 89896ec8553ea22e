"""Validation of a call's arguments; the implementations do not validate them again.

Every message is one sentence: the argument, its condition, the given value. A wrong type is a
``TypeError``, a wrong value a ``ValueError``.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments, autocast, masking
from sigmoid_attention.attention.bias import (
    BiasPolicy,
    Constant,
    HeadValues,
    Learned,
    NegLogEffectiveLength,
    NegLogLength,
)
from sigmoid_attention.attention.centred_keys import CentredKeys, LearnedCentring

SkipTolerance = float | Literal["rounding"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def same_kind(
    query: Tensor, key: Tensor, value: Tensor, names: tuple[str, str, str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of one floating dtype, on one device; autocast may cast them."""
    for name, tensor in zip(names, (query, key, value), strict=True):
        arguments.dense(name, tensor)
    query, key, value = autocast.same_dtype(query, key, value)
    if query.dtype not in FLOATS:
        raise ValueError(f"{names[0]}: dtype must be fp16, bf16, fp32 or fp64, got {query.dtype}")
    for name, tensor in zip(names[1:], (key, value), strict=True):
        if tensor.dtype != query.dtype:
            raise ValueError(
                f"{name}: dtype must equal {names[0]}'s, got {tensor.dtype} and {query.dtype}"
            )
        if tensor.device != query.device:
            raise ValueError(
                f"{name} must be on {names[0]}'s device, got {tensor.device} and {query.device}"
            )
    return query, key, value


def dense_shapes(query: Tensor, key: Tensor, value: Tensor, names: tuple[str, str, str]) -> None:
    """Raise unless the shapes are (B, H, Q, D), (B, G, K, D) and (B, G, K, E)."""
    for name, tensor in zip(names, (query, key, value), strict=True):
        if tensor.dim() != 4:
            raise ValueError(f"{name} must be (batch, heads, length, dim), got {_shape(tensor)}")
    if key.shape[0] != query.shape[0]:
        raise ValueError(
            f"{names[1]}: batch must equal {names[0]}'s, got {_shape(key)} and {_shape(query)}"
        )
    if key.shape[3] != query.shape[3]:
        raise ValueError(
            f"{names[1]}: head dim must equal {names[0]}'s, got {_shape(key)} and {_shape(query)}"
        )
    if value.shape[:3] != key.shape[:3]:
        raise ValueError(
            f"{names[2]}: batch, heads and length must equal {names[1]}'s, "
            f"got {_shape(value)} and {_shape(key)}"
        )


def head_groups(heads: int, key_heads: int, enable_gqa: bool, name: str = "key") -> None:
    """Raise unless query heads equal key heads, or with GQA are a multiple of them."""
    if not arguments.switch("enable_gqa", enable_gqa) and heads != key_heads:
        raise ValueError(
            f"{name}: has {key_heads} heads for {heads} query heads; enable_gqa=True shares them"
        )
    if key_heads == 0 or heads % key_heads:
        raise ValueError(f"{name}: {key_heads} heads do not divide {heads} query heads")


def logit_options(
    head_dim: int,
    *,
    scale: float | None,
    softcap: float | None,
    is_causal: bool,
    window_size: tuple[int, int],
    dropout_p: float,
) -> tuple[float, float | None, masking.Window]:
    """Scale, by default 1 / sqrt(head dim), softcap, and the window with causality included."""
    if softcap is not None:
        wanted = "positive and finite, a number, or None"
        softcap = arguments.number("softcap", softcap, wanted)
        if softcap < arguments.SMALLEST:
            raise ValueError(f"softcap must be {wanted}, got {softcap}")
    wanted = "a number, at least 0 and below 1"
    if not 0.0 <= arguments.number("dropout_p", dropout_p, wanted) < 1.0:
        raise ValueError(f"dropout_p must be {wanted}, got {dropout_p}")
    if scale is None:
        if head_dim == 0:
            raise ValueError("query: head dim must be positive, got 0")
        factor: float = head_dim**-0.5
    else:
        instead = "multiply query by a factor that is to learn, and give scale=1"
        factor = arguments.number("scale", scale, "a finite number", instead)
    window = _window(window_size)
    return (
        factor,
        softcap,
        masking.effective_window(arguments.switch("is_causal", is_causal), window),
    )


def _window(window_size: tuple[int, int]) -> masking.Window:
    error = TypeError
    if isinstance(window_size, tuple | list):
        sides = [side for side in map(arguments.index, window_size) if side is not None]
        if len(sides) == len(window_size):
            error = ValueError
            if len(sides) == 2 and min(sides) >= -1:
                return sides[0], sides[1]
    raise error(
        f"window_size must be (left, right), whole numbers of -1 (no limit) or more, "
        f"got {arguments.shown(window_size)}"
    )


def _broadcasts(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    sizes = tuple(tensor.shape)
    if len(sizes) > len(shape):
        return False
    pairs = zip(reversed(sizes), reversed(shape), strict=False)
    # Not `size in (1, full)`: with dynamic shapes that would not compare the symbol.
    return all(size == 1 or size == full for size, full in pairs)


def on_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """Raise unless the tensor is on the device of the query."""
    if tensor.device != device:
        raise ValueError(f"{name} must be on query's device, got {tensor.device} and {device}")


def mask(attn_mask: Tensor | None, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise unless the mask is boolean or floating, and broadcastable to (B, H, Q, K)."""
    if attn_mask is None:
        return
    arguments.dense("attn_mask", attn_mask)
    on_device("attn_mask", attn_mask, device)
    if attn_mask.dtype != torch.bool and attn_mask.dtype not in FLOATS:
        raise ValueError(
            f"attn_mask must be boolean (True = attend) or floating, got {attn_mask.dtype}"
        )
    if not _broadcasts(attn_mask, shape):
        raise ValueError(
            f"attn_mask must broadcast to (batch, heads, queries, keys) = {shape}, "
            f"got {_shape(attn_mask)}"
        )


def bias_tensor(bias: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A floating bias that broadcasts to (B, H, Q, K); one of shape (H,) becomes (H, 1, 1)."""
    arguments.dense("bias", bias)
    on_device("bias", bias, device)
    if bias.dtype not in FLOATS:
        raise ValueError(f"bias must be floating, got {bias.dtype}")
    if bias.dim() == 1:
        if bias.shape[0] != shape[1]:
            raise ValueError(
                f"bias: a vector must have a number for each head, ({shape[1]},), "
                f"got {_shape(bias)}; a bias per key is (1, 1, 1, keys)"
            )
        return bias.view(-1, 1, 1)
    if not _broadcasts(bias, shape):
        raise ValueError(
            f"bias must be (heads,) or broadcast to (batch, heads, queries, keys) = {shape}, "
            f"got {_shape(bias)}"
        )
    return bias


def slopes(alibi_slopes: Tensor | None, batch: int, heads: int, device: torch.device) -> None:
    """Raise unless the slopes are floating, (H,) or (B, H)."""
    if alibi_slopes is None:
        return
    arguments.dense("alibi_slopes", alibi_slopes)
    on_device("alibi_slopes", alibi_slopes, device)
    if alibi_slopes.dtype not in FLOATS:
        raise ValueError(f"alibi_slopes must be floating, got {alibi_slopes.dtype}")
    shape = tuple(alibi_slopes.shape)
    if shape != (heads,) and shape != (batch, heads):
        raise ValueError(
            f"alibi_slopes must be (heads,) = ({heads},) or (batch, heads) = ({batch}, {heads}), "
            f"got {_shape(alibi_slopes)}"
        )


def bias_kind(bias: Any, name: str = "bias") -> float | Tensor | BiasPolicy:
    """A tensor, a policy or a finite number; a number is returned as a Python number."""
    if isinstance(bias, Tensor | BiasPolicy):
        return bias
    return arguments.number(name, bias, "a finite number, a tensor or a bias policy")


def layer_bias(
    bias: Any, heads: int, name: str = "bias", layer: str = "the layer"
) -> float | BiasPolicy:
    """The bias of a layer: a finite number, or a policy for the layer's number of heads."""
    instead = "Learned(init, heads) is a bias that a layer trains"
    if isinstance(bias, Learned | HeadValues) and bias.value.shape != (heads,):
        raise ValueError(
            f"{name}: {type(bias).__name__} has {bias.value.numel()} heads, {layer} has {heads}"
        )
    if isinstance(bias, CentredKeys | LearnedCentring):
        _layer_centring(bias, heads, name, layer)
    if isinstance(bias, NegLogEffectiveLength) and len(bias.alibi_slopes) != heads:
        raise ValueError(
            f"{name}: NegLogEffectiveLength has {len(bias.alibi_slopes)} slopes, {layer} has "
            f"{heads} heads"
        )
    if isinstance(bias, Constant | NegLogLength):
        held = bias.b if isinstance(bias, Constant) else bias.offset
        if isinstance(held, Tensor):
            raise ValueError(
                f"{name}: {type(bias).__name__} holds {arguments.shown(held)}, which would be no "
                f"parameter of {layer}; {instead}"
            )
    if isinstance(bias, BiasPolicy):
        return bias
    return arguments.number(name, bias, "a finite number or a bias policy", instead)


def _layer_centring(bias: CentredKeys | LearnedCentring, heads: int, name: str, layer: str) -> None:
    """Raise unless a centring bias fits a layer, and the bias inside it too."""
    kind, strength = type(bias).__name__, bias.strength
    if isinstance(bias, CentredKeys) and isinstance(strength, Tensor):
        raise ValueError(
            f"{name}: CentredKeys holds a strength that would be no parameter of {layer}; "
            f"LearnedCentring(bias, heads) trains it"
        )
    if isinstance(strength, Tensor) and strength.shape != (heads,):
        raise ValueError(f"{name}: {kind} has {strength.numel()} heads, {layer} has {heads}")
    layer_bias(bias.bias, heads, f"{name}: {kind}: bias", layer)


def layer_input(name: str, x: Any, weight: Any = None) -> None:
    """Raise unless a layer's input is dense, floating, and of the weight's dtype and device."""
    arguments.dense(name, x)
    if x.dtype not in FLOATS:
        raise ValueError(f"{name} must be floating, got {x.dtype}")
    if not isinstance(weight, Tensor) or weight.dtype not in FLOATS:
        return
    if autocast.product_dtype(x) != autocast.product_dtype(weight):
        raise ValueError(
            f"{name} must have the dtype of the layer's weights, {weight.dtype}, got {x.dtype}"
        )
    if x.device != weight.device:
        raise ValueError(
            f"{name} must be on the device of the layer's weights, {weight.device}, got {x.device}"
        )


def tolerance(skip_tolerance: SkipTolerance, dtype: torch.dtype) -> tuple[float, bool]:
    """The tolerance as a number, and whether it is relative to the norm of a row's kept weights."""
    wanted = '"rounding" or a number of 0 or more'
    if isinstance(skip_tolerance, str):
        if skip_tolerance != "rounding":
            raise ValueError(
                f"skip_tolerance must be {wanted}, got {arguments.shown(skip_tolerance)}"
            )
        # Half the dtype's epsilon: the relative error of rounding a weight to that dtype.
        return torch.finfo(dtype).eps / 2, True
    number = arguments.number("skip_tolerance", skip_tolerance, wanted)
    if number < 0:
        raise ValueError(f"skip_tolerance must be {wanted}, got {number}")
    return float(number), False


def lengths(name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise unless the tensor is int32 or int64, of this shape and device."""
    arguments.dense(name, tensor)
    on_device(name, tensor, device)
    if tensor.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be int32 or int64, got {tensor.dtype}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {_shape(tensor)}")


def longest(name: str, length: int) -> int:
    """The declared length of the longest sequence; in a traced graph, its symbol."""
    return arguments.whole(name, length, 0, "a whole number, the longest sequence's length or more")
