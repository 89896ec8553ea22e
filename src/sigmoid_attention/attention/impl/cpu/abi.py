"""The argument block of the CPU kernel: `kernel/call.h` in Python, and how a call fills it.

Shape letters: B sequences, H query heads, G key heads, Q queries, K keys, D head dim, E value dim,
I query blocks, S parts of the keys.
"""

import ctypes
import struct
from collections.abc import Callable, Sequence
from ctypes import c_double as Real
from ctypes import c_int64 as Integer
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sigmoid_attention.attention.impl.cpu.library import library
from sigmoid_attention.attention.impl.layout import (
    Layout,
    LogitSettings,
    term_strides,
    with_contiguous_rows,
)
from sigmoid_attention.attention.impl.term_gradients import TermGradients
from sigmoid_attention.attention.tracing import constant_when_traced

# The kernel's blocks; a block of queries may also be a half or a quarter of this.
BLOCK_QUERIES = 192
BLOCK_KEYS = 128

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _integers(*names: str) -> list[tuple[str, type]]:
    return [(name, Integer) for name in names]


class Rows(ctypes.Structure):
    _fields_ = _integers("data", "batch", "head", "row")


class Term(ctypes.Structure):
    _fields_ = _integers("data", "batch", "head", "query", "key", "dtype")


class Flags(ctypes.Structure):
    _fields_ = _integers("data", "batch", "head", "query", "key")


class TermGradient(ctypes.Structure):
    _fields_ = _integers("data", "batch", "head", "query", "key")


class ArgumentBlock(ctypes.Structure):
    """The struct ``Call`` of the kernel: the same names in the same order. Addresses are integers.

    A test compares every offset with the C++ compiler's.
    """

    _fields_ = [
        *_integers("dtype", "threads", "sequences", "heads", "key_heads", "queries", "keys"),
        *_integers("head_dim", "value_dim", "left", "right", "block_queries", "relative"),
        ("query", Rows),
        ("key", Rows),
        ("value", Rows),
        ("out", Rows),
        ("mass", Rows),
        ("bias", Term),
        ("mask", Term),
        ("attend", Flags),
        *_integers("slopes", "slopes_batch", "slopes_head"),
        *_integers("start_q", "length_q", "start_k", "length_k"),
        *_integers("block_table", "block_table_row", "page_size"),
        *_integers("visits", "visits_row"),
        ("grad_out", Rows),
        ("grad_query", Rows),
        ("grad_key", Rows),
        ("grad_value", Rows),
        ("grad_mass", Rows),
        *_integers("splits", "grad_rows", "grad_columns"),
        ("grad_pairs", TermGradient),
        ("grad_slopes", Integer),
        ("scale", Real),
        ("constant", Real),
        ("softcap", Real),
        ("tolerance", Real),
    ]


def leaves(kind: type[ctypes.Structure], prefix: str = "") -> list[tuple[str, type, int]]:
    """The dotted name, type and offset in bytes of every number in a structure."""
    numbers = []
    for name, of in kind._fields_:  # pyright: ignore[reportAssignmentType]
        offset = getattr(kind, name).offset
        if issubclass(of, ctypes.Structure):
            inner = leaves(of, f"{prefix}{name}.")
            numbers += [(path, leaf, offset + within) for path, leaf, within in inner]
        else:
            numbers.append((prefix + name, of, offset))
    return numbers


def packer(kind: type[ctypes.Structure]) -> struct.Struct:
    """The format of a structure; packing it takes a tenth of its constructor's time."""
    codes = {Integer: "q", Real: "d"}
    return struct.Struct("=" + "".join(codes[number] for _, number, _ in leaves(kind)))


_BLOCK = packer(ArgumentBlock)

StructFields = tuple[int, ...]
_NO_GRADIENTS: StructFields = (0,) * sum(
    "grad" in name or name == "splits" for name, *_ in leaves(ArgumentBlock)
)


def supports(dtype: torch.dtype) -> bool:
    return dtype in _DTYPES


def loaded() -> ctypes.CDLL | None:
    """The kernel for this processor; None where nothing could build it."""
    return library(ctypes.sizeof(ArgumentBlock))


@constant_when_traced
def available() -> bool:
    """Whether this machine has a kernel, which is built at the first use."""
    return loaded() is not None


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def dtype_code(dtype: torch.dtype) -> int:
    return _DTYPES[dtype]


def rows(tensor: Tensor | None, packed: bool = False) -> StructFields:
    """A pointer and the strides of batch, head and row; packed sequences share one batch row."""
    if tensor is None:
        return 0, 0, 0, 0
    batch, head, row, _ = tensor.stride()
    return tensor.data_ptr(), 0 if packed else batch, head, row


