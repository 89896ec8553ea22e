"""The mean of the keys that each query sees, and the query's product with it.

Under causality and windows a query sees one span of keys. The sum of a span is a difference of
prefix sums, so time and memory are linear in the length. A mask that depends on the query, and a
few queries to a long cache, take a product of the visible pairs with the keys, in blocks of rows.

A hidden key has no influence, even if it is infinite or NaN. But a difference of sums has the
digits of double precision: a hidden key of size 1e12 in the same prefix, as in an earlier packed
sequence, leaves an error of 1e-4 in the sum.

Shape letters: B batch or sequences, H query heads, G key heads, Q queries, K keys, D head dim,
T tokens of packed sequences.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sigmoid_attention.attention import autocast, masking, torch_state
from sigmoid_attention.attention.impl.cpu.abi import available, supports
from sigmoid_attention.attention.impl.cpu.key_means import mean_products
from sigmoid_attention.attention.tracing import known

if TYPE_CHECKING:
    from sigmoid_attention.attention.problem import Problem

# Up to this many queries, a product with the keys costs less than their prefix sums.
FEW_QUERIES = 4

# Rows of a block of `_sums_in_order`: two triangular matrices stay small up to a million keys.
BLOCK = 256


def mean_logits(problem: "Problem", key_means: Tensor | None = None) -> Tensor:
    """s q_i · k̄_i, with k̄_i the mean of the keys that query i sees, (B, H, Q, 1) or (1, H, T, 1).

    It is in the layout of the query and in the precision of the logits, and 0 for a query that sees
    no key. ``key_means`` gives the means themselves, (B, G, Q, D), if the caller has them.
    """
    if key_means is None:
        if _in_the_kernel(problem):
            window = problem.window
            products_BHQ = mean_products(problem.query, problem.key, problem.scale, *window)
            return products_BHQ[..., None]
        sums, counts = _sums_and_counts(problem)
    else:
        sums, counts = key_means.to(problem.dtype), None
    query_BGRQD = problem.query.to(problem.dtype).unflatten(1, (sums.shape[1], -1))
    product = (query_BGRQD * sums[:, :, None]).sum(-1, keepdim=True).flatten(1, 2)
    if counts is None:
        return product * problem.scale
    return product * (problem.scale / counts.clamp(min=1).to(problem.dtype))


def _in_the_kernel(problem: "Problem") -> bool:
    """Whether the CPU kernel computes the product; it has neither masks nor sequences."""
    return (
        problem.sequences is None
        and problem.attn_mask is None
        and problem.device.type == "cpu"
        and supports(problem.query.dtype)
        and not torch_state.needs_definition()
        and available()
    )


def _sums_and_counts(problem: "Problem") -> tuple[Tensor, Tensor]:
    """The sums of each query's visible keys, (B, G or H, Q, D), and the numbers of these keys."""
    own, mask = problem.sequences, problem.attn_mask
    if own is not None and own.packed:
        return _of_packed(problem)
    dense = problem.padded()
    if mask is not None:
        mask = mask.view(*(1,) * (4 - mask.dim()), *mask.shape)
    by_key = mask is None or mask.shape[1:3] == (1, 1)
    few = own is not None and known(problem.query.shape[2] <= FEW_QUERIES)
    if few or not by_key:
        return _of_pairs(dense)
    key = dense.key if mask is None else dense.key.masked_fill(~masking.attended(mask).mT, 0)
    keys = problem.shape[3] if own is None else own.keys()
    counts = dense.visible_counts()
    left, right = problem.window
    if own is None and left < 0:
        if right < 0:
            return key.sum(-2, keepdim=True, dtype=problem.dtype), counts
        queries, all_keys = problem.shape[2:]
        in_order = torch.are_deterministic_algorithms_enabled()
        if right == 0 and known(queries <= all_keys) and not in_order:
            # The last query sees all keys, the one before it all but one.
            sums = key.cumsum(-2, dtype=problem.dtype)
            return sums[:, :, all_keys - queries :], counts
    spans = masking.window_ends(problem.positions(), keys, problem.window)
    return _of_spans(key, *spans, problem.dtype), counts


def _of_packed(problem: "Problem") -> tuple[Tensor, Tensor]:
    """Sums (1, G, T, D) and counts (1, 1, T, 1) of packed tokens, without a row a sequence."""
    own = problem.sequences
    assert own is not None
    first, stop = masking.window_ends(problem.positions(), own.keys(), problem.window)
    start = own.start_k_B[:, None, None, None]
    tokens = problem.query.shape[2]
    first, stop = (own.unpadded(start + end, tokens) for end in (first, stop))
    return _of_spans(problem.key, first, stop, problem.dtype), stop - first


