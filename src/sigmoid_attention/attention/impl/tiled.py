"""Sigmoid attention computed tile by tile: linear memory, and tiles skipped by `bounds`.

It is for long sequences, whose score matrix would not fit in memory. Tests also compare the fused
kernels with it: their skipped tiles and their results, forward and backward.

Shape letters: B batch, H query heads, Q queries, D head dim, E value dim, I query blocks,
A pairs of batch and head that are active in a tile, T rows and S columns of a tile.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from sigmoid_attention.attention import autocast
from sigmoid_attention.attention.bounds import may_stop
from sigmoid_attention.attention.impl import reference
from sigmoid_attention.attention.impl.tiles import Tile, Tiles

P = ParamSpec("P")
R = TypeVar("R")


class Pass:
    """The operands of one tile, its weights and the derivatives of cap, shared by all passes.

    With W the weights, c = cap' at the scores, s the scale and dO the gradient of the output:
        dV = W^T dO,  dU = W (1 - W) dO V^T,  dS = dU c,  dQ = s dS K,  dK = s dS^T Q.
    """

    def __init__(self, tile: Tile) -> None:
        self.scale = tile.of.scale
        self.query, self.key, self.value = tile.operands()
        cap = tile.of.softcap
        scores_ATS = reference.scores(
            self.query[None], self.key[None], scale=self.scale, softcap=cap
        )[0]
        self.weights = reference.weights(scores_ATS + tile.extra(), tile.visible())
        self.cap_derivative, self.cap_curvature = scores_ATS.new_ones(()), scores_ATS.new_zeros(())
        if cap is not None:
            self.cap_derivative = 1 - (scores_ATS / cap).square()
            # cap'' / cap' at the uncapped scores.
            self.cap_curvature = -2 * scores_ATS / cap**2

    def output(self) -> Tensor:
        return self.weights @ self.value

    def gradients(self, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of query, key, value and the added terms."""
        sigmoid_derivative = self.weights * (1 - self.weights)
        grad_extra = sigmoid_derivative * (grad_out @ self.value.mT)
        grad_scores = grad_extra * self.cap_derivative * self.scale
        grad_value = self.weights.mT @ grad_out
        return grad_scores @ self.key, grad_scores.mT @ self.query, grad_value, grad_extra

    def second_gradients(
        self, grad_out: Tensor, on_query: Tensor, on_key: Tensor, on_value: Tensor, on_extra: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gradients of <gradients, on_...> for query, key, value, the added terms and grad_out.

        With G = dO V^T, R = s (on_Q K^T + Q on_K^T) and M = R c + on_U the product is
        <M, W (1 - W) G> + <W, dO on_V^T>, whose derivatives these are.
        """
        sigmoid_derivative = self.weights * (1 - self.weights)
        grad_weights = grad_out @ self.value.mT
        grad_extra = sigmoid_derivative * grad_weights
        grad_scores = grad_extra * self.cap_derivative * self.scale
        on_scores = (on_query @ self.key.mT + self.query @ on_key.mT) * self.scale
        on_logits = on_scores * self.cap_derivative + on_extra
        mixed = on_logits * sigmoid_derivative
        bent = on_logits * grad_weights * (1 - 2 * self.weights)
        extra = sigmoid_derivative * (bent + grad_out @ on_value.mT)
        scores = extra + on_scores * grad_extra * self.cap_curvature
        scores = scores * self.cap_derivative * self.scale
        return (
            scores @ self.key + grad_scores @ on_key,
            scores.mT @ self.query + grad_scores.mT @ on_query,
            mixed.mT @ grad_out,
            extra,
            mixed @ self.value + self.weights @ on_value,
        )


def _outside_autocast(compute: Callable[Concatenate[Tiles, P], R]) -> Callable[..., R]:
    """Run a pass over tiles with autocast off, in the tiles' own precision."""

    @wraps(compute)
    def run(tiles: Tiles, *others: P.args, **named: P.kwargs) -> R:
        with autocast.off(tiles.query.device):
            return compute(tiles, *others, **named)

    return run


@_outside_autocast
def forward(tiles: Tiles, tolerance: float, relative: bool) -> tuple[Tensor, Tensor]:
    """Output (B, H, Q, E), and the number of tiles that each query block visits, (B, H, I)."""
    batch, heads, queries, _ = tiles.query.shape
    bounds = tiles.bounds()
    remaining = bounds.remaining().flatten(0, 1)
    sees = bounds.visited(bounds.most).flatten(0, 1) > 0
    order = bounds.order.tolist()
    out = tiles.query.new_zeros(batch, heads, queries, tiles.value.shape[3], dtype=tiles.dtype)
    visits = bounds.order.new_full((batch * heads, len(order)), bounds.order.shape[1])
    for i, turns in enumerate(order):
        rows = tiles.rows(i)
        squares = out.new_zeros(batch * heads, rows.stop - rows.start)
        active_pairs = torch.ones(batch * heads, dtype=torch.bool, device=out.device)
        for turn, j in enumerate(turns):
            stop = active_pairs & may_stop(
                remaining[:, i, turn],
                squares.amin(-1).double().sqrt(),
                tolerance=tolerance,
                tolerance_is_relative=relative,
            )
            visits[stop, i] = turn
            active_pairs &= ~stop
            active = (active_pairs & sees[:, i, turn]).nonzero()[:, 0]
            if active.numel():
                tile = tiles.cut(i, j, active)
                step = Pass(tile)
                squares[active] += step.weights.square().sum(-1)
                tile.add_to_rows(out, step.output())
    return out.to(tiles.query.dtype), visits.view(batch, heads, len(order))


def _visited(tiles: Tiles, visits_BHI: Tensor) -> Iterator[Tile]:
    """The tiles that the forward pass computed."""
    bounds = tiles.bounds()
    sees = bounds.visited(bounds.most).flatten(0, 1) > 0
    visits = visits_BHI.flatten(0, 1)
    for i, turns in enumerate(bounds.order.tolist()):
        for turn, j in enumerate(turns):
            active = (sees[:, i, turn] & (turn < visits[:, i])).nonzero()[:, 0]
            if active.numel():
                yield tiles.cut(i, j, active)


def _totals(tiles: Tiles, wanted: Sequence[bool]) -> list[Tensor]:
    """Zeros in the shape of query, key, value, bias, float mask and slopes.

    Of the last three, absent or not ``wanted`` ones are empty.
    """
    terms = (tiles.bias, tiles.float_mask, tiles.alibi_slopes)
    learned = (term if want else None for term, want in zip(terms, wanted, strict=True))
    tensors = (tiles.query, tiles.key, tiles.value, *learned)
    return [
        tiles.query.new_zeros((0,) if tensor is None else tensor.shape, dtype=tiles.dtype)
        for tensor in tensors
    ]


def _add_extra(tile: Tile, totals: Sequence[Tensor], grad_ATS: Tensor) -> None:
    """Add a tile's gradient to those of bias, float mask and slopes, if they are wanted."""
    bias, mask, slopes = totals
    for term in (bias, mask):
        if term.numel():
            tile.add_to_term(term, grad_ATS)
    if slopes.numel():
        tile.add_to_heads(slopes, -(grad_ATS * tile.offset().abs()).sum((1, 2)))


def _extra_along(tile: Tile, directions: Sequence[Tensor]) -> Tensor:
    """The change of a tile's added terms along directions of bias, float mask and slopes.

    A direction of size 0 is ignored.
    """
    bias, mask, slopes = directions
    change = tile.of.query.new_zeros((), dtype=tile.of.dtype)
    for term in (bias, mask):
        if term.numel():
            change = change + tile.of_term(term)
    if slopes.numel():
        change = change - tile.of_heads(slopes)[:, None, None] * tile.offset().abs()
    return change.to(tile.of.dtype)


@_outside_autocast
def backward(
    tiles: Tiles,
    grad_out: Tensor,
    visits_BHI: Tensor,
    wanted: Sequence[bool] = (True, True, True),
) -> list[Tensor]:
    """Gradients of query, key, value, bias, float mask and slopes.

    Of the last three, absent or not ``wanted`` ones are empty.
    """
    total = _totals(tiles, wanted)
    for tile in _visited(tiles, visits_BHI):
        grads = Pass(tile).gradients(tile.of_rows(grad_out))
        tile.add_to_rows(total[0], grads[0])
        tile.add_to_columns(total[1], grads[1])
        tile.add_to_columns(total[2], grads[2])
        _add_extra(tile, total[3:], grads[3])
    return total


@_outside_autocast
def double_backward(
    tiles: Tiles,
    grad_out: Tensor,
    visits_BHI: Tensor,
    directions: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Gradients of the results of ``backward`` for its inputs; the last is for ``grad_out``."""
    total = _totals(tiles, wanted)
    on_grad_out = torch.zeros_like(grad_out, dtype=tiles.dtype)
    for tile in _visited(tiles, visits_BHI):
        second = Pass(tile).second_gradients(
            tile.of_rows(grad_out),
            tile.of_rows(directions[0]),
            tile.of_columns(directions[1]),
            tile.of_columns(directions[2]),
            _extra_along(tile, directions[3:]),
        )
        tile.add_to_rows(total[0], second[0])
        tile.add_to_columns(total[1], second[1])
        tile.add_to_columns(total[2], second[2])
        _add_extra(tile, total[3:], second[3])
        tile.add_to_rows(on_grad_out, second[4])
    return [*total, on_grad_out]