def _term(tensor: Tensor | None) -> StructFields:
    """A pointer and the strides along (B, H, Q, K), 0 where the tensor broadcasts."""
    return (0,) * 5 if tensor is None else (tensor.data_ptr(), *term_strides(tensor))


def _typed_term(tensor: Tensor | None) -> StructFields:
    """A pointer, strides and the dtype."""
    return *_term(tensor), 0 if tensor is None else _DTYPES[tensor.dtype]


def _sequence_fields(layout: Layout) -> StructFields:
    if layout.offsets_and_lengths_4B is None:
        return (0,) * 6
    first, step = (
        layout.offsets_and_lengths_4B.data_ptr(),
        layout.offsets_and_lengths_4B.stride(0) * 8,
    )
    table = layout.block_table_BM
    return (
        *(first + i * step for i in range(4)),
        address(table),
        0 if table is None else table.stride(0),
    )


def gradient_fields(
    grad_out: Tensor,
    on_query: Tensor,
    on_key: Tensor,
    on_value: Tensor,
    grad_mass: Tensor | None,
    terms: TermGradients,
    packed: bool,
) -> StructFields:
    """What a backward pass reads and fills."""
    return (
        *rows(grad_out, packed),
        *rows(on_query, packed),
        *rows(on_key, packed),
        *rows(on_value, packed),
        *rows(grad_mass, packed),
        terms.row_parts,
        address(terms.rows),
        address(terms.columns),
        *_term(terms.pairs),
        address(terms.slope_parts),
    )


def unpack(
    offsets_and_lengths: Tensor | None,
    block_table: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
) -> tuple[Layout, LogitSettings, int]:
    """Layout, settings and the number of queries of a block, from the arguments of an operator."""
    max_q, max_k, packed, left, right, block_queries, relative = sizes
    layout = Layout(offsets_and_lengths, block_table, max_q, max_k, bool(packed))
    return layout, LogitSettings(left, right, bool(relative), *numbers), block_queries


@dataclass(frozen=True)
class Arguments:
    """The tensors of a call. A tensor that the kernel cannot read is copied for it."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    attn_mask: Tensor | None
    alibi_slopes: Tensor | None
    layout: Layout
    settings: LogitSettings
    block_queries: int
    # Copies must outlive the call that was given their address.
    copies: list[Tensor] = field(default_factory=list)

    def _kept(self, tensor: Tensor) -> Tensor:
        self.copies.append(tensor)
        return tensor

    def _floats(self, tensor: Tensor | None) -> Tensor | None:
        """In a dtype that the kernel reads. Only what is added in double precision is copied."""
        return tensor if tensor is None or supports(tensor.dtype) else self._kept(tensor.float())

    def bytes(
        self,
        out: Tensor | None,
        visits: Tensor | None,
        mass: Tensor | None = None,
        gradients: StructFields = _NO_GRADIENTS,
    ) -> bytes:
        """The argument block.

        A forward pass fills ``out``, ``mass`` if it is given, and ``visits`` for a backward pass.
        """
        layout, settings = self.layout, self.settings
        query, key, value = (
            self._kept(with_contiguous_rows(x)) for x in (self.query, self.key, self.value)
        )
        mask = self.attn_mask
        flags = mask if mask is not None and mask.dtype == torch.bool else None
        slopes = None if self.alibi_slopes is None else self._kept(self.alibi_slopes.float())
        by_batch = slopes is not None and slopes.dim() == 2
        paged = layout.block_table_BM is not None
        return _BLOCK.pack(
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
            self.block_queries,
            settings.relative,
            *rows(query, layout.packed),
            *rows(key, layout.packed),
            *rows(value, layout.packed),
            *rows(out, layout.packed),
            *rows(mass, layout.packed),
            *_typed_term(self._floats(self.bias)),
            *_typed_term(None if flags is not None else self._floats(mask)),
            *_term(flags),
            address(slopes),
            slopes.stride(0) if slopes is not None and by_batch else 0,
            0 if slopes is None else slopes.stride(-1),
            *_sequence_fields(layout),
            key.shape[2] if paged else 0,
            address(visits),
            0 if visits is None else visits.shape[2],
            *gradients,
            settings.scale,
            settings.constant,
            settings.softcap,
            settings.tolerance,
        )


def kernel(function: str) -> Callable[[bytes], None]:
    """A function of the kernel, which releases the interpreter's lock while it runs.

    It raises ``MemoryError`` where there is no memory to work in.
    """
    library = loaded()
    assert library is not None
    compute = getattr(library, function)

    def run(block: bytes) -> None:
        if compute(block):
            raise MemoryError(
                "sigmoid attention: not enough memory for the operator's working arrays"
            )

    return run


def run(function: str, block: bytes) -> None:
    """Call a function of the kernel once."""
    kernel(function)(block)
