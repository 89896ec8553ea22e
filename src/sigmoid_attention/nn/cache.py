"""The key-value cache of one attention layer.

Shape letters: B batch, G key heads, L capacity in tokens, N new tokens, D head dim.
"""

import torch
from torch import Tensor

from sigmoid_attention.nn.sizes import positive_whole


class KVCache:
    """Keys and values of the tokens that one layer has read, in tensors allocated once.

    ``keys`` and ``values`` are (B, G, L, D), of which the first ``length`` tokens are filled. The
    first tokens allocate them, in their dtype and on their device where the arguments are None.
    For inference: gradients do not flow into stored tokens. A layer with a window keeps every
    token too. Raises ``TypeError`` for a size that is no whole number and ``ValueError`` if one is
    not positive.

    Example:
        >>> cache = KVCache(batch=1, num_kv_heads=2, capacity=8, head_dim=4)
        >>> keys, values = cache.append(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4))
        >>> keys.shape, cache.length
        (torch.Size([1, 2, 3, 4]), 3)
    """

    def __init__(
        self,
        batch: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        sizes = {
            "batch": batch,
            "num_kv_heads": num_kv_heads,
            "capacity": capacity,
            "head_dim": head_dim,
        }
        for name, size in sizes.items():
            positive_whole(f"KVCache: {name}", size)
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise TypeError(f"KVCache: dtype must be a torch.dtype or None, got {dtype!r}")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"KVCache: dtype must be floating or None, got {dtype}")
        self.batch, self.num_kv_heads, self.capacity, self.head_dim = (
            batch,
            num_kv_heads,
            capacity,
            head_dim,
        )
        self.dtype, self.device = dtype, device
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

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
        if key.shape[:2] != (self.batch, self.num_kv_heads):
            raise ValueError(
                f"cache: made for (batch, key heads) {(self.batch, self.num_kv_heads)}, "
                f"got {tuple(key.shape[:2])}"
            )
        for name, new in (("key", key), ("value", value)):
            wanted = (*key.shape[:3], self.head_dim)
            if tuple(new.shape) != wanted:
                raise ValueError(f"cache: {name} must be {wanted}, got {tuple(new.shape)}")
        if self.keys is None or self.values is None:
            self.keys, self.values = self._empty(key), self._empty(value)
        self.keys[:, :, self.length : end] = key.detach()
        self.values[:, :, self.length : end] = value.detach()
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _empty(self, like: Tensor) -> Tensor:
        # A tensor allocated in inference mode cannot be written outside of it.
        with torch.inference_mode(False):
            return torch.zeros(
                (self.batch, self.num_kv_heads, self.capacity, self.head_dim),
                dtype=like.dtype if self.dtype is None else self.dtype,
                device=like.device if self.device is None else self.device,
            )

    def reset(self) -> None:
        """Discard every token; the tensors stay allocated."""
        self.length = 0


class Unchanged:
    """Restores the lengths of caches where the block raises an error.

    A refused call then stores nothing, since elements behind a cache's length are not read.
    """

    def __init__(self, *caches: KVCache) -> None:
        self.caches = caches
        self.lengths = [cache.length for cache in caches]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for cache, length in zip(self.caches, self.lengths, strict=True):
                cache.length = length
