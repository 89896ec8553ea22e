"""Random calls of the operator, small enough to print and to compute by hand.

A ``Call`` holds sizes, names and a seed. Its tensors are made from them on demand, so hypothesis
prints the whole example. Shapes are given in letters, 1 where they broadcast: B batch, H query
heads, Q queries, K keys.
"""

import math
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from sigmoid_attention.attention import (
    CentredKeys,
    Constant,
    Learned,
    NegLogEffectiveLength,
    NegLogLength,
    NegLogVisible,
    RowLSE,
)

MASK_SHAPES = ("BHQK", "B11K", "1HQ1", "BHQ1", "HQ1", "QK", "K", "1", "")
BIAS_SHAPES = ("BHQK", "BHQ1", "B1QK", "H11", "111K", "QK", "")
POLICIES = ("constant", "length", "visible", "effective", "learned", "lse", "centred")
WINDOWS = ((-1, -1), (0, 0), (2, -1), (-1, 1), (3, 2), (1, 0))


@dataclass(frozen=True)
class Call:
    """Sizes and settings of one call."""

    batch: int
    key_heads: int
    group: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int
    bias: str = "-2.5"
    mask: str | None = None
    slopes: str | None = None
    is_causal: bool = False
    window_size: tuple[int, int] = (-1, -1)
    softcap: float | None = None
    scale: float | None = None
    strided: bool = False
    seed: int = 0

    @property
    def heads(self) -> int:
        return self.key_heads * self.group

    def sizes(self, letters: str) -> tuple[int, ...]:
        by_letter = {"B": self.batch, "H": self.heads, "Q": self.queries, "K": self.keys, "1": 1}
        return tuple(by_letter[letter] for letter in letters)

    def build(self, dtype: torch.dtype = torch.float64) -> tuple[tuple[Tensor, ...], dict]:
        """(query, key, value) and the keyword arguments."""
        chance = torch.Generator().manual_seed(self.seed)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=chance, dtype=torch.float64).to(dtype)

        def sequence(heads: int, length: int, dim: int) -> Tensor:
            if self.strided:
                return normal(self.batch, length, heads, 2 * dim)[..., ::2].transpose(1, 2)
            return normal(self.batch, heads, length, dim)

        settings = {
            "bias": self._bias(normal),
            "is_causal": self.is_causal,
            "window_size": self.window_size,
            "softcap": self.softcap,
            "scale": self.scale,
            "enable_gqa": self.group > 1,
        }
        if self.slopes is not None:
            settings["alibi_slopes"] = normal(*self.sizes(self.slopes)).abs()
        if self.mask is not None:
            kind, _, letters = self.mask.partition(" ")
            hidden = torch.rand(self.sizes(letters), generator=chance) < 0.4
            settings["attn_mask"] = (
                ~hidden
                if kind == "bool"
                else normal(*self.sizes(letters)).masked_fill(
                    hidden & (kind == "hiding"), -math.inf
                )
            )
        tensors = (
            sequence(self.heads, self.queries, self.head_dim),
            sequence(self.key_heads, self.keys, self.head_dim),
            sequence(self.key_heads, self.keys, self.value_dim),
        )
        return tensors, settings

    def _bias(self, normal):
        kind, _, letters = self.bias.partition(" ")
        match kind:
            case "none":
                return None
            case "tensor":
                return normal(*self.sizes(letters)) - 1
            case "constant":
                return Constant(-1.25)
            case "length":
                return NegLogLength(11, offset=0.5)
            case "visible":
                return NegLogVisible(at_least=3)
            case "effective":
                slopes = [0.3 * h for h in range(self.heads)]
                return NegLogEffectiveLength(slopes, n=9, offset=-0.25)
            case "learned":
                return Learned(-1.5, num_heads=self.heads)
            case "lse":
                return RowLSE()
            case "centred":
                strengths = torch.linspace(0.5, 1.25, self.heads, dtype=torch.float64)
                return CentredKeys(NegLogVisible(at_least=2), strengths)
            case _:
                return float(kind)

    def but(self, **changes) -> "Call":
        return replace(self, **changes)


def masks() -> st.SearchStrategy[str | None]:
    kinds = st.sampled_from(("bool", "float", "hiding"))
    return st.none() | st.builds("{} {}".format, kinds, st.sampled_from(MASK_SHAPES))


@st.composite
def calls(draw) -> Call:
    """Any combination of arguments that the operator accepts."""
    queries = draw(st.integers(1, 5))
    keys = draw(st.just(queries) | st.integers(0, 6))
    mask = draw(masks())
    biases = ["-2.5", *POLICIES, *(f"tensor {letters}" for letters in BIAS_SHAPES)]
    if mask is None and queries == keys:
        biases.append("none")
    return Call(
        batch=draw(st.integers(1, 2)),
        key_heads=draw(st.integers(1, 2)),
        group=draw(st.sampled_from((1, 3))),
        queries=queries,
        keys=keys,
        head_dim=draw(st.integers(1, 4)),
        value_dim=draw(st.integers(1, 3)),
        bias=draw(st.sampled_from(biases)),
        mask=mask,
        slopes=draw(st.sampled_from((None, "H", "BH"))),
        is_causal=draw(st.booleans()),
        window_size=draw(st.sampled_from(WINDOWS)),
        softcap=draw(st.sampled_from((None, 0.7, 5.0))),
        scale=draw(st.sampled_from((None, -0.4))),
        strided=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )
