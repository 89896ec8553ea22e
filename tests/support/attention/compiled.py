"""Compiles a function without graph breaks, for lengths that change."""

import torch
from torch import Tensor


def normal(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed + sum(sizes)))


def compiled(function, *, dynamic: bool | None = None, backend: str = "aot_eager"):
    return torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)


one_graph_only = torch._dynamo.config.patch(error_on_recompile=True)


def changing(tensors: list[Tensor], *lengths: int) -> list[Tensor]:
    """Say that every dimension of one of these sizes will have another size next time."""
    for tensor in tensors:
        for dim in range(tensor.dim()):
            if tensor.shape[dim] in lengths:
                torch._dynamo.mark_dynamic(tensor, dim)
    return tensors
