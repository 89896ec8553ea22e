"""The skipping plan on the device: skipped tiles, tail tiles, and the kernels that follow it.

Shape letters: B batch, H query heads, Q queries, K keys, I units of queries, J units of keys.
"""

import math

import pytest
import torch
from torch import Tensor

from sigmoid_attention.attention import sigmoid_attention
from sigmoid_attention.attention.bounds import TAIL_LOGIT
from tests.support.cpu.budgets import normal
from tests.support.triton.calls import qkv
from tests.support.triton.interpreter import Blocks, output, spans_of, with_gradients

SPAN = 32
BLOCKS = Blocks(32, 16, SPAN)
STEEP = torch.tensor([1.5, 0.4])
UNIT = torch.finfo(torch.float32).eps / 2


def loud_near(position: int, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys of very different norms, so that without any slope some can be told to be light."""
    query, key, value = qkv(queries, keys)
    near = ((torch.arange(keys) - position).abs() < 24)[:, None]
    return 1 + 0.1 * query, torch.where(near, 1 + 0.1 * key, 0.01 * key), value


def alike(queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every logit is what the norms say, so that bounds have nothing to spare."""
    return tuple(torch.full_like(tensor, 0.5) for tensor in qkv(queries, keys))


CASES = {
    "alike-causal": (
        alike(170, 170),
        {"alibi_slopes": torch.tensor([0.3, 0.15]), "bias": -3.0, "is_causal": True},
    ),
    "alike": (alike(40, 170), {"alibi_slopes": torch.tensor([0.3, 0.25]), "bias": -3.0}),
    "slopes-causal": (qkv(140, 140), {"is_causal": True, "alibi_slopes": STEEP, "bias": -5.0}),
    "slopes": (qkv(120, 170), {"alibi_slopes": STEEP, "bias": -3.0}),
    "slopes-window": (
        qkv(150, 150),
        {"alibi_slopes": STEEP, "bias": -3.0, "window_size": (90, 7)},
    ),
    "slopes-bias-of-rows": (
        qkv(97, 140),
        {"alibi_slopes": STEEP, "bias": normal(2, 97, 1).float() - 2, "is_causal": True},
    ),
    "slopes-flags": (
        qkv(130, 130),
        {
            "alibi_slopes": STEEP,
            "bias": -2.0,
            "is_causal": True,
            "attn_mask": normal(130, 130) > -1,
        },
    ),
    "slopes-softcap": (
        qkv(100, 150),
        {"alibi_slopes": STEEP, "softcap": 1.5, "bias": -4.0, "is_causal": True},
    ),
    "slopes-more-queries": (
        qkv(150, 110),
        {"alibi_slopes": 4 * STEEP, "bias": -3.0, "is_causal": True},
    ),
    "norms": (loud_near(140, 32, 150), {"bias": -32.0, "scale": 2.0}),
}
each_case = pytest.mark.parametrize("positional, arguments", CASES.values(), ids=CASES.keys())


def exact_weights(positional: tuple, arguments: dict) -> Tensor:
    query, key, _ = (tensor.double() for tensor in positional)
    keys = key.shape[2]
    identity = torch.eye(keys, dtype=torch.float64).expand(*key.shape[:2], keys, keys)
    wide = {
        name: term.double() if isinstance(term, Tensor) and term.is_floating_point() else term
        for name, term in arguments.items()
    }
    return sigmoid_attention(query, key, identity, **wide, enable_gqa=True, impl="reference")


def pairs(first_BHI: Tensor, end_BHI: Tensor, queries: int, keys: int) -> Tensor:
    """Which (B, H, Q, K) lie in ranges of units of keys."""
    unit_K = torch.arange(keys) // SPAN
    inside = (first_BHI[..., None] <= unit_K) & (unit_K < end_BHI[..., None])
    return inside.repeat_interleave(SPAN, 2)[:, :, :queries]


def plan(interpreted, positional, arguments, tolerance) -> dict[str, Tensor]:
    changed = arguments | {"enable_gqa": True, "skip_tolerance": tolerance}
    return interpreted(spans_of, BLOCKS, positional, changed)


@pytest.mark.parametrize("tolerance", ["rounding", 1e-3], ids=["rounding", "a-thousandth"])
@each_case
def test_skipped_keys_weigh_less_than_the_bound_and_tails_are_small(
    interpreted, positional, arguments, tolerance
):
    queries, keys = positional[0].shape[2], positional[1].shape[2]
    first, full_first, full_end, end = plan(interpreted, positional, arguments, tolerance)[
        "forward"
    ]
    weights = exact_weights(positional, arguments)
    visited = pairs(first, end, queries, keys)
    lost = weights.masked_fill(visited, 0).sum(-1)
    kept = weights.masked_fill(~visited, 0).square().sum(-1).sqrt()
    assert (lost <= (UNIT * kept if tolerance == "rounding" else tolerance)).all()
    if tolerance == "rounding":
        assert (~visited & (weights > 0)).any(), "nothing is left out that could have been"
    tails = visited & ~pairs(full_first, full_end, queries, keys)
    assert tails.any(), "none of the visited units is a tail"
    assert weights[tails].max() <= torch.tensor(TAIL_LOGIT).double().sigmoid() * (1 + 1e-6)


@each_case
def test_both_passes_visit_the_same_and_agree_on_tails(interpreted, positional, arguments):
    spans = plan(interpreted, positional, arguments, "rounding")
    units_i, units_j = spans["forward"].shape[3], spans["backward"].shape[3]
    i, j = torch.arange(units_i)[:, None], torch.arange(units_j)
    for low, high in ((0, 3), (1, 2)):
        by_query = (spans["forward"][low][..., None] <= j) & (j < spans["forward"][high][..., None])
        first, end = spans["backward"][low][:, :, None], spans["backward"][high][:, :, None]
        by_key = (first <= i) & (i < end)
        # A unit that no range reaches has an empty one on both sides.
        assert torch.equal(by_query, by_key)


# The leftmost key that a unit's window reaches is the last key of a unit of keys.
WINDOW_EDGE = (
    alike(3 * SPAN, 3 * SPAN),
    {"alibi_slopes": STEEP / 64, "bias": -3.0, "window_size": (SPAN + 1, 0)},
)


@pytest.mark.parametrize(
    "positional, arguments", (*CASES.values(), WINDOW_EDGE), ids=(*CASES, "window-edge")
)
def test_a_tolerance_of_zero_leaves_out_only_what_weighs_nothing(
    interpreted, positional, arguments
):
    first, _, _, end = plan(interpreted, positional, arguments, 0.0)["forward"]
    weights = exact_weights(positional, arguments)
    visited = pairs(first, end, positional[0].shape[2], positional[1].shape[2])
    assert weights[~visited].eq(0).all()


def test_a_nan_hides_nothing(interpreted):
    (query, key, value), arguments = CASES["slopes-causal"]
    poisoned = key.clone()
    poisoned[0, 0, 3, 5] = math.nan
    arguments = arguments | {"enable_gqa": True}
    out = interpreted(output, BLOCKS, (query, poisoned, value), arguments)
    first = interpreted(spans_of, BLOCKS, (query, poisoned, value), arguments)["forward"][0]
    assert (first == 0).all()
    assert out[:, :, 3:].isnan().all() and not out[:, :, :3].isnan().any()


def test_the_plan_changes_no_result_by_more_than_rounding(interpreted):
    positional, arguments = CASES["slopes-causal"]
    arguments = arguments | {"enable_gqa": True}
    planned = interpreted(with_gradients, BLOCKS, positional, arguments)
    visiting_all = interpreted(
        with_gradients, Blocks(32, 16, SPAN, planned=False), positional, arguments
    )
    for name, expected in visiting_all.items():
        torch.testing.assert_close(planned[name], expected, rtol=1e-5, atol=1e-7)


def test_short_rows_are_not_planned_for(interpreted):
    positional, arguments = CASES["slopes-causal"]
    blocks = Blocks(32, 16, SPAN, planned=False)
    spans = interpreted(spans_of, blocks, positional, arguments | {"enable_gqa": True})
    assert spans == {"forward": None, "backward": None}
