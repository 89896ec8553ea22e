"""The tiles that the fused operator skips are those of the certificate, without loss of accuracy.

The oracle is the tiled mode with the kernel's blocks; both follow bounds.py.
"""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from sigmoid_attention.attention import sigmoid_attention, sigmoid_varlen_attention
from sigmoid_attention.attention.bounds import TileClass, classify
from sigmoid_attention.attention.impl import tiled
from sigmoid_attention.attention.impl.cpu import ops
from sigmoid_attention.attention.impl.cpu.abi import BLOCK_KEYS
from sigmoid_attention.attention.impl.tiles import Tiles
from tests.support.cpu.budgets import Named, normal
from tests.support.cpu.calls import cut, each_dtype, fused
from tests.support.cpu.oracle import differentiated, exactly

pytestmark = pytest.mark.usefixtures("kernel")

ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@dataclass(frozen=True)
class Fading:
    """Attention that fades with distance: sizes, and what the certificate reads."""

    queries: int = 700
    keys: int = 700
    batch: int = 1
    key_heads: int = 4
    group: int = 1
    spread: float = 0.2
    slopes: tuple[float, ...] = (1.0, 0.3, 0.05, 0.01)
    constant: float = -2.0
    window: tuple[int, int] = (-1, 0)
    softcap: float | None = None
    terms: dict[str, tuple[int, ...]] = field(default_factory=dict)
    hiding: str = ""

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.key_heads * self.group
        query = normal(self.batch, heads, self.queries, 16) * self.spread
        key, value = (normal(self.batch, self.key_heads, self.keys, 16, seed=i) for i in (1, 2))
        return query.to(dtype), key.to(dtype), value.to(dtype)

    def bias(self) -> Tensor:
        bias = torch.full((), self.constant)
        return bias + normal(*self.terms["bias"]).float() if "bias" in self.terms else bias

    def mask(self) -> Tensor | None:
        if self.hiding == "bool":
            return normal(self.queries, self.keys, seed=4) > 0.5
        if self.hiding == "float":
            mask = normal(1, 1, 1, self.keys, seed=4).float()
            return mask.masked_fill(mask > 1, -math.inf)
        if self.hiding == "padding":
            return torch.arange(self.keys) >= 300
        return None

    def arguments(self, tolerance: float | str) -> dict:
        return {
            "attn_mask": self.mask(),
            "bias": self.bias(),
            "alibi_slopes": torch.tensor(self.slopes),
            "window_size": self.window,
            "softcap": self.softcap,
            "enable_gqa": True,
            "skip_tolerance": tolerance,
            "scale": 0.25,
        }

    def visits(self, dtype, tolerance: float, relative: bool, block: int) -> tuple[Tensor, Tensor]:
        sizes = [self.queries, self.keys, 0, *self.window, block, int(relative)]
        numbers = [0.25, self.softcap or 0.0, 0.0, tolerance]
        slopes = torch.tensor(self.slopes)
        terms = (self.bias(), self.mask(), slopes)
        out, visits = ops.forward(*self.tensors(dtype), *terms, None, None, sizes, numbers)
        return out, visits[..., : -(-self.queries // block)]

    def tiles(self, dtype: torch.dtype, block: int) -> Tiles:
        return Tiles(
            *self.tensors(dtype), self.bias(), self.mask(), torch.tensor(self.slopes), 0.25,
            self.softcap, *self.window, block, BLOCK_KEYS,
        )  # fmt: skip


FADING = {
    "causal-Q700-K700": Fading(),
    "both-sides-Q700-K700": Fading(window=(-1, -1)),
    "window-Q700-K700": Fading(window=(300, 40)),
    "more-keys-Q100-K900": Fading(queries=100, keys=900),
    "more-queries-Q900-K300": Fading(queries=900, keys=300),
    "shared-keys-H4-G2-B2": Fading(batch=2, key_heads=2, group=2),
    "wide-logits": Fading(spread=2.0),
    "softcap": Fading(spread=2.0, softcap=1.5),
    "open-gates": Fading(constant=3.0, slopes=(1.0, 0.3, 0.0, 0.01)),
    "growing-with-distance": Fading(constant=-17.0, slopes=(0.3, -0.008, -0.01, -0.012)),
    "bias-per-head": Fading(terms={"bias": (4, 1, 1)}),
    "bias-per-row": Fading(terms={"bias": (1, 4, 700, 1)}),
    "bias-per-key": Fading(terms={"bias": (1, 1, 1, 700)}),
    "bias-per-pair": Fading(terms={"bias": (700, 700)}),
    "bool-mask": Fading(hiding="bool", window=(-1, -1)),
    "float-mask": Fading(hiding="float"),
    "padding-mask": Fading(hiding="padding"),
}
each_fading = pytest.mark.parametrize("fading", FADING.values(), ids=FADING.keys())


@each_fading
@pytest.mark.parametrize(
    ("dtype", "block"),
    [(torch.float32, 48), (torch.bfloat16, 192), (torch.float16, 96)],
    ids=["float32-48", "bfloat16-192", "float16-96"],
)
def test_visits_are_those_of_the_tiled_mode(fading: Fading, block, dtype):
    """Which counts what a boolean mask leaves of a window; the kernel counts the whole window."""
    for tolerance, relative in ((ROUNDING[dtype], True), (1e-2, False), (0.0, False)):
        _, visits = fading.visits(dtype, tolerance, relative, block)
        _, expected = tiled.forward(fading.tiles(dtype, block), tolerance, relative)
        assert (visits >= expected).all()
        if fading.hiding not in ("bool", "padding"):
            assert torch.equal(visits, expected)


def test_most_is_skipped_where_attention_fades_and_nothing_at_a_tolerance_of_zero():
    fading = FADING["causal-Q700-K700"]
    _, visits = fading.visits(torch.float32, ROUNDING[torch.float32], True, 48)
    blocks = -(-fading.keys // BLOCK_KEYS)
    assert visits[:, 0].max() <= 3
    assert (visits[:, 3] > visits[:, 0]).any()
    _, visits = fading.visits(torch.float32, 0.0, True, 48)
    assert (visits == blocks).all()


def exact_weights(fading: Fading, dtype: torch.dtype) -> Tensor:
    query, key, _ = (tensor.double() for tensor in fading.tensors(dtype))
    identity = torch.eye(fading.keys, dtype=torch.float64)
    identity = identity.expand(*key.shape[:2], *identity.shape)
    return sigmoid_attention(query, key, identity, **fading.arguments(0.0), impl="reference")


@pytest.mark.precision
@each_fading
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_weight_of_skipped_tiles_is_below_the_bound(fading: Fading, dtype):
    weights = exact_weights(fading, dtype)
    for tolerance, relative in ((ROUNDING[dtype], True), (0.3, False), (1e-4, False)):
        _, visits = fading.visits(dtype, tolerance, relative, 96)
        classes = classify(fading.tiles(dtype, 96).bounds(), visits)
        skipped = (classes == TileClass.SKIPPED).repeat_interleave(96, 2)[:, :, : fading.queries]
        skipped = skipped.repeat_interleave(BLOCK_KEYS, 3)[..., : fading.keys]
        dropped = (weights * skipped).sum(-1)
        kept = (weights * ~skipped).square().sum(-1).sqrt()
        limit = tolerance * kept if relative else torch.full_like(dropped, tolerance)
        assert (dropped <= limit).all()


@each_fading
@pytest.mark.parametrize("tolerance", [1.0, 1e-1, 1e-3])
def test_a_number_bounds_the_error(fading: Fading, tolerance):
    tensors = fading.tensors(torch.float32)
    actual = fused(*tensors, **fading.arguments(tolerance))
    whole = fused(*tensors, **fading.arguments(0.0))
    wide = (tensor.double() for tensor in tensors)
    exact = sigmoid_attention(*wide, **fading.arguments(0.0), impl="reference")
    rounding = (whole - exact).abs().max()
    assert (actual - exact).abs().max() <= tolerance * tensors[2].abs().max() + 2 * rounding


def errors(actual: Named, exact: Named) -> dict[str, Tensor]:
    """Of every head by itself, since one that fades fast is small beside the others."""
    return {
        name: (actual[name].double() - exact[name]).flatten(2).norm(dim=2)
        for name in ("out", "query", "key", "value")
    }


@pytest.mark.precision
@each_dtype
@pytest.mark.parametrize("constant", [-6.5, -2.0, 2.0], ids="b{}".format)
@pytest.mark.parametrize("spread", [0.1, 1.0], ids="spread{}".format)
@pytest.mark.parametrize("window", [(-1, 0), (-1, -1)], ids=["causal", "full"])
def test_skipping_costs_no_accuracy(window, spread, constant, dtype):
    """Forward and backward: at most a twentieth more than visiting all."""
    fading = Fading(1000, 1000, spread=spread, constant=constant, window=window)
    tensors = fading.tensors(dtype)
    _, visits = fading.visits(dtype, ROUNDING[dtype], True, 192)
    assert (visits[:, 0] < 8).any()
    with cut(192, 1):
        kept, whole = (
            differentiated(fused, tensors, fading.arguments(tolerance))
            for tolerance in ("rounding", 0.0)
        )
    exact = exactly(sigmoid_attention, tensors, fading.arguments(0.0))
    allowed = errors(whole, exact)
    for name, error in errors(kept, exact).items():
        assert (error <= 1.05 * allowed[name]).all(), f"{name}: {error / allowed[name]}"


def test_five_hundred_equal_weights_and_one_more_are_all_kept():
    """The last key has a block of its own, and weighs less than bf16 tells from 512 others."""
    ones = torch.ones(1, 1, 513, 8, dtype=torch.bfloat16)
    _, visits = ops.forward(
        ones, ones, ones, None, None, None, None, None, [513, 513, 0, -1, -1, 192, 1],
        [1.0, 0.0, 4.0, ROUNDING[torch.bfloat16]],
    )  # fmt: skip
    assert (visits[..., :3] == 5).all()


@pytest.mark.parametrize("by", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("where", ["key", "bias"])
def test_a_far_key_that_is_nan_is_visited(where, by):
    fading = Fading(slopes=(1.0,) * 4)
    query, key, value = fading.tensors(torch.float32)
    arguments = fading.arguments("rounding")
    assert (fading.visits(torch.float32, ROUNDING[torch.float32], True, 192)[1] < 5).any()
    query = query.abs()
    if where == "key":
        key[:, :, 3] = by
    else:
        arguments["bias"] = torch.full((1, 700), -2.0)
        arguments["bias"][:, 3] = by
    actual = fused(query, key, value, **arguments)
    expected = sigmoid_attention(query, key, value, **arguments, impl="reference")
    assert bool(actual[:, :, 3:].isnan().all()) == math.isnan(by)
    torch.testing.assert_close(actual, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_packed_sequences_skip_as_each_would_alone():
    query, key, value = (x[0].transpose(0, 1) for x in Fading().tensors(torch.float32))
    ends = torch.tensor([0, 500, 650, 700])
    settings = {"bias": -2.0, "alibi_slopes": torch.tensor(Fading().slopes), "is_causal": True}
    together = sigmoid_varlen_attention(
        query, key, value, ends, ends, 500, 500, **settings, impl="cpu"
    )
    for start, end in ends.unfold(0, 2, 1).tolist():
        alone = (x[start:end].transpose(0, 1)[None] for x in (query, key, value))
        expected = fused(*alone, **settings)[0].transpose(0, 1)
        assert torch.equal(together[start:end], expected)
