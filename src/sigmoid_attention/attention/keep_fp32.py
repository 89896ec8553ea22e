"""Parameters and buffers that stay in fp32 when their module is cast to a narrower dtype.

A bias near -log n has three digits in bfloat16, so updates of 0.001 would not change it.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_NAMES = "_kept_in_fp32"


def keep_fp32(owner: nn.Module | type[nn.Module], *names: str) -> None:
    """Keep the tensors of these names in fp32 or wider, in one module or in all of a class.

    ``.bfloat16()``, ``.half()`` and ``.to(dtype)`` do not change their values, and a narrower
    tensor of a state dict is converted to fp32. Casts to float64 and moves to another device work
    as usual.

    Example:
        >>> class Affine(nn.Linear):
        ...     pass
        >>> keep_fp32(Affine, "bias")
        >>> layer = Affine(1, 1).bfloat16()
        >>> layer.weight.dtype, layer.bias.dtype
        (torch.bfloat16, torch.float32)
    """
    setattr(owner, _NAMES, {*names, *getattr(owner, _NAMES, ())})
    kind = owner if isinstance(owner, type) else type(owner)
    apply, load = kind._apply, kind._load_from_state_dict
    if hasattr(apply, _NAMES):
        return

    @functools.wraps(apply)
    def keeping(module: nn.Module, fn: Any, *args: Any, **kwargs: Any) -> nn.Module:
        kept = {id(tensor) for tensor in _tensors(module)}

        def cast(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            lost = id(tensor) in kept and _is_narrow(new)
            return tensor.to(new.device, torch.float32) if lost else new

        return apply(module, cast, *args, **kwargs)

    @functools.wraps(load)
    def widening(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in getattr(module, _NAMES, ()):
            value = state.get(prefix + name)
            if isinstance(value, Tensor) and _is_narrow(value):
                # ``load_state_dict(assign=True)`` would assign the narrow tensor itself.
                state[prefix + name] = value.float()
        load(module, state, prefix, *args)

    # Modules of the class without kept tensors are cast and loaded as before.
    setattr(keeping, _NAMES, names)
    kind._apply, kind._load_from_state_dict = keeping, widening  # pyright: ignore


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for name in getattr(module, _NAMES, ()):
        for held in (module._parameters, module._buffers):
            tensor = held.get(name)
            if tensor is not None:
                yield tensor
                if tensor.grad is not None:
                    yield tensor.grad


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize < 4
