"""Validation of tensors that kernels index with: cumulative lengths, lengths and block tables.

The values are read once and copied, because another thread may write to the caller's tensors while
a kernel runs. A traced graph has no values yet: it contains a custom op that reads and checks them
when the graph runs. Values on a GPU are not read, as this would wait for the device; the GPU
kernels never access memory outside their tensors.

Shape letters: B sequences, M pages of a sequence.
"""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from sigmoid_attention.attention import torch_state
from sigmoid_attention.attention.sequences import Sequences, used_pages


def values_are_readable(device: torch.device) -> bool:
    """Whether a tensor's values may be read: on a GPU this would wait for the device.

    In an ONNX graph no code of this library could read them; its operations check their indices.
    """
    return device.type == "cpu" and not torch_state.exporting_to_onnx()


def packed(
    cu_seq_q: Tensor, cu_seq_k: Tensor, tokens_q: int, tokens_k: int, max_q: int, max_k: int
) -> Sequences:
    """Packed sequences, from their cumulative lengths (B + 1,).

    The maximum lengths are those of the longest sequences, so larger declared lengths cost nothing.
    If the values are not read, each is the smaller of the declared length and the token count.

    Raises:
        ValueError: the cumulative lengths do not rise from 0 to the number of tokens, or a sequence
            is longer than declared.
    """
    if not values_are_readable(cu_seq_q.device):
        offsets_and_lengths_4B = _between(
            cu_seq_q.long().contiguous(), cu_seq_k.long().contiguous()
        )
    elif _now(cu_seq_q, cu_seq_k):
        return Sequences(
            *_packed(cu_seq_q, cu_seq_k, tokens_q, tokens_k, max_q, max_k), packed=True
        )
    else:
        offsets_and_lengths_4B = _packed_later(cu_seq_q, cu_seq_k, tokens_q, tokens_k, max_q, max_k)
    longest = _at_most(max_q, tokens_q), _at_most(max_k, tokens_k)
    return Sequences(offsets_and_lengths_4B, *longest, packed=True)


def cached(
    queries: int,
    seqused_k: Tensor,
    capacity: int,
    block_table: Tensor | None = None,
    pages: int = 0,
    page_size: int = 0,
) -> Sequences:
    """The sequences of a contiguous or paged cache, with one row of queries each.

    Raises:
        ValueError: a length is negative or above the capacity, or a page index is invalid.
    """
    read = _cached if _now(seqused_k, block_table) else _cached_later
    offsets_and_lengths_4B, table_BM = read(
        queries, seqused_k, capacity, block_table, pages, page_size
    )
    if block_table is None:
        table_BM = None
    return Sequences(offsets_and_lengths_4B, max_q=queries, max_k=capacity, block_table_BM=table_BM)


def fitting(numbers: Tensor, room: int, size: int, sentence: str) -> Tensor:
    """A checked int64 copy of indices from 0 to size - room; a traced graph checks when it runs.

    Callers must use the returned tensor: a graph omits an operator whose result is not used.

    Raises:
        ValueError: with the text ``sentence``, in which {low} and {high} stand for the smallest and
            largest index, {needed} and {last} for high + 1 and size - 1, {room} and {size} for the
            arguments.
    """
    if torch_state.is_eager() and not numbers.is_meta:
        return _fitting(numbers, room, size, sentence)
    if values_are_readable(numbers.device):
        return _fitting_later(numbers, room, size, sentence)
    return numbers.long()


def _at_most(declared: int, tokens: int) -> int:
    # Under torch.jit.trace sizes are tensors.
    return declared if isinstance(tokens, Tensor) else torch.sym_min(declared, tokens)  # pyright: ignore


def _now(*numbers: Tensor | None) -> bool:
    return torch_state.is_eager() and all(
        x is None or torch_state.is_plain_tensor(x, learning=False) for x in numbers
    )


def _between(ends_q: Tensor, ends_k: Tensor) -> Tensor:
    """Offsets and lengths, (4, B), from contiguous cumulative lengths."""
    return torch.stack((ends_q[:-1], ends_q.diff(), ends_k[:-1], ends_k.diff()))


def _packed(
    cu_seq_q: Tensor, cu_seq_k: Tensor, tokens_q: int, tokens_k: int, max_q: int, max_k: int
) -> tuple[Tensor, int, int]:
    """Offsets and lengths, (4, B), and the lengths of the longest query and key sequence."""
    ends = [x.to(torch.int64, copy=True).contiguous() for x in (cu_seq_q, cu_seq_k)]
    longest_q = _longest("q", ends[0].tolist(), tokens_q, max_q)
    longest_k = _longest("k", ends[1].tolist(), tokens_k, max_k)
    return _between(*ends), longest_q, longest_k


