"""The key-value cache of one attention layer.

Shape letters: B batch, G key heads, L capacity in tokens, N new tokens, D head dim.
"""

import torch
from torch import Tensor

from sigmoid_attention.nn.sizes import positive_whole


class KVCache:
    """Keys and values of the tokens that one layer has read, in arrays allocated once.

    ``keys`` and ``values`` are (B, G, L, D), of which the first ``length`` tokens are filled.
    For inference: gradients do not flow into what is stored. A layer that sees a window keeps
    every token all the same. Raises ``ValueError`` if a size is not positive.

    Example:
        >>> cache = KVCache(batch=1, heads=2, capacity=8, head_dim=4)
        >>> keys, values = cache.append(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4))
        >>> keys.shape, cache.length
        (torch.Size([1, 2, 3, 4]), 3)
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        sizes = {"batch": batch, "heads": heads, "capacity": capacity, "head_dim": head_dim}
        for name, size in sizes.items():
            positive_whole(f"KVCache: {name}", size)
        shape = (batch, heads, capacity, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store N new tokens and return every key and value so far, each (B, G, length, D).

        Raises ``ValueError`` if they do not fit; nothing is stored then.
        """
        end = self.length + key.shape[2]
        if end > self.capacity:
            raise ValueError(
                f"cache: {self.length} tokens are stored and {key.shape[2]} are new, "
                f"but its capacity is {self.capacity}"
            )
        if key.shape[:2] != self.keys.shape[:2]:
            raise ValueError(
                f"cache: made for (batch, key heads) {tuple(self.keys.shape[:2])}, "
                f"got {tuple(key.shape[:2])}"
            )
        for name, new in (("key", key), ("value", value)):
            wanted = (*key.shape[:3], self.keys.shape[3])
            if tuple(new.shape) != wanted:
                raise ValueError(f"cache: {name} must be {wanted}, got {tuple(new.shape)}")
        self.keys[:, :, self.length : end] = key.detach()
        self.values[:, :, self.length : end] = value.detach()
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reset(self) -> None:
        """Forget every token; the arrays stay."""
        self.length = 0
