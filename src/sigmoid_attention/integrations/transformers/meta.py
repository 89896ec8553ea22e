"""Run a forward pass on meta tensors, which have shapes but no values."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

_aten = torch.ops.aten


class _NoNumbers(TorchDispatchMode):
    """Answer reads of values, such as the chosen experts, with zero or with nothing."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.is_meta:
            if func is _aten._local_scalar_dense.default:
                return torch.zeros((), dtype=first.dtype, device="cpu").item()
            if func is _aten.nonzero.default:
                return first.new_empty((0, first.dim()), dtype=torch.int64)
            if func is _aten.index.Tensor:
                args = (first, [each for index in args[1] for each in _nowhere(index)])
            if func is _aten._grouped_mm.default:
                # Of meta tensors it takes bf16 alone.
                return first.new_empty((*first.shape[:-1], args[1].shape[-1]))
        return func(*args, **(kwargs or {}))


def _nowhere(index: Tensor | None) -> list[Tensor | None]:
    """An empty selection for a boolean index; other indices stay."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [index.new_empty(0, dtype=torch.int64)] * index.dim()


def without_numbers(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """A context in which a model on the meta device can pass code that reads values."""
    return _NoNumbers() if model.device.type == "meta" else nullcontext()
