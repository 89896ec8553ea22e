"""From the tensors of a call to the launches of its kernels.

Shape letters: B sequences, H query heads, G key heads, Q queries, K keys, D head dim, E value dim,
I units of queries, J units of keys (plan.py).
"""

from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sigmoid_attention.attention.bounds import TAIL_LOGIT
from sigmoid_attention.attention.impl.layout import (
    Layout,
    LogitSettings,
    rows_are_contiguous,
    term_kind,
    term_strides,
)
from sigmoid_attention.attention.impl.term_gradients import TermGradients
from sigmoid_attention.attention.impl.triton import activation, configs, plan, tile
from sigmoid_attention.attention.impl.triton.backward import ADDED, NOT_WANTED, STORED, backward
from sigmoid_attention.attention.impl.triton.backward_queries import backward_queries
from sigmoid_attention.attention.impl.triton.configs import Config, Configs
from sigmoid_attention.attention.impl.triton.forward import forward
from sigmoid_attention.attention.impl.triton.launch import launch, workspace

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FARTHEST_ROW = 2**23

# From how many keys on a call is planned. With slopes a plan saves time as soon as rows are longer
# than the near keys, which it computes in any case. Without slopes only a bias far below zero makes
# tails, and the plan reads all queries and keys once more.
PLANNED_WITH_SLOPES = 1024
PLANNED_WITHOUT = 8192

# A tensor with its strides, as tile.py has them, or None.
Strided = tuple | None


