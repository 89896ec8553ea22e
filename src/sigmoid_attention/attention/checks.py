"""Arguments are checked here, once; nothing behind this file looks at them again.

Every complaint is a ``ValueError`` of one sentence: which argument, what it got, what it wants.
"""

import math

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from sigmoid_attention.attention import autocast
from sigmoid_attention.attention.bias import BiasPolicy

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def same_kind(
    query: Tensor, key: Tensor, value: Tensor, names: tuple[str, str, str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of one floating dtype, on one device; autocast makes them agree."""
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
                f"{name}: must be on {names[0]}'s device, got {tensor.device} and {query.device}"
            )
    return query, key, value


def dense_shapes(query: Tensor, key: Tensor, value: Tensor, names: tuple[str, str, str]) -> None:
    """(B, H, Q, D), (B, G, K, D), (B, G, K, E)."""
    for name, tensor in zip(names, (query, key, value), strict=True):
        if tensor.dim() != 4:
            raise ValueError(f"{name}: must be (batch, heads, length, dim), got {_shape(tensor)}")
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
    """Query heads are a multiple of key heads, and equal to them unless GQA was asked for."""
    if not enable_gqa and heads != key_heads:
        raise ValueError(
            f"{name}: has {key_heads} heads for {heads} query heads; enable_gqa=True shares them"
        )
    if key_heads == 0 or heads % key_heads:
        raise ValueError(f"{name}: {key_heads} heads do not divide {heads} query heads")


def settings(
    head_dim: int,
    *,
    scale: float | None,
    softcap: float | None,
    window_size: tuple[int, int],
    dropout_p: float,
) -> float:
    """Check the numbers; return the scale, by default 1 / sqrt(head dim)."""
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap: must be positive and finite, or None, got {softcap}")
    if (
        not isinstance(window_size, tuple | list)
        or len(window_size) != 2
        or any(side < -1 for side in window_size)
    ):
        raise ValueError(
            f"window_size: must be (left, right), each -1 (no limit) or more, got {window_size}"
        )
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p: must be at least 0 and below 1, got {dropout_p}")
    if scale is None:
        if head_dim == 0:
            raise ValueError("query: head dim must be positive, got 0")
        return head_dim**-0.5
    if not math.isfinite(scale):
        raise ValueError(f"scale: must be finite, got {scale}")
    return scale


def _broadcasts(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    sizes = tuple(tensor.shape)
    if len(sizes) > len(shape):
        return False
    pairs = zip(reversed(sizes), reversed(shape), strict=False)
    # Not `size in (1, full)`: under dynamic shapes that compares without asking the shape's symbol.
    return all(size == 1 or size == full for size, full in pairs)


def on_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """A tensor beside query must live where query does."""
    if tensor.device != device:
        raise ValueError(f"{name}: must be on query's device, got {tensor.device} and {device}")


def mask(attn_mask: Tensor | None, shape: tuple[int, ...], device: torch.device) -> None:
    """Boolean or floating, broadcastable to (B, H, Q, K)."""
    if attn_mask is None:
        return
    on_device("attn_mask", attn_mask, device)
    if attn_mask.dtype != torch.bool and attn_mask.dtype not in FLOATS:
        raise ValueError(
            f"attn_mask: must be boolean (True = attend) or floating, got {attn_mask.dtype}"
        )
    if not _broadcasts(attn_mask, shape):
        raise ValueError(
            f"attn_mask: must broadcast to (batch, heads, queries, keys) = {shape}, "
            f"got {_shape(attn_mask)}"
        )


def bias_tensor(bias: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Floating, broadcastable to (B, H, Q, K), and never of one dimension."""
    on_device("bias", bias, device)
    if bias.dtype not in FLOATS:
        raise ValueError(f"bias: must be floating, got {bias.dtype}")
    if bias.dim() == 1:
        raise ValueError(
            f"bias: a vector of {bias.shape[0]} could mean heads or keys; give a bias per head as "
            f"(heads, 1, 1) and a bias per key as (1, 1, 1, keys)"
        )
    if not _broadcasts(bias, shape):
        raise ValueError(
            f"bias: must broadcast to (batch, heads, queries, keys) = {shape}, got {_shape(bias)}"
        )


def slopes(alibi_slopes: Tensor | None, batch: int, heads: int, device: torch.device) -> None:
    """Floating, (H,) or (B, H)."""
    if alibi_slopes is None:
        return
    on_device("alibi_slopes", alibi_slopes, device)
    if alibi_slopes.dtype not in FLOATS:
        raise ValueError(f"alibi_slopes: must be floating, got {alibi_slopes.dtype}")
    shape = tuple(alibi_slopes.shape)
    if shape != (heads,) and shape != (batch, heads):
        raise ValueError(
            f"alibi_slopes: must be (heads,) = ({heads},) or (batch, heads) = ({batch}, {heads}), "
            f"got {_shape(alibi_slopes)}"
        )


def bias_kind(bias: object) -> None:
    """A number, a tensor or a policy."""
    if not isinstance(bias, int | float | Tensor | BiasPolicy):
        raise ValueError(
            f"bias: must be a number, a tensor or a bias policy, got {type(bias).__name__}"
        )


def tolerance(skip_tolerance: str | float, dtype: torch.dtype) -> tuple[float, bool]:
    """The tolerance as a number, and whether it is relative to the weights that a row keeps."""
    if skip_tolerance == "rounding":
        # Half the spacing of the output's numbers: what rounding a weight to that dtype costs.
        return torch.finfo(dtype).eps / 2, True
    if not isinstance(skip_tolerance, int | float) or not 0.0 <= skip_tolerance < math.inf:
        raise ValueError(
            f'skip_tolerance: must be "rounding" or a number of 0 or more, got {skip_tolerance!r}'
        )
    return float(skip_tolerance), False


def has_numbers(tensor: Tensor) -> bool:
    """Whether they can be looked at: a meta or fake tensor has none, nor has one in a graph."""
    return not (torch.compiler.is_compiling() or tensor.is_meta or is_fake(tensor))


def lengths(name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Integer tensors that hold lengths or indices."""
    on_device(name, tensor, device)
    if tensor.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name}: must be int32 or int64, got {tensor.dtype}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: must have shape {shape}, got {_shape(tensor)}")
