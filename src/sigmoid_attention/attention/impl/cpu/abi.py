"""From tensors to the bytes of the kernel's struct: `kernel/call.h`, field by field.

Shape letters: B sequences, H query heads, G key heads, Q queries, K keys, D head dim, E value dim,
I query blocks, S parts of the keys.
"""

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sigmoid_attention.attention.impl.cpu.library import library

# The kernel's blocks; a block of queries may also be a half or a quarter of this.
BLOCK_QUERIES = 192
BLOCK_KEYS = 128

# 83 integers and 4 reals, each of 8 bytes.
_FIELDS = struct.Struct("=83q4d")
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

Places = tuple[int, ...]

# Where the struct holds what changes from one call to the next of the same shape: the bytes from
# its start to each address.
QUERY, KEY, VALUE, OUT = (8 * field for field in (13, 17, 21, 25))
BIAS, MASK, FLAGS, SLOPES, LENGTH_K = (8 * field for field in (29, 35, 41, 46, 52))


def supports(dtype: torch.dtype) -> bool:
    return dtype in _DTYPES


def loaded() -> ctypes.CDLL | None:
    """The kernel for this processor; None where nothing could build it."""
    return library(_FIELDS.size)


def is_readable(tensor: Tensor) -> bool:
    """Whether the elements of a row lie side by side."""
    return tensor.stride(-1) == 1 or tensor.shape[-1] == 1


def readable(tensor: Tensor) -> Tensor:
    """The tensor, copied only where it has to be."""
    return tensor if is_readable(tensor) else tensor.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rows(tensor: Tensor | None, packed: bool) -> Places:
    if tensor is None:
        return 0, 0, 0, 0
    batch, head, row, _ = tensor.stride()
    return tensor.data_ptr(), 0 if packed else batch, head, row


def _term(tensor: Tensor | None) -> Places:
    """A pointer and the strides along (B, H, Q, K), 0 where the tensor broadcasts."""
    if tensor is None:
        return 0, 0, 0, 0, 0
    strides = tuple(
        0 if size == 1 else stride
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return tensor.data_ptr(), *(0,) * (4 - len(strides)), *strides


def _read_term(tensor: Tensor | None) -> Places:
    """Likewise, and the dtype."""
    return *_term(tensor), 0 if tensor is None else _DTYPES[tensor.dtype]


@dataclass(frozen=True)
class Layout:
    """Where sequences lie in query, key and value, as :class:`Sequences` has it.

    ``places_4B`` is None for a dense call, ``block_table_BM`` where keys are not in pages.
    """

    places_4B: Tensor | None
    block_table_BM: Tensor | None
    max_q: int
    max_k: int
    packed: bool

    def fitted(self, *terms: Tensor | None) -> "Layout":
        """The same for no more than the longest sequence, or what terms by query or key are for."""
        if self.places_4B is None or not self.packed:
            return self
        max_q, max_k = self.places_4B[1::2].amax(1).tolist()
        for term in terms:
            if term is not None and term.dim() > 1:
                max_q, max_k = max(max_q, term.shape[-2]), max(max_k, term.shape[-1])
        return replace(self, max_q=max_q, max_k=max_k)

    def places(self) -> Places:
        if self.places_4B is None:
            return (0,) * 6
        first, step = self.places_4B.data_ptr(), self.places_4B.stride(0) * 8
        table = self.block_table_BM
        return (
            *(first + i * step for i in range(4)),
            _address(table),
            0 if table is None else table.stride(0),
        )

    def sequences(self, query: Tensor) -> int:
        return query.shape[0] if self.places_4B is None else self.places_4B.shape[1]


@dataclass(frozen=True)
class Settings:
    """The numbers of a call; ``constant`` is added to every logit, a softcap of 0 is none."""

    left: int
    right: int
    block_q: int
    relative: bool
    scale: float
    softcap: float
    constant: float
    tolerance: float


@dataclass(frozen=True)
class Gradients:
    """What a backward pass reads and fills; None is not computed.

    ``rows`` is (B, H, S, Q), ``columns`` (B, H, K), ``slopes`` (B, H, S) in double precision, each
    to be summed to the shape of what it belongs to; ``pairs`` broadcasts to (B, H, Q, K).
    """

    out: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    splits: int
    rows: Tensor | None = None
    columns: Tensor | None = None
    pairs: Tensor | None = None
    slopes: Tensor | None = None

    def places(self, packed: bool) -> Places:
        return (
            *_rows(self.out, packed),
            *_rows(self.query, packed),
            *_rows(self.key, packed),
            *_rows(self.value, packed),
            self.splits,
            _address(self.rows),
            _address(self.columns),
            *_term(self.pairs),
            _address(self.slopes),
        )


_NO_GRADIENTS: Places = (0,) * 25


@dataclass(frozen=True)
class Arguments:
    """The tensors of a call, as they are where the kernel can read them, else as copies."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    attn_mask: Tensor | None
    alibi_slopes: Tensor | None
    layout: Layout
    settings: Settings
    # Copies must outlive the call that was given their address.
    copies: list[Tensor] = field(default_factory=list)

    def _kept(self, tensor: Tensor) -> Tensor:
        self.copies.append(tensor)
        return tensor

    def _floats(self, tensor: Tensor | None) -> Tensor | None:
        """In a dtype that the kernel reads. Only what is added in double precision is copied."""
        return tensor if tensor is None or supports(tensor.dtype) else self._kept(tensor.float())

    def bytes(
        self, out: Tensor | None, visits: Tensor | None, gradients: Places = _NO_GRADIENTS
    ) -> bytes:
        """The struct; ``out`` is filled by a forward pass, ``visits`` by it for the backward."""
        layout, settings = self.layout, self.settings
        query, key, value = (self._kept(readable(x)) for x in (self.query, self.key, self.value))
        mask = self.attn_mask
        flags = mask if mask is not None and mask.dtype == torch.bool else None
        slopes = None if self.alibi_slopes is None else self._kept(self.alibi_slopes.float())
        by_batch = slopes is not None and slopes.dim() == 2
        paged = layout.block_table_BM is not None
        return _FIELDS.pack(
            _DTYPES[query.dtype],
            torch.get_num_threads(),
            layout.sequences(query),
            query.shape[1],
            key.shape[1],
            layout.max_q,
            layout.max_k,
            query.shape[3],
            value.shape[3],
            settings.left,
            settings.right,
            settings.block_q,
            settings.relative,
            *_rows(query, layout.packed),
            *_rows(key, layout.packed),
            *_rows(value, layout.packed),
            *_rows(out, layout.packed),
            *_read_term(self._floats(self.bias)),
            *_read_term(None if flags is not None else self._floats(mask)),
            *_term(flags),
            _address(slopes),
            slopes.stride(0) if slopes is not None and by_batch else 0,
            0 if slopes is None else slopes.stride(-1),
            *layout.places(),
            key.shape[2] if paged else 0,
            _address(visits),
            0 if visits is None else visits.shape[2],
            *gradients,
            settings.scale,
            settings.constant,
            settings.softcap,
            settings.tolerance,
        )


def kernel(function: str) -> Callable[[bytes], None]:
    """What calls the kernel; the interpreter's lock is released meanwhile.

    It raises ``MemoryError`` where there is no memory to work in.
    """
    library = loaded()
    assert library is not None
    compute = getattr(library, function)

    def run(call: bytes) -> None:
        if compute(call):
            raise MemoryError(
                "sigmoid attention: not enough memory for the operator's working arrays"
            )

    return run


def run(function: str, call: bytes) -> None:
    """Call the kernel once."""
    kernel(function)(call)
