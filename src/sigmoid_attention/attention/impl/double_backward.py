"""Second derivatives for the fused kernels, computed tile by tile for each sequence.

Shape letters: B sequences, H query heads, T tokens of a row, Q queries, K keys, I query blocks,
M pages of a sequence.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigmoid_attention.attention.impl import tiled
from sigmoid_attention.attention.impl.layout import Layout, LogitSettings, empty_gradient
from sigmoid_attention.attention.impl.tiles import Tiles
from sigmoid_attention.attention.sequences import of_pages

# Returns one sequence's views of query, key, value, bias, mask, slopes, grad_out and visits.
Cut = Callable[[Sequence[Tensor]], list[Tensor]]


def gradients(
    directions: Sequence[Tensor],
    grad_out: Tensor,
    visits_BHI: Tensor,
    tensors: Sequence[Tensor | None],
    layout: Layout,
    settings: LogitSettings,
    wanted: Sequence[bool],
    *,
    block_q: int,
    block_k: int,
) -> tuple[Tensor, ...]:
    """Gradients of the backward pass for query, key, value, bias, mask, slopes and grad_out.

    ``directions`` are the gradients of the backward pass's results, of size 0 for a result that was
    not wanted. The gradient of a bias, mask or slopes that is None or not ``wanted`` has size 0.
    The gradients of a cache's pages are zero.
    """
    if layout.block_table_BM is not None:
        unpaged = replace(layout, block_table_BM=None)
        along, rows = (_without_pages(x, layout.block_table_BM) for x in (directions, tensors))
        unpaged_gradients = gradients(
            along, grad_out, visits_BHI, rows, unpaged, settings, wanted,
            block_q=block_q, block_k=block_k,
        )  # fmt: skip
        pages = [on.new_zeros(on.shape) for on in directions[1:3]]
        return unpaged_gradients[0], *pages, *unpaged_gradients[3:]
    nothing = grad_out.new_empty(0)
    present = [nothing if tensor is None else tensor for tensor in tensors]
    if tensors[3] is None:
        present[3] = grad_out.new_full((), settings.constant, dtype=torch.float32)
    zeros = partial(grad_out.new_zeros, dtype=torch.float32)
    learned = [term if want else nothing for term, want in zip(present[3:], wanted, strict=True)]
    total = [zeros(tensor.shape) for tensor in (*present[:3], *learned, grad_out)]
    for cut in _cuts(layout, block_q):
        query, key, value, bias, mask, slopes, part_grad_out, visits = cut(
            [*present, grad_out, visits_BHI]
        )
        tiles = Tiles(
            query, key, value, bias,
            None if tensors[4] is None else mask,
            None if tensors[5] is None else slopes,
            settings.scale, settings.softcap or None, settings.left, settings.right,
            block_q, block_k,
        )  # fmt: skip
        part = tiled.double_backward(
            tiles, part_grad_out, visits, cut([*directions, nothing, nothing])[:6], wanted
        )
        for sequence_total, share in zip(cut([*total, nothing]), part, strict=False):
            if share.numel():
                sequence_total += share
    return tuple(
        gradient.to(tensor.dtype, copy=True)
        if want and tensor is not None
        else grad_out.new_empty(0)
        for gradient, tensor, want in zip(
            total, (*tensors, grad_out), (True, True, True, *wanted, True), strict=True
        )
    )


def gradients_with_mass(
    directions: Sequence[Tensor],
    grad_out: Tensor,
    grad_mass: Tensor | None,
    visits_BHI: Tensor,
    tensors: Sequence[Tensor | None],
    *settings: Any,
    **blocks: int,
) -> tuple[Tensor, ...]:
    """Like ``gradients``, and last the gradient for ``grad_mass`` (B, H, Q, 1).

    It has size 0 without ``grad_mass``. The mass is the output for a value of ones, so it takes a
    column more of value and grad_out.
    """
    if grad_mass is None:
        plain = gradients(directions, grad_out, visits_BHI, tensors, *settings, **blocks)
        return *plain, grad_out.new_empty(0)
    (on_query, on_key, on_value, *on_terms), (query, key, value, *terms) = directions, tensors
    assert value is not None
    *found, on_grad_out = gradients(
        (on_query, on_key, F.pad(on_value, (0, 1)), *on_terms),
        torch.cat([grad_out, grad_mass], -1),
        visits_BHI,
        (query, key, F.pad(value, (0, 1), value=1.0), *terms),
        *settings,
        **blocks,
    )
    found[2] = found[2][..., :-1].contiguous()
    on_grad_out, on_grad_mass = on_grad_out[..., :-1], on_grad_out[..., -1:].contiguous()
    return *found, on_grad_out.to(grad_out.dtype).contiguous(), on_grad_mass


def fake_gradients(
    grad_out: Tensor, tensors: Sequence[Tensor | None], wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    """Uninitialised tensors in the shapes of the results of ``gradients``."""
    flags = (True, True, True, *wanted, True)
    pairs = zip(flags, (*tensors, grad_out), strict=True)
    return tuple(empty_gradient(*pair, grad_out) for pair in pairs)


def _without_pages(tensors: Sequence, table_BM: Tensor) -> list:
    """The tensors, with keys and values copied to one row for each sequence."""
    query, key, value, *others = tensors
    return [query, of_pages(key, table_BM), of_pages(value, table_BM), *others]


def _cuts(layout: Layout, block_q: int) -> Iterator[Cut]:
    if layout.offsets_and_lengths_4B is None:
        yield list
        return
    for s, numbers in enumerate(layout.offsets_and_lengths_4B.mT.tolist()):
        start_q, queries, start_k, keys = numbers
        if queries and keys:
            row = slice(None) if layout.packed else slice(s, s + 1)
            rows_q = (row, slice(None), slice(start_q, start_q + queries))
            rows_k = (row, slice(None), slice(start_k, start_k + keys))
            yield _cut(s, rows_q, rows_k, queries, keys, -(-queries // block_q))


def _cut(s: int, rows_q: tuple, rows_k: tuple, queries: int, keys: int, blocks: int) -> Cut:
    def row_of(tensor: Tensor) -> Tensor:
        return tensor[s : s + 1] if tensor.shape[0] > 1 else tensor

    def term(tensor: Tensor) -> Tensor:
        if tensor.dim() < 2:
            # A scalar, or a mask with a dimension of keys.
            return tensor[:keys] if tensor.dim() and tensor.shape[0] > 1 else tensor
        if tensor.dim() == 4:
            tensor = row_of(tensor)
        if tensor.shape[-2] > 1:
            tensor = tensor[..., :queries, :]
        return tensor[..., :keys] if tensor.shape[-1] > 1 else tensor

    def cut(tensors: Sequence[Tensor]) -> list[Tensor]:
        query, key, value, bias, mask, slopes, grad_out, *visits = tensors
        return [
            *(tensor[rows] if tensor.dim() == 4 else tensor
              for tensor, rows in ((query, rows_q), (key, rows_k), (value, rows_k))),
            term(bias),
            term(mask),
            row_of(slopes) if slopes.dim() == 2 else slopes,
            grad_out[rows_q] if grad_out.dim() == 4 else grad_out,
            *(row_of(tensor)[..., :blocks] if tensor.dim() == 3 else tensor for tensor in visits),
        ]  # fmt: skip

    return cut
