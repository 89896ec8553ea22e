r"""Skip bounds: which tiles of the score matrix may be skipped, and the error of skipping them.

A softmax weight depends on the whole row. A sigmoid weight depends on its own logit only, so a
bound on a tile's logits bounds the tile's contribution before it is computed.

**Bound of a tile.** Let I be a block of queries, J a block of keys, and j in J visible to i in I:

    u_ij = cap(s q_i.k_j) + b_ij + m_ij - a |p_i - j|
         <= cap(|s| max_I|q| max_J|k|) + max_IJ b + max_IJ m - a min_IJ |p_i - j|  =: U_IJ

by Cauchy-Schwarz, as cap is odd and increasing (for a < 0 the largest distance replaces the
smallest). Let c_IJ be the largest number of keys of J that a row of I sees. As
sigmoid(u) <= min(1, e^u) and sigmoid increases, the weights of row i in J have a sum of at most
c_IJ min(1, e^U_IJ).

**Skip rule.** Tiles are visited in the order of their distance from the queries. After the
first t of them, the weights of row i in all other tiles have a sum of at most

    R_I(t) = sum_{r >= t} c_IJr min(1, e^U_IJr).

The rest of the row is skipped as soon as

    R_I(t) <= tolerance                     (a number), or
    R_I(t) <= unit * min_{i in I} N_i(t)    ("rounding"; unit = half the output dtype's epsilon),

where N_i(t) is a lower bound of the norm sqrt(sum_j w_ij^2) of row i's weights in the visited
tiles. It is the norm itself, summed by the forward pass, or a bound from the norms of queries and
keys, before any score is computed. For that bound, let every row of I see at least c keys of J,
the nearest at a distance of at most t. Without a mask the visible keys of a row are contiguous, so
the s-th nearest has a distance of at most t + s. With L = min b + min m - cap(|s| max|q| max|k|),
and as
sigmoid(u - x) >= e^-x sigmoid(u) for x >= 0,

    sum_j w_ij >= sum_{s < c} sigmoid(L - a (t + s))
               >= sigmoid(L - a t) sum_{s < c} e^(-a s)  =: l_IJ.

A mask may hide the near keys, so with a mask all c keys get the tile's largest distance. With
c_IJ as above, sum_j w_ij^2 >= l_IJ^2 / c_IJ by Cauchy-Schwarz, and the tiles' squares add up.

**Error.** With S the skipped keys of row i and V the largest |v|,

    |sum_{j in S} w_ij v_j| <= V sum_{j in S} w_ij <= V R_I(t),

so with a number t as tolerance the error is at most t V. Under "rounding" it is at most unit V
sqrt(sum_kept w_ij^2). Rounding the kept weights to the output's dtype causes an error of this size:
each weight has an independent relative error of one unit, and independent errors add up in squares.
(Their worst case, unit V sum_kept w_ij, would be too large: for 513 equal weights in bf16 it would
allow skipping the last, an error 20 times as large as rounding all of them.) The bound holds for
the sum of all skipped terms, not for each: n terms just below a unit would be n units.

The bound counts weights and not |v|, because small values still receive a gradient. In the
backward pass |dL/du_ij| <= w_ij |dO_i . v_j|, so the same bound limits the error there. The
backward pass visits the same tiles, so it is the derivative of the computed output.

Rounding of the bounds themselves is covered by NORM_SLACK (a relative 2^-14 on the product of two
norms, each computed from at most a few thousand terms in fp32) and KEPT_SLACK (a relative 2^-7 on
the collected norm). A NaN anywhere makes every comparison false, and nothing is skipped.

Source: this project. We know no published kernel that bounds a tile by sigmoid(u) <= e^u.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, I query blocks, J key blocks.
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

import torch
from torch import Tensor

from sigmoid_attention.attention import masking
from sigmoid_attention.attention.impl.reference import compute_dtype

NORM_SLACK = 2.0**-14
KEPT_SLACK = 2.0**-7
# Below this logit, sigmoid(u) = e - e^2 + e^3 with e = e^u is exact to 1e-5, relatively.
TAIL_LOGIT = -4.0


class TileClass(IntEnum):
    """The work of an implementation for a tile."""

    HIDDEN = 0  # no query of the tile sees any key of it
    SKIPPED = 1  # the bound of the skipped tiles is within the tolerance
    TAIL = 2  # every logit is at or below TAIL_LOGIT: the cheap exponential form is exact
    FULL = 3  # the full sigmoid


@dataclass(frozen=True)
class TileBounds:
    """Bounds of every tile, float64, and the order in which each query block visits the tiles.

    ``upper`` is an upper bound of the visible logits, ``most`` of the number of visible keys of a
    row; ``least`` is a lower bound of the sum of a row's weights. All three are (B, H, I, J).
    ``order`` is (I, J): key blocks, nearest first.
    """

    upper: Tensor
    most: Tensor
    least: Tensor
    order: Tensor

    def visited(self, tiles_BHIJ: Tensor) -> Tensor:
        """The tensor with its last dimension in the order of the visits."""
        return tiles_BHIJ.gather(-1, self.order.expand(tiles_BHIJ.shape))

    def remaining(self) -> Tensor:
        """R_I(t) of the module's docstring, (B, H, I, J): the bound of the tiles from t on."""
        weighs = self.visited(
            torch.where(self.most > 0, self.most * self.upper.clamp(max=0).exp(), 0)
        )
        return weighs.flip(-1).cumsum(-1).flip(-1)

    def kept_in_advance(self) -> Tensor:
        """Lower bound of N_i(t) before any score is computed, (B, H, I, J): the tiles before t."""
        squares = self.visited(self.least.square() / self.most.clamp(min=1))
        return (squares.cumsum(-1) - squares).sqrt()