def readable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if the kernels cannot read it.

    They need contiguous rows, so near to each other that offsets within a tile fit 32 bits.
    """
    near = rows_are_contiguous(tensor) and tensor.stride(-2) <= FARTHEST_ROW
    return tensor if near else tensor.contiguous()


_KINDS = {
    "none": tile.NONE.value,
    "flags": tile.FLAGS.value,
    "heads": tile.HEADS.value,
    "rows": tile.ROWS.value,
    "columns": tile.COLUMNS.value,
    "pairs": tile.PAIRS.value,
}


def kind_number(term: Tensor | None) -> int:
    """The number that tile.py has for the kind of a bias or a mask."""
    return _KINDS[term_kind(term)]


def strided(term: Tensor | None) -> Strided:
    """A term and its strides along (B, H, Q, K), 0 where it broadcasts."""
    if term is None:
        return None
    numbers = term.view(torch.uint8) if term.dtype == torch.bool else term
    return numbers, *term_strides(term)


def multiples_of_8_only(*tensors: Strided) -> bool:
    """Whether all strides are multiples of 8 and not all of 16: see tile.assume_multiple_of_8."""
    strides = [stride for tensor in tensors if tensor is not None for stride in tensor[1:]]
    return all(stride % 8 == 0 for stride in strides) and any(stride % 16 for stride in strides)


def cdiv(size: int, block: int) -> int:
    return -(-size // block)


def padded(dim: int) -> int:
    """The size of a product for ``dim``: a power of two, at least 16."""
    return max(16, 1 << (dim - 1).bit_length())


class Call:
    """The tensors of a call and what its kernels have in common."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        attn_mask: Tensor | None,
        alibi_slopes: Tensor | None,
        layout: Layout,
        settings: LogitSettings,
    ) -> None:
        self.query, self.key, self.value = readable(query), readable(key), readable(value)
        self.bias, self.mask, self.slopes = bias, attn_mask, alibi_slopes
        self.layout, self.settings = layout, settings
        self.offsets_and_lengths = layout.offsets_and_lengths_4B
        self.sequences = layout.sequences(query)
        self.heads, self.key_heads = query.shape[1], key.shape[1]
        self.head_dim, self.value_dim = query.shape[3], value.shape[3]

    @cached_property
    def configs(self) -> Configs:
        device, dtype = configs.of(self.query.device), self.query.dtype
        chosen = configs.choose(device, dtype, padded(self.head_dim), padded(self.value_dim))
        return chosen.beside_pairs(self.bytes_per_pair)

    @cached_property
    def bytes_per_pair(self) -> int:
        """Bytes of bias and mask that each score reads."""
        kinds = ("pairs", "flags")
        terms = (term for term in (self.bias, self.mask) if term_kind(term) in kinds)
        return sum(term.element_size() for term in terms if term is not None)

    @property
    def on_device(self):
        """Makes the tensors' device the current one, to which launches go."""
        return torch.cuda.device(self.query.device) if self.query.is_cuda else nullcontext()

    def rows(self, tensor: Tensor) -> Strided:
        batch, head, row, _ = tensor.stride()
        return tensor, 0 if self.layout.packed else batch, head, row

    @cached_property
    def terms(self) -> tuple[Strided, Strided, Strided]:
        slopes = self.slopes
        if slopes is not None:
            batch = slopes.stride(0) if slopes.dim() == 2 and slopes.shape[0] > 1 else 0
            slopes = slopes, batch, slopes.stride(-1)
        return strided(self.bias), strided(self.mask), slopes

    def numbers(self, units: int) -> tuple[int | float, ...]:
        """As NUMBERS of tile.py."""
        layout, settings = self.layout, self.settings
        return (
            self.sequences, self.heads, self.heads // self.key_heads,
            layout.max_q, layout.max_k, units,
            settings.scale, settings.constant, settings.softcap, settings.left, settings.right,
        )  # fmt: skip

    def units(self, length: int) -> int:
        return cdiv(length, self.configs.span)

    @property
    def dims(self) -> dict[str, int]:
        return {"D": self.head_dim, "WIDE_D": padded(self.head_dim)}

    @property
    def features(self) -> dict[str, Any]:
        """What the kernels are compiled for, beside dims and blocks."""
        settings = self.settings
        return {
            "BIAS": kind_number(self.bias),
            "MASK": kind_number(self.mask),
            "SLOPES": self.slopes is not None,
            "SOFTCAP": settings.softcap > 0,
            "LEFT": settings.left >= 0,
            "RIGHT": settings.right >= 0,
            # In fp32 three products in tf32 keep all digits.
            "PRECISION": "tf32x3" if self.query.dtype == torch.float32 else "tf32",
        }

    def constants(self, config: Config, planned: bool) -> dict[str, Any]:
        """The constants of one of the three kernels."""
        tanh = activation.tanh_is_used()
        return (
            self.dims
            | self.features
            | {
                "E": self.value_dim,
                "WIDE_E": padded(self.value_dim),
                "BLOCK_Q": config.block_q,
                "BLOCK_K": config.block_k,
                "SPAN": self.configs.span,
                "SPANS": planned,
                "SHIFT": 15 if self.query.dtype == torch.float16 else 0,
                "ACTIVATION": (tile.TANH if tanh else tile.ACCURATE).value,
                "num_warps": config.num_warps,
                "num_stages": config.num_stages,
            }
        )

    @cached_property
    def ranges(self) -> Tensor | None:
        """(4, B, H, I), the ranges of plan.bound_tiles; None for a call without a plan."""
        layout, settings, span = self.layout, self.settings, self.configs.span
        kinds = ("none", "heads", "rows")
        if term_kind(self.bias) not in kinds or term_kind(self.mask) not in (*kinds, "flags"):
            # To bound a term that varies with the key, the plan would have to read all of it.
            return None
        if self.slopes is None:
            worthwhile = layout.max_k >= PLANNED_WITHOUT and settings.constant <= TAIL_LOGIT
        else:
            worthwhile = layout.max_k >= PLANNED_WITH_SLOPES
        if not worthwhile:
            return None
        units, units_k = self.units(layout.max_q), self.units(layout.max_k)
        query_norms = self.norms(self.query, self.heads, units, keys=False)
        key_norms = self.norms(self.key, self.key_heads, units_k, keys=True)
        ranges = workspace(self.query, (4, self.sequences, self.heads, units), torch.int32)
        launch(
            plan.bound_tiles, ranges[0].numel(),
            self.rows(self.query), self.rows(self.key), query_norms, key_norms, *self.terms,
            self.offsets_and_lengths, ranges, *self.numbers(units), units_k, settings.tolerance,
            **self.dims, **self.features, BLOCK_K=min(span, 64), SPAN=span, CHUNK=plan.CHUNK,
            RELATIVE=settings.relative, num_warps=8, num_stages=1,
        )  # fmt: skip
        return ranges

    def norms(self, rows: Tensor, heads: int, units: int, *, keys: bool) -> Tensor:
        """The largest norm of each unit, (B, heads, units)."""
        largest = workspace(rows, (self.sequences, heads, units), torch.float32)
        dim = rows.shape[3]
        launch(
            plan.norms, largest.numel(),
            self.rows(rows), largest, self.offsets_and_lengths, self.sequences, heads,
            self.layout.max_k if keys else self.layout.max_q, units,
            D=dim, WIDE_D=padded(dim), SPAN=self.configs.span, KEYS=keys, num_warps=4,
        )  # fmt: skip
        return largest

    def spans(self, *, of_keys: bool) -> Tensor | None:
        """The monotone plan: (4, B, H, I) ranges of keys, or (4, B, H, J) of queries."""
        if self.ranges is None:
            return None
        units = self.ranges.shape[3]
        monotone_units = self.units(self.layout.max_k) if of_keys else units
        pairs = self.sequences * self.heads
        sizes = (4, self.sequences, self.heads, monotone_units)
        monotone = workspace(self.ranges, sizes, torch.int32)
        launch(
            plan.make_ranges_monotone, pairs * cdiv(monotone_units, plan.CHUNK),
            self.ranges, monotone, pairs, units, monotone_units,
            CHUNK=plan.CHUNK, OF_KEYS=of_keys, num_warps=4,
        )  # fmt: skip
        return monotone

    def described(self, config: Config) -> tuple[TensorDescriptor, ...] | None:
        """Descriptors of keys and values, if the tensor memory accelerator can fetch them."""
        if not config.described or self.offsets_and_lengths is not None:
            return None
        unit = 16 // self.query.element_size()
        for tensor in (self.key, self.value):
            odd = any(stride % unit or stride == 0 for stride in tensor.stride()[:3])
            if odd or tensor.data_ptr() % 16:
                return None
        return tuple(
            TensorDescriptor(
                tensor, list(tensor.shape), list(tensor.stride()),
                # Past the last dim it gives zeros.
                [1, 1, config.block_k, padded(tensor.shape[3])],
            )
            for tensor in (self.key, self.value)
        )  # fmt: skip

    def forward(self, out: Tensor, mass: Tensor | None = None) -> None:
        """Fill the output and, where it is given, the mass (B, H, Q, 1), which is contiguous."""
        config = self.configs.forward
        with self.on_device:
            spans = self.spans(of_keys=False)
            described = None if self.key.numel() == 0 else self.described(config)
            keys, values = self.rows(self.key), self.rows(self.value)
            queries, rows_of_out = self.rows(self.query), self.rows(out)
            launch(
                forward, self.sequences * self.heads * cdiv(self.layout.max_q, config.block_q),
                queries, *(described or (keys, values)), rows_of_out,
                None if mass is None else self.rows(mass),
                *self.terms, self.offsets_and_lengths, spans,
                *self.numbers(self.units(self.layout.max_q)),
                **self.constants(config, spans is not None), DESCRIBED=described is not None,
                MULTIPLE_OF_8=multiples_of_8_only(queries, keys, values, rows_of_out),
            )  # fmt: skip

    def backward(
        self,
        grad_out: Tensor,
        grad_mass: Tensor | None,
        gradients: tuple[Tensor, Tensor, Tensor],
        terms: TermGradients,
        *,
        in_order: bool,
    ) -> None:
        """Fill the gradients of query, key and value, and add to those of the terms.

        ``in_order`` gives the same bits in every run, and takes a kernel more. Without it the
        gradient of the query lacks the factor ``scale``, and must be in fp32 and zero at first.
        """
        with self.on_device:
            magnitudes = self._magnitudes(grad_out, grad_mass)
            on_mass = None if grad_mass is None else self.rows(grad_mass.contiguous())
            self._keys(grad_out, on_mass, gradients, terms, magnitudes, in_order)
            if in_order:
                self._queries(grad_out, on_mass, gradients[0], terms, magnitudes)

    def _magnitudes(self, grad_out: Tensor, grad_mass: Tensor | None) -> Tensor | None:
        """Two numbers whose product bounds |dO V^T + dm|, by which fp16 gradients are scaled.

        Without dm they are the largest norms of the rows of dO and of V.
        """
        if self.query.dtype != torch.float16:
            return None
        magnitudes = torch.zeros(2, dtype=torch.float32, device=grad_out.device)
        norms = (
            self.norms(grad_out, self.heads, self.units(self.layout.max_q), keys=False),
            self.norms(self.value, self.key_heads, self.units(self.layout.max_k), keys=True),
        )
        for magnitude, unit_norms in zip(magnitudes, norms, strict=True):
            if unit_norms.numel():
                torch.amax(unit_norms, (0, 1, 2), out=magnitude)
        if grad_mass is not None and grad_mass.numel():
            bound = magnitudes.prod() + grad_mass.abs().amax()
            magnitudes = torch.stack((bound, torch.ones_like(bound)))
        return magnitudes

    def _keys(
        self,
        grad_out: Tensor,
        grad_mass: Strided,
        gradients: tuple[Tensor, Tensor, Tensor],
        terms: TermGradients,
        magnitudes: Tensor | None,
        in_order: bool,
    ) -> None:
        sums = (terms.rows, terms.columns, terms.slope_parts)
        without_sums = all(buffer is None for buffer in sums)
        config = self.configs.backward if without_sums else self.configs.backward_with_sums
        spans = self.spans(of_keys=True)
        pairs = NOT_WANTED
        if terms.pairs is not None:
            pairs = ADDED if terms.pairs_shared else STORED
        multiple_of_16 = self.offsets_and_lengths is None and self.layout.max_k % 16 == 0
        programs = self.sequences * self.key_heads * cdiv(self.layout.max_k, config.block_k)
        inputs = (self.query, self.key, self.value, grad_out)
        rows = [self.rows(tensor) for tensor in (*inputs, *gradients)]
        launch(
            backward, programs, *rows[:4], grad_mass, *rows[4:],
            *self.terms, _heads(terms.rows), _heads(terms.columns), strided(terms.pairs),
            _heads(terms.slope_parts), magnitudes, self.offsets_and_lengths, spans,
            *self.numbers(self.units(self.layout.max_k)),
            **self.constants(config, spans is not None),
            ON_QUERY=not in_order,
            ON_ROWS=terms.rows is not None and not in_order,
            ON_COLUMNS=terms.columns is not None,
            ON_PAIRS=pairs.value,
            ON_SLOPES=terms.slope_parts is not None,
            MULTIPLE_OF_16=multiple_of_16 and self.bytes_per_pair > 0,
            MULTIPLE_OF_8=multiples_of_8_only(*rows),
        )  # fmt: skip

    def _queries(
        self,
        grad_out: Tensor,
        grad_mass: Strided,
        on_query: Tensor,
        terms: TermGradients,
        magnitudes: Tensor | None,
    ) -> None:
        config = self.configs.backward_queries
        spans = self.spans(of_keys=False)
        tensors = (self.query, self.key, self.value, grad_out, on_query)
        rows = [self.rows(tensor) for tensor in tensors]
        launch(
            backward_queries,
            self.sequences * self.heads * cdiv(self.layout.max_q, config.block_q),
            *rows[:4], grad_mass, rows[4],
            *self.terms, _heads(terms.rows), magnitudes, self.offsets_and_lengths, spans,
            *self.numbers(self.units(self.layout.max_q)),
            **self.constants(config, spans is not None),
            ON_ROWS=terms.rows is not None,
            MULTIPLE_OF_8=multiples_of_8_only(*rows),
        )  # fmt: skip


def _heads(sums: Tensor | None) -> Strided:
    """A (B, H, ...) tensor of sums with its strides along B and H."""
    return None if sums is None else (sums, sums.stride(0), sums.stride(1))