def _longest(side: str, ends: list[int], tokens: int, declared: int) -> int:
    lengths = [end - start for start, end in pairwise(ends)]
    if ends[0] != 0 or ends[-1] != tokens or min(lengths) < 0:
        raise ValueError(
            f"cu_seq_{side} must rise from 0 to the number of tokens, {tokens}, got {ends}"
        )
    if declared < max(lengths):
        raise ValueError(
            f"max_{side} must be at least the longest sequence, {max(lengths)}, got {declared}"
        )
    return max(lengths)


def _cached(
    queries: int,
    seqused_k: Tensor,
    capacity: int,
    block_table: Tensor | None,
    pages: int,
    page_size: int,
) -> tuple[Tensor, Tensor | None]:
    """Offsets and lengths, (4, B), and the block table."""
    used = seqused_k.tolist()
    # One operation only: in a decoding step each costs as much time as some hundred keys.
    rows = ([0] * len(used), [queries] * len(used), [0] * len(used), used)
    offsets_and_lengths_4B = torch.tensor(rows, dtype=torch.int64, device=seqused_k.device)
    if block_table is None:
        table_BM = None
    else:
        table_BM = used_pages(block_table, offsets_and_lengths_4B[3], page_size)
        low, high = table_BM.aminmax() if table_BM.numel() else (0, 0)
        if pages and (low < 0 or high >= pages):
            raise ValueError(
                f"block_table: pages must lie in 0 to {pages - 1}, got {int(low)} to {int(high)}"
            )
        capacity = capacity if pages else 0
    if used and (min(used) < 0 or max(used) > capacity):
        raise ValueError(
            f"seqused_k must lie in 0 to the cache's capacity {capacity}, "
            f"got {min(used)} to {max(used)}"
        )
    return offsets_and_lengths_4B, table_BM


def _fitting(numbers: Tensor, room: int, size: int, sentence: str) -> Tensor:
    numbers = numbers.to(torch.int64, copy=True)
    low, high = (int(edge) for edge in numbers.aminmax()) if numbers.numel() else (0, 0)
    if numbers.numel() and (low < 0 or high + room > size):
        numbered = {"low": low, "high": high, "needed": high + 1, "last": size - 1}
        raise ValueError(sentence.format(**numbered, room=room, size=size))
    return numbers


@torch.library.custom_op("sigmoid_attention::fitting_numbers", mutates_args=())
def _fitting_later(numbers: Tensor, room: int, size: int, sentence: str) -> Tensor:
    return _fitting(numbers, room, size, sentence)


@_fitting_later.register_fake
def _(numbers, *_):
    return torch.empty_like(numbers, dtype=torch.int64)


@torch.library.custom_op("sigmoid_attention::packed_places", mutates_args=())
def _packed_later(
    cu_seq_q: Tensor, cu_seq_k: Tensor, tokens_q: int, tokens_k: int, max_q: int, max_k: int
) -> Tensor:
    return _packed(cu_seq_q, cu_seq_k, tokens_q, tokens_k, max_q, max_k)[0]


@_packed_later.register_fake
def _(cu_seq_q, *_):
    return cu_seq_q.new_empty((4, cu_seq_q.shape[0] - 1), dtype=torch.int64)


@torch.library.custom_op("sigmoid_attention::cached_places", mutates_args=())
def _cached_later(
    queries: int,
    seqused_k: Tensor,
    capacity: int,
    block_table: Tensor | None,
    pages: int,
    page_size: int,
) -> tuple[Tensor, Tensor]:
    offsets_and_lengths_4B, table_BM = _cached(
        queries, seqused_k, capacity, block_table, pages, page_size
    )
    return offsets_and_lengths_4B, offsets_and_lengths_4B.new_empty(
        0
    ) if table_BM is None else table_BM


@_cached_later.register_fake
def _(queries, seqused_k, capacity, block_table, *_):
    table = (0,) if block_table is None else block_table.shape
    return tuple(seqused_k.new_empty(x, dtype=torch.int64) for x in ((4, *seqused_k.shape), table))


def _one_by_one(operator, info, in_dims, *arguments):
    """The operator under vmap: a loop over the elements of the batch."""
    own = [
        [x if dim is None else x.select(dim, i) for x, dim in zip(arguments, in_dims, strict=True)]
        for i in range(info.batch_size)
    ]
    answers = [operator(*one) for one in own]
    if isinstance(answers[0], Tensor):
        return torch.stack(answers), 0
    parts = tuple(torch.stack(part) for part in zip(*answers, strict=True))
    return parts, (0,) * len(parts)


for _operator in (_packed_later, _cached_later, _fitting_later):
    _operator.register_vmap(partial(_one_by_one, _operator))
