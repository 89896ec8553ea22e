"""The bounds of the skipping certificate against brute force over every pair of query and key."""

import math

import pytest
import torch

from sigmoid_attention.attention.bounds import TileClass, may_stop, plan, tile_bounds

BLOCK_Q, BLOCK_K = 4, 3


def case(name, nq, nk, seed=0):
    """A call's tensors and options, fp64."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    q, k = normal(2, 4, nq, 5), normal(2, 2, nk, 5)
    mask = torch.rand(2, 1, nq, nk, generator=draw) > 0.6
    options = {
        "plain": {},
        "causal": {"window": (-1, 0)},
        "window": {"window": (5, 2)},
        "alibi": {"alibi_slopes": torch.tensor([0.5, 0.0, -0.3, 2.0]), "window": (-1, 0)},
        "alibi-both-sides": {"alibi_slopes": torch.tensor([0.5, 0.0, -0.3, 2.0])},
        "softcap": {"softcap": 0.7},
        "bias-full": {"bias": normal(4, nq, nk)},
        "bias-row": {"bias": normal(2, 1, nq, 1), "window": (4, -1)},
        "mask-bool": {"attn_mask": mask, "window": (-1, 0)},
        "mask-float": {"attn_mask": normal(nq, nk).masked_fill(~mask[0, 0], -math.inf)},
        "mask-padding": {"attn_mask": mask[:, :, :1]},
    }[name]
    return q, k, {"bias": torch.tensor(-1.0), "scale": 0.4, **options}


def brute(q, k, bias, scale, window=(-1, -1), attn_mask=None, alibi_slopes=None, softcap=None):
    """Logits and visibility, (B, H, Q, K), one pair at a time where it matters."""
    nq, nk = q.shape[2], k.shape[2]
    offset = (torch.arange(nq) + nk - nq)[:, None] - torch.arange(nk)
    scores = scale * q @ k.repeat_interleave(2, 1).mT
    logits = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    visible = torch.ones(2, 4, nq, nk, dtype=torch.bool)
    if window[0] >= 0:
        visible &= offset <= window[0]
    if window[1] >= 0:
        visible &= offset >= -window[1]
    logits = logits + bias
    if alibi_slopes is not None:
        logits = logits - alibi_slopes.view(4, 1, 1) * offset.abs()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        visible &= attn_mask
    elif attn_mask is not None:
        visible &= attn_mask > -math.inf
        logits = logits + attn_mask
    return logits, visible


def blocks(bounds, logits):
    """Each tile's indices with its slices of the full arrays."""
    for i in range(bounds.upper.shape[2]):
        for j in range(bounds.upper.shape[3]):
            rows = slice(i * BLOCK_Q, (i + 1) * BLOCK_Q)
            yield i, j, rows, slice(j * BLOCK_K, (j + 1) * BLOCK_K)


NAMES = ["plain", "causal", "window", "alibi", "alibi-both-sides", "softcap", "bias-full",
         "bias-row", "mask-bool", "mask-float", "mask-padding"]  # fmt: skip
