"""The key-value cache of one attention layer.

Shape letters: B batch, H query heads, G key heads, L capacity in tokens, N new tokens, D head dim.
"""

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments, torch_state
from sigmoid_attention.nn.key_sums import KeySums
from sigmoid_attention.nn.sizes import positive_whole, whole_between


class KVCache:
    """Keys and values of the tokens that one layer has read, in tensors allocated once.

    ``keys`` and ``values`` are (B, G, L, D), of which the first ``length`` tokens are filled. The
    first tokens allocate them, in their dtype and on their device where the arguments are None.
    For inference: gradients do not flow into stored tokens. A layer with a window keeps every
    token too. A layer with centred keys also keeps the sum of the keys. Raises ``TypeError`` for a
    size that is no whole number and ``ValueError`` if one is not positive.

    Example:
        >>> cache = KVCache(batch=1, num_kv_heads=2, capacity=8, head_dim=4)
        >>> keys, values = cache.append(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4))
        >>> keys.shape, cache.length
        (torch.Size([1, 2, 3, 4]), 3)
    """

    # Of the class, so that a cache that an older version pickled has it too.
    key_sums: KeySums | None = None

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

    def key_means(self, new: int, left: int = -1, attn_mask: Tensor | None = None) -> Tensor:
        """The mean of the keys that each of the last ``new`` tokens sees, (B, G, new, D).

        A token sees itself and ``left`` tokens before it, -1 for all, without those that are False
        in ``attn_mask`` (B, length). The means are in float64; the mean of no key is 0. The running
        sum of earlier calls is continued. If it does not fit (another window, another mask, another
        tensor ``keys``, after `crop`), it is computed again from the stored keys. It does not
        notice what a caller writes into ``keys``, nor, on a GPU or compiled, other values in the
        ``attn_mask`` of stored tokens. For layers: the arguments are not checked.

        Example:
            >>> cache = KVCache(batch=1, num_kv_heads=1, capacity=8, head_dim=1)
            >>> keys, _ = cache.append(torch.tensor([[[[1.0], [3.0]]]]), torch.ones(1, 1, 2, 1))
            >>> cache.key_means(new=2).flatten().tolist()
            [1.0, 2.0]
        """
        keys, sums = self._sums_before(new, left, attn_mask)
        means, self.key_sums = sums.advanced(keys, self.length, attn_mask)
        return means

    def next_bias(
        self, query: Tensor, scale: float, left: int, strength: Tensor, offset: Tensor
    ) -> Tensor | None:
        """offset_h - strength_h scale q · k̄ of the last token, (B, H, 1, 1), with k̄ as above.

        ``query`` is (B, H, 1, D), strength and offset are (H,). None, with nothing changed, for
        more tokens and wherever the CPU kernel does not compute it in one call.
        """
        if query.shape[2] != 1:
            return None
        keys, sums = self._sums_before(1, left, None)
        step = sums.next_bias(query, keys, self.length, scale, strength, offset)
        if step is None:
            return None
        bias, self.key_sums = step
        return bias

    def _sums_before(self, new: int, left: int, attn_mask: Tensor | None) -> tuple[Tensor, KeySums]:
        """The stored keys, and the sums before the last ``new`` tokens."""
        assert self.keys is not None
        before, sums = self.length - new, self.key_sums
        if sums is None or not sums.covers(self.keys, before, left, attn_mask):
            sums = KeySums.of(self.keys, before, left, attn_mask)
        return self.keys, sums

    def crop(self, length: int) -> None:
        """Keep the first ``length`` tokens.

        The sum of the keys is discarded. Raises ``TypeError`` unless the length is a whole number,
        ``ValueError`` unless it is 0 to the number of stored tokens.

        Example:
            >>> cache = KVCache(batch=1, num_kv_heads=1, capacity=8, head_dim=1)
            >>> _ = cache.append(torch.ones(1, 1, 3, 1), torch.ones(1, 1, 3, 1))
            >>> cache.crop(2)
            >>> cache.length
            2
        """
        wanted = f"a whole number of 0 to {self.length}, the stored tokens"
        length = whole_between("length", length, 0, self.length, wanted)
        if length < self.length:
            self.length, self.key_sums = length, None

    def reorder(self, index: Tensor) -> None:
        """Keep the rows ``index`` of the batch, in this order, as beam search does.

        A row may occur several times, and the batch may grow or shrink. Raises ``TypeError`` unless
        the index is a tensor, ``ValueError`` unless it is int32 or int64 of shape (rows,) with one
        row or more, on the cache's device, and, on a CPU, within the batch.

        Example:
            >>> cache = KVCache(batch=2, num_kv_heads=1, capacity=8, head_dim=1)
            >>> _ = cache.append(torch.tensor([[[[1.0]]], [[[2.0]]]]), torch.ones(2, 1, 1, 1))
            >>> cache.reorder(torch.tensor([1, 1, 0]))
            >>> cache.keys[:, 0, 0, 0].tolist()
            [2.0, 2.0, 1.0]
        """
        self._check_index(index)
        self.batch = len(index)
        if self.keys is None or self.values is None:
            return
        before, sums = self.keys, self.key_sums
        self.keys, self.values = (self._moved(stored, index) for stored in (self.keys, self.values))
        if sums is not None:
            self.key_sums = sums.reordered(index, self.keys) if sums.stored_BGKD is before else None

    def _check_index(self, index: Tensor) -> None:
        arguments.dense("index", index)
        if index.dim() != 1 or not len(index) or index.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"index must be int32 or int64 of shape (rows,) with one row or more, "
                f"got {index.dtype} of shape {tuple(index.shape)}"
            )
        if self.keys is not None and index.device != self.keys.device:
            raise ValueError(
                f"index must be on the device of the cache, {self.keys.device}, got {index.device}"
            )
        if index.is_cpu and torch_state.has_values(index):
            low, high = (int(edge) for edge in index.aminmax())
            if low < 0 or high >= self.batch:
                raise ValueError(
                    f"index must hold rows 0 to {self.batch - 1} of the batch, got {low} to {high}"
                )

    def _moved(self, stored: Tensor, index: Tensor) -> Tensor:
        rows = stored[:, :, : self.length][index]
        # The same tensor where it fits: only the stored tokens are copied.
        moved = stored if len(index) == len(stored) else self._empty(stored)
        moved[:, :, : self.length] = rows
        return moved

    def reset(self) -> None:
        """Discard every token; the tensors stay allocated."""
        self.length, self.key_sums = 0, None


class Unchanged:
    """Restores the lengths and tensors of caches where the block raises an error.

    A refused call then stores nothing, since elements behind a cache's length are not read. It
    does not decide the dtype of an empty cache either. Sums that the block changed are discarded,
    since a decoding step changes them in place; the next call makes them again.
    """

    def __init__(self, *caches: KVCache) -> None:
        self.states = [(x, x.length, x.key_sums, x.keys, x.values) for x in caches]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for cache, length, key_sums, keys, values in self.states:
                cache.length = length
                cache.key_sums = key_sums if cache.key_sums is key_sums else None
                cache.keys, cache.values = keys, values
