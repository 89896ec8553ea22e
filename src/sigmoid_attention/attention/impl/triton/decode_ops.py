"""Decoding as an operator of torch's library: its launches, and the number of parts of the keys.

**Parts.** A step reads its cache once. It is as fast as the memory if all multiprocessors read the
same amount, without pauses. There are P units of work (key heads, sequences, blocks of rows) and
N blocks of keys in the longest sequence. S parts make P S programs of ceil(N / S) blocks each, of
which R run at a time. :func:`key_parts` takes the smallest S for which

    ceil(P S / R) (ceil(N / S) + START_BLOCKS)

is least: the rounds of programs, times the cost of a program. R is RESIDENT programs for each
multiprocessor, and a block has as many keys as fill BLOCK_BYTES. These three constants are
calculated, not measured.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim, E value dim,
S parts, M pages of a sequence.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sigmoid_attention.attention import torch_state
from sigmoid_attention.attention.impl.triton import decode as kernels
from sigmoid_attention.attention.impl.triton.call import padded, strided
from sigmoid_attention.attention.impl.triton.configs import multiprocessors
from sigmoid_attention.attention.impl.triton.launch import launch, workspace
from sigmoid_attention.attention.impl.triton.ops import refuse as refuse_triton
from sigmoid_attention.attention.problem import Problem

MOST_QUERIES = 16
# Bytes of keys in a block, and as many of values. Two programs then keep about 128 KiB in flight,
# twice what covers the memory's latency at 5 TB/s with 132 multiprocessors.
BLOCK_BYTES = 16 * 1024
RESIDENT = 2
# The table of pages is read one stage before the pages.
STAGES, PAGED_STAGES = 3, 4
# The cost of starting a program and adding its part, in blocks.
START_BLOCKS = 2
MOST_PARTS = 256
# The largest head dim, in every dtype: few rows leave enough registers for it.
WIDEST = 256
# Limits of a block of rows, whose sums stay in registers in fp32.
MOST_ROWS, SUM_BYTES = 64, 32 * 1024
# Weights are at most 1. Times 2^15 even those near 1 / n keep all digits of fp16.
FP16_SHIFT = 15


def attend(problem: Problem) -> Tensor:
    """The operator for a few queries against a cache, (B, H, Q, E).

    Raises:
        NotImplementedError: no cache, too many queries, fp64, a head dim above 256,
            gradients, or a device that runs no Triton.
    """
    return _attend(problem, _compute, decode)


def attend_with_mass(problem: Problem) -> tuple[Tensor, Tensor]:
    """The same and the mass of each row, the sum of its weights: (B, H, Q) in fp32.

    Raises what ``attend`` raises.
    """
    return _attend(problem, _compute_with_mass, decode_with_mass)


def _attend(problem: Problem, compute: Callable, operator: Callable) -> Any:
    refuse(problem)
    own = problem.sequences
    assert own is not None
    bias = problem.bias
    by_number = not isinstance(bias, Tensor)
    tensors = (
        problem.query,
        problem.key,
        problem.value,
        None if by_number else bias,
        problem.alibi_slopes,
        *own.raw_lengths_and_table(),
    )
    sizes = (own.max_k, *problem.window, int(problem.tolerance_is_relative))
    constant = bias if by_number else 0.0
    # A launch does not take NumPy's scalars.
    given = (problem.scale, problem.softcap or 0.0, constant, problem.tolerance)
    numbers = given if torch.compiler.is_compiling() else tuple(map(float, given))
    # Through torch's dispatcher the call would take longer than its kernel.
    bypass = torch_state.bypasses_dispatcher(tensors)
    return (compute if bypass else operator)(*tensors, sizes, numbers)


def refuse(problem: Problem) -> None:
    """Raise ``NotImplementedError`` for what the decoding kernel does not do."""
    query, own = problem.query, problem.sequences
    if own is None or own.packed:
        raise NotImplementedError("query: the decoding kernel needs a cache")
    if query.shape[2] > MOST_QUERIES:
        raise NotImplementedError(
            f"query: the decoding kernel takes {MOST_QUERIES} queries, got {query.shape[2]}"
        )
    refuse_triton(problem, WIDEST)
    learns = (query, problem.key, problem.value, problem.bias, problem.alibi_slopes)
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in learns):
        raise NotImplementedError("query: the decoding kernel has no gradients")


@lru_cache
def key_parts(units: int, keys: int, block: int, multiprocessors: int) -> int:
    """The number of parts of the keys, by the formula of the module's docstring.

    Example:
        >>> key_parts(units=8, keys=32768, block=64, multiprocessors=132)
        32
        >>> key_parts(units=512, keys=32768, block=64, multiprocessors=132)
        1
    """
    blocks, resident = -(-keys // block), RESIDENT * multiprocessors
    if blocks == 0 or units == 0:
        return 1

    def cost(count: int) -> int:
        return -(-units * count // resident) * (-(-blocks // count) + START_BLOCKS)

    return min(range(1, min(blocks, MOST_PARTS) + 1), key=cost)


def block_keys(head_dim: int, value_dim: int, itemsize: int) -> int:
    """Keys of a block: as many as fill BLOCK_BYTES, a power of two from 16 to 128."""
    row = padded(max(head_dim, value_dim)) * itemsize
    return min(max(BLOCK_BYTES // row, 16), 128)


def block_rows(rows: int, value_dim: int, dtype: torch.dtype) -> int:
    """Rows of a block, a power of two from 16 to MOST_ROWS; in fp32, without tensor cores, 16."""
    fitting = SUM_BYTES // (4 * padded(value_dim))
    most = 16 if dtype == torch.float32 else min(fitting, MOST_ROWS)
    return min(padded(rows), most)


def _strided_slopes(slopes: Tensor | None) -> tuple | None:
    """Slopes with their strides along (B, H)."""
    if slopes is None:
        return None
    return (slopes, *slopes.stride()) if slopes.dim() == 2 else (slopes, 0, slopes.stride(0))


def _compute(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    alibi_slopes: Tensor | None,
    used: Tensor,
    block_table: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
    mass: Tensor | None = None,
) -> Tensor:
    capacity, left, right, relative = sizes
    scale, softcap, constant, tolerance = numbers
    batch, heads, queries, head_dim = query.shape
    key_heads, page = key.shape[1], 0 if block_table is None else key.shape[2]
    value_dim = value.shape[3]
    out = query.new_empty(batch, heads, queries, value_dim)
    if (out if mass is None else mass).numel() == 0:
        return out
    rows = heads // key_heads * queries
    block_m = block_rows(rows, value_dim, query.dtype)
    block_n = block_keys(head_dim, value_dim, query.element_size())
    units = batch * key_heads * -(-rows // block_m)
    visible = capacity if left < 0 else min(capacity, left + queries)
    splits = key_parts(units, visible, block_n, multiprocessors(query.device))
    parts, mass_parts = out.unsqueeze(3), None if mass is None else mass.unsqueeze(3)
    if splits > 1:
        parts = workspace(query, (batch, heads, queries, splits, value_dim), torch.float32)
        if mass is not None:
            mass_parts = mass.new_empty(batch, heads, queries, splits)
    by_key = bias is not None and bias.dim() > 0 and bias.shape[-1] > 1
    device = torch.cuda.device(query.device) if query.is_cuda else nullcontext()
    with device:
        launch(
            kernels.attend_part, units * splits,
            (query, *query.stride()), (key, *key.stride()), (value, *value.stride()),
            (parts, *parts.stride()),
            None if mass_parts is None else (mass_parts, *mass_parts.stride()),
            (used, used.stride(0)),
            None if block_table is None else (block_table, *block_table.stride()),
            strided(bias), _strided_slopes(alibi_slopes),
            (key_heads, capacity, splits), (scale, softcap, constant, tolerance),
            GROUP=heads // key_heads, QUERIES=queries, D=head_dim, E=value_dim,
            LEFT=left, RIGHT=right, PAGE=page, BIAS_BY_KEY=by_key, HAS_SOFTCAP=softcap > 0,
            HAS_REACH=softcap > 0 and alibi_slopes is not None and tolerance > 0 and not by_key,
            RELATIVE=bool(relative),
            BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=padded(head_dim), BLOCK_E=padded(value_dim),
            SHIFT=FP16_SHIFT if query.dtype == torch.float16 else 0,
            num_warps=4, num_stages=PAGED_STAGES if page else STAGES,
        )  # fmt: skip
        if splits > 1:
            launch(
                kernels.add_parts, batch * heads * queries, parts, out, mass_parts, mass, splits,
                E=value_dim, BLOCK_S=16, BLOCK_E=padded(value_dim), num_warps=4,
            )  # fmt: skip
    return out


def _compute_with_mass(query: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    mass = query.new_empty(query.shape[:3], dtype=torch.float32)
    return _compute(query, *arguments, mass=mass), mass


@torch.library.custom_op("sigmoid_attention::triton_decode", mutates_args=())
def decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    alibi_slopes: Tensor | None,
    used: Tensor,
    block_table: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
) -> Tensor:
    """Output (B, H, Q, E); ``sizes`` and ``numbers`` as ``attend`` packs them."""
    return _compute(query, key, value, bias, alibi_slopes, used, block_table, sizes, numbers)


@decode.register_fake
def _(query, key, value, *arguments):
    return query.new_empty(*query.shape[:3], value.shape[3])


@torch.library.custom_op("sigmoid_attention::triton_decode_with_mass", mutates_args=())
def decode_with_mass(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    alibi_slopes: Tensor | None,
    used: Tensor,
    block_table: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """The output of ``decode``, and the mass (B, H, Q)."""
    return _compute_with_mass(
        query, key, value, bias, alibi_slopes, used, block_table, sizes, numbers
    )


@decode_with_mass.register_fake
def _(query, key, value, *arguments):
    out = query.new_empty(*query.shape[:3], value.shape[3])
    return out, query.new_empty(query.shape[:3], dtype=torch.float32)