def may_stop(
    remaining: Tensor, kept: Tensor, *, tolerance: float, tolerance_is_relative: bool
) -> Tensor:
    """Whether all remaining tiles may be skipped; a tolerance of 0 skips no visible key."""
    if tolerance == 0.0:
        return torch.zeros_like(remaining, dtype=torch.bool)
    if tolerance_is_relative:
        return remaining <= tolerance * (1 - KEPT_SLACK) * kept
    return remaining <= tolerance


def plan(bounds: TileBounds, *, tolerance: float, tolerance_is_relative: bool) -> Tensor:
    """The :class:`TileClass` of every tile, (B, H, I, J), before any score is computed.

    Example:
        >>> import torch
        >>> from sigmoid_attention.attention.bounds import plan, tile_bounds
        >>> q = k = torch.ones(1, 1, 8, 4)
        >>> bounds = tile_bounds(q, k, bias=torch.tensor(-2.0), scale=0.5, block_q=2, block_k=2,
        ...                      window=(-1, 0), alibi_slopes=torch.tensor([8.0]))
        >>> plan(bounds, tolerance=2**-24, tolerance_is_relative=True)[0, 0]
        tensor([[3, 0, 0, 0],
                [2, 3, 0, 0],
                [1, 2, 3, 0],
                [1, 1, 2, 3]])
    """
    stop = may_stop(
        bounds.remaining(),
        bounds.kept_in_advance(),
        tolerance=tolerance,
        tolerance_is_relative=tolerance_is_relative,
    )
    return classify(bounds, (~stop).sum(-1))


def classify(bounds: TileBounds, visits_BHI: Tensor) -> Tensor:
    """The :class:`TileClass` of every tile; each query block visits its first ``visits`` tiles."""
    place = torch.arange(bounds.order.shape[-1], device=visits_BHI.device)
    turn_IJ = torch.empty_like(bounds.order).scatter_(
        -1, bounds.order, place.expand_as(bounds.order)
    )
    classes = torch.where(bounds.upper <= TAIL_LOGIT, TileClass.TAIL, TileClass.FULL)
    classes = torch.where(turn_IJ < visits_BHI[..., None], classes, TileClass.SKIPPED)
    return torch.where(bounds.most > 0, classes, TileClass.HIDDEN)


def tile_bounds(
    query: Tensor,
    key: Tensor,
    *,
    bias: Tensor,
    scale: float,
    block_q: int,
    block_k: int,
    window: masking.Window = (-1, -1),
    attn_mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
) -> TileBounds:
    """Bounds of a call's tiles; the arguments are those of `sigmoid_attention`.

    ``window`` includes causality. The function reads query, key, bias and mask once, and allocates
    arrays for one block of queries at a time, never a (Q, K) array.
    """
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    position_Q1 = masking.query_positions(queries, keys, query.device)
    nearest, farthest, distance = _distances(position_Q1, keys, window, block_q, block_k)
    fewest, most, start = _seen(position_Q1, keys, window, attn_mask, block_q, block_k)
    reach = _largest_product(query, key, block_q, block_k) * abs(scale) * (1 + NORM_SLACK)
    if softcap is not None:
        reach = softcap * torch.tanh(reach / softcap)
    above, below = reach, -reach
    for term in (bias, attn_mask):
        if term is not None and term.dtype != torch.bool:
            tiles = partial(_pool_tiles, term, block_q, block_k, hides=term is attn_mask)
            above, below = above + tiles(largest=True), below + tiles(largest=False)
    least = fewest * below.sigmoid()
    if alibi_slopes is not None:
        slopes = alibi_slopes.double()[..., None, None]
        above = above - torch.minimum(slopes * nearest, slopes * farthest)
        least = fewest * (below - torch.maximum(slopes * nearest, slopes * farthest)).sigmoid()
        if attn_mask is None:
            decays = (below - slopes * start).sigmoid() * _decaying_sum(slopes, fewest)
            least = torch.where(slopes > 0, decays, least)
    shape = (batch, heads, distance.shape[0], distance.shape[1])
    return TileBounds(
        upper=above.expand(shape),
        most=most.expand(shape),
        least=torch.where(fewest > 0, least, 0.0).expand(shape),
        order=distance.argsort(dim=-1, stable=True),
    )


def _decaying_sum(slopes: Tensor, terms: Tensor) -> Tensor:
    """sum_{s < terms} e^(-slope s), for positive slopes."""
    slopes = slopes.clamp(min=torch.finfo(slopes.dtype).tiny)
    return torch.expm1(-slopes * terms) / torch.expm1(-slopes)