def _of_spans(key_BGKD: Tensor, first: Tensor, stop: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of the keys in [first, stop), both (..., Q, 1): NaN where one of them is not finite."""
    finite = key_BGKD.isfinite()
    # A difference of long sums would lose digits in single precision.
    before = _sums_before(key_BGKD.where(finite, 0).double())
    sums = (_rows(before, stop) - _rows(before, first)).to(dtype)
    infinite = _sums_before((~finite).any(-1, keepdim=True).long())
    return sums.masked_fill(_rows(infinite, stop) > _rows(infinite, first), torch.nan)


def _sums_before(x_BGKD: Tensor) -> Tensor:
    """The sums of the rows before each row and of all rows, (B, G, K + 1, D)."""
    in_order = torch.are_deterministic_algorithms_enabled() and x_BGKD.is_floating_point()
    sums = _sums_in_order(x_BGKD) if in_order else x_BGKD.cumsum(-2)
    return torch.nn.functional.pad(sums, (0, 0, 1, 0))


def _sums_in_order(x_BGKD: Tensor) -> Tensor:
    """``x.cumsum(-2)`` by products: under deterministic algorithms torch's own raises on a GPU."""
    rows = x_BGKD.shape[-2]
    # At least two blocks: a compiled graph would be restricted to the lengths with one.
    padded = torch.nn.functional.pad(x_BGKD, (0, 0, 0, 2 * BLOCK - rows % BLOCK))
    blocks = padded.unflatten(-2, (-1, BLOCK))
    within = blocks.new_ones(BLOCK, BLOCK).tril() @ blocks
    count = blocks.shape[-3]
    before = blocks.new_ones(count, count).tril(-1) @ within[..., -1, :]
    return (within + before[..., None, :]).flatten(-3, -2)[..., :rows, :]


def _rows(x_BGKD: Tensor, index: Tensor) -> Tensor:
    """Rows of x, (B, G, Q, D), for an index of shape (Q, 1) or (B, 1, Q, 1)."""
    if index.dim() == 2:
        return x_BGKD[:, :, index[:, 0]]
    return x_BGKD.gather(-2, index.expand(*x_BGKD.shape[:2], -1, x_BGKD.shape[3]))


def _of_pairs(dense: "Problem") -> tuple[Tensor, Tensor]:
    """Sums (B, G or H, Q, D) and counts for any visibility of pairs of a query and a key."""
    batch, heads, queries, keys = dense.shape
    finite = dense.key.isfinite()
    key_BGKD = dense.key.where(finite, 0).to(dense.dtype)
    infinite_BGK1 = (~finite).any(-1, keepdim=True).to(dense.dtype)

    def part(rows: slice) -> tuple[Tensor, Tensor]:
        offset_QK, visible = dense.offset_and_visible(rows)
        if visible is None:
            visible = torch.ones_like(offset_QK, dtype=torch.bool)
        visible = visible.view(*(1,) * (4 - visible.dim()), *visible.shape)
        weights = visible.to(dense.dtype).expand(batch, -1, offset_QK.shape[-2], keys)
        infinite = _sums_over_keys(weights, infinite_BGK1) > 0
        sums = _sums_over_keys(weights, key_BGKD).masked_fill(infinite, torch.nan)
        return sums, weights.sum(-1, keepdim=True)

    blocks = masking.blocks_of_rows(queries, batch * heads * keys, masking.NUMBERS_OF_A_BLOCK)
    sums, counts = zip(*map(part, blocks), strict=True)
    return torch.cat(sums, -2), torch.cat(counts, -2)


def _sums_over_keys(weights_BHQK: Tensor, x_BGKD: Tensor) -> Tensor:
    """Weighted sums over the keys, (B, H, Q, D), or (B, G, Q, D) for weights of all heads."""
    groups = x_BGKD.shape[1]
    if weights_BHQK.shape[1] == 1:
        # One product for all key heads: autograd keeps one array of pairs, not one a head.
        sums_B1QE = autocast.product(weights_BHQK, x_BGKD.transpose(1, 2).flatten(2)[:, None])
        return sums_B1QE[:, 0].unflatten(-1, (groups, -1)).transpose(1, 2)
    # The query heads of a key head follow each other: one product for all of them.
    weights_BGRK = weights_BHQK.unflatten(1, (groups, -1)).flatten(2, 3)
    sums_BGRD = autocast.product(weights_BGRK, x_BGKD)
    return sums_BGRD.unflatten(2, (-1, weights_BHQK.shape[2])).flatten(1, 2)