SHAPES = [(13, 13), (5, 14), (14, 5), (1, 10)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_bounds_hold_and_counts_are_exact(name, shape):
    q, k, options = case(name, *shape)
    bounds = tile_bounds(q, k, block_q=BLOCK_Q, block_k=BLOCK_K, **options)
    logits, visible = brute(q, k, **options)
    for i, j, rows, columns in blocks(bounds, logits):
        seen = visible[:, :, rows, columns]
        counts = seen.sum(-1)
        assert torch.equal(bounds.most[:, :, i, j].long(), counts.amax(-1))
        tile = logits[:, :, rows, columns]
        mass = (tile.sigmoid() * seen).sum(-1).amin(-1)
        assert bool((bounds.least[:, :, i, j] <= mass * (1 + 1e-12)).all())
        assert bool((tile <= bounds.upper[:, :, i, j, None, None])[seen].all())


@pytest.mark.parametrize("name", NAMES)
def test_order_visits_every_tile_once_and_nearest_first(name):
    q, k, options = case(name, 13, 16)
    order = tile_bounds(q, k, block_q=BLOCK_Q, block_k=BLOCK_K, **options).order
    assert torch.equal(order.sort(-1).values, torch.arange(6).expand(4, 6))
    position = torch.arange(13) + 3
    for i, turns in enumerate(order.tolist()):
        rows = position[i * BLOCK_Q : (i + 1) * BLOCK_Q]
        away = [
            int((rows[:, None] - torch.arange(16)[j * BLOCK_K : (j + 1) * BLOCK_K]).abs().min())
            for j in turns
        ]
        assert away == sorted(away)


@pytest.mark.parametrize("tolerance", [0.3, 2.0**-8, 1e-6])
@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
@pytest.mark.parametrize("name", NAMES)
def test_the_plan_in_advance_keeps_its_promise(name, relative, tolerance):
    q, k, options = case(name, 29, 29, seed=3)
    if name.startswith("alibi"):
        options["alibi_slopes"] = torch.tensor([3.0, 1.0, 0.5, 8.0])
    bounds = tile_bounds(q, k, block_q=BLOCK_Q, block_k=BLOCK_K, **options)
    classes = plan(bounds, tolerance=tolerance, tolerance_is_relative=relative)
    logits, visible = brute(q, k, **options)
    weights = torch.sigmoid(logits) * visible
    by_tile = torch.zeros_like(weights)
    for i, j, rows, columns in blocks(bounds, logits):
        by_tile[:, :, rows, columns] = classes[:, :, i, j, None, None].double()
    left_out = weights * (by_tile == TileClass.SKIPPED)
    skipped, kept = left_out.sum(-1), (weights - left_out).norm(dim=-1)
    assert bool((skipped <= tolerance * (kept if relative else 1.0)).all())
    assert not bool((visible & (by_tile == TileClass.HIDDEN)).any())
    assert not bool((visible & (by_tile == TileClass.TAIL) & (logits > -4)).any())


def test_many_terms_below_the_limit_are_not_skipped_when_their_sum_is_above():
    """A thousand keys of weight 1e-5 each: any one is below 1e-4, together they are not."""
    q, k = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1000, 2)
    bounds = tile_bounds(q, k, bias=torch.tensor(math.log(1e-5)), scale=1.0, block_q=1, block_k=100)
    classes = plan(bounds, tolerance=1e-4, tolerance_is_relative=False)
    assert int((classes == TileClass.SKIPPED).sum()) == 0
    classes = plan(bounds, tolerance=0.0031, tolerance_is_relative=False)
    assert int((classes == TileClass.SKIPPED).sum()) == 3


def test_steep_slopes_are_known_to_keep_their_nearest_keys_in_advance():
    """With one key a block the bound in advance is the weight itself."""
    q = torch.zeros(1, 1, 6, 2)
    slopes = torch.tensor([5.0])
    options = {"scale": 1.0, "window": (-1, 0), "alibi_slopes": slopes}
    bounds = tile_bounds(q, q, bias=torch.tensor(-1.0), block_q=1, block_k=1, **options)
    away = (torch.arange(6)[:, None] - torch.arange(6)).double()
    torch.testing.assert_close(bounds.least[0, 0], (-1 - 5 * away.abs()).sigmoid().tril())
    wide = tile_bounds(q, q, bias=torch.tensor(-1.0), block_q=6, block_k=6, **options)
    assert float(wide.least) > 0.99 * float(torch.sigmoid(torch.tensor(-1.0)))


def test_a_nan_or_a_zero_tolerance_skips_nothing():
    nan = torch.tensor([math.nan])
    assert not bool(may_stop(nan, nan, tolerance=1.0, tolerance_is_relative=True))
    assert not bool(may_stop(nan, nan, tolerance=1.0, tolerance_is_relative=False))
    zero = torch.zeros(1)
    assert not bool(may_stop(zero, zero, tolerance=0.0, tolerance_is_relative=False))
    q = torch.full((1, 1, 8, 2), math.nan)
    bounds = tile_bounds(q, q, bias=torch.tensor(-900.0), scale=1.0, block_q=2, block_k=2)
    classes = plan(bounds, tolerance=1.0, tolerance_is_relative=False)
    assert bool((classes == TileClass.FULL).all())