def _pool(values: Tensor, dim: int, block: int, *, largest: bool) -> Tensor:
    """Maximum or minimum of each block along ``dim``; a dim of size one broadcasts over blocks."""
    size = values.shape[dim]
    if size == 1:
        return values
    missing = -size % block
    if missing:
        fill = -math.inf if largest else math.inf
        whole = torch.full_like(values.narrow(dim, 0, 1), fill)
        sizes = list(values.shape)
        sizes[dim] = missing
        values = torch.cat([values, whole.expand(sizes)], dim)
    blocks = values.unflatten(dim, (-1, block)) if size else values.unflatten(dim, (0, block))
    inner = dim if dim < 0 else dim + 1
    return blocks.amax(inner) if largest else blocks.amin(inner)


def _pool_tiles(term: Tensor, block_q: int, block_k: int, *, largest: bool, hides: bool) -> Tensor:
    """Maximum or minimum of a term in each tile; with ``hides`` its -inf count as 0."""

    def of_rows(part: Tensor) -> Tensor:
        part = part.double()
        part = part.masked_fill(part == -math.inf, 0.0) if hides else part
        return _pool(_pool(part, -1, block_k, largest=largest), -2, block_q, largest=largest)

    return torch.cat([of_rows(part) for part in _as_four(term).split(block_q, -2)], -2)


def _as_four(term: Tensor) -> Tensor:
    return term.view((1,) * (4 - term.dim()) + tuple(term.shape))


def _largest_product(query: Tensor, key: Tensor, block_q: int, block_k: int) -> Tensor:
    """max|q| max|k| of every tile, (B, H, I, J)."""
    dtype = compute_dtype(query.dtype)
    query_BHQ = torch.linalg.vector_norm(query, dim=-1, dtype=dtype).double()
    key_BGK = torch.linalg.vector_norm(key, dim=-1, dtype=dtype).double()
    query_BHI = _pool(query_BHQ, -1, block_q, largest=True)
    key_BHJ = _pool(key_BGK, -1, block_k, largest=True).repeat_interleave(
        query.shape[1] // key.shape[1], dim=1
    )
    return query_BHI[..., :, None] * key_BHJ[..., None, :]


def _edges(size: int, block: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First and last index of each block."""
    first = torch.arange(0, size, block, device=device)
    return first, (first + block - 1).clamp(max=size - 1)


def _distances(
    position_Q1: Tensor, keys: int, window: masking.Window, block_q: int, block_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimum and maximum of |p_i - j| in each tile's window, and the tile's own distance."""
    left, right = window
    first_q, last_q = _edges(position_Q1.shape[0], block_q, position_Q1.device)
    first_k, last_k = _edges(keys, block_k, position_Q1.device)
    low = position_Q1[first_q] - last_k
    high = position_Q1[last_q] - first_k
    distance = torch.maximum(low, -high).clamp(min=0)
    if left >= 0:
        high = high.clamp(max=left)
    if right >= 0:
        low = low.clamp(min=-right)
    nearest = torch.maximum(low, -high).clamp(min=0)
    farthest = torch.maximum(low.abs(), high.abs())
    return nearest.double(), farthest.double(), distance


def _seen(
    position_Q1: Tensor,
    keys: int,
    window: masking.Window,
    attn_mask: Tensor | None,
    block_q: int,
    block_k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fewest and most visible keys of a tile's rows, (..., I, J), and the maximum over the rows of
    the distance to the nearest key of the window, (I, J)."""
    fewest, most, start = [], [], []
    for i in range(0, max(1, position_Q1.shape[0]), block_q):
        rows = slice(i, i + block_q)
        mask = None if attn_mask is None else masking.of_rows(_as_four(attn_mask), rows)
        seen_QJ, away_QJ = _seen_by_rows(position_Q1[rows], keys, window, mask, block_k)
        fewest.append(_pool(seen_QJ, -2, block_q, largest=False))
        most.append(_pool(seen_QJ, -2, block_q, largest=True))
        start.append(_pool(away_QJ, -2, block_q, largest=True))
    return torch.cat(fewest, -2), torch.cat(most, -2), torch.cat(start, -2)


def _seen_by_rows(
    position_Q1: Tensor, keys: int, window: masking.Window, mask: Tensor | None, block_k: int
) -> tuple[Tensor, Tensor]:
    """For each query and key block: the number of visible keys, (..., Q, J), and the distance to
    the nearest key of the window, (Q, J)."""
    first_k, last_k = _edges(keys, block_k, position_Q1.device)
    left, right = window
    first = torch.maximum(first_k, position_Q1 - left) if left >= 0 else first_k
    last = torch.minimum(last_k, position_Q1 + right) if right >= 0 else last_k
    away_QJ = torch.maximum(first - position_Q1, position_Q1 - last).clamp(min=0)
    first = first.expand(away_QJ.shape)
    stop = torch.maximum(last + 1, first)
    seen = stop - first if mask is None else masking.counts_between(mask, first, stop)
    return seen.double(), away_QJ.double()
