"""Random calls of the packed operator: sequences of any lengths, one after another."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from hypothesis import strategies as st

from tests.support.attention.calls import BIAS_SHAPES, WINDOWS, Call


@dataclass(frozen=True)
class Packed:
    """Lengths of the sequences, how far max_q and max_k exceed the longest, and a call's rest."""

    lengths_q: tuple[int, ...]
    lengths_k: tuple[int, ...]
    slack: int
    call: Call

    @property
    def longest(self) -> tuple[int, int]:
        return max(self.lengths_q) + self.slack, max(self.lengths_k) + self.slack

    def build(self, dtype=torch.float64, index=torch.int64) -> tuple[tuple, dict]:
        """The positional arguments and the others."""
        max_q, max_k = self.longest
        tensors, arguments = self.call.but(
            batch=len(self.lengths_q), queries=max_q, keys=max_k
        ).build(dtype)
        expected = (self.lengths_q, self.lengths_k, self.lengths_k)
        tokens = [
            torch.cat([tensor[s, :, :length] for s, length in enumerate(lengths)], 1)
            for tensor, lengths in zip(tensors, expected, strict=True)
        ]
        ends = [
            torch.tensor([0, *accumulate(lengths)], dtype=index)
            for lengths in (self.lengths_q, self.lengths_k)
        ]
        return (*(tensor.transpose(0, 1) for tensor in tokens), *ends, max_q, max_k), arguments


@st.composite
def packs(draw) -> Packed:
    sequences = draw(st.integers(1, 4))
    length = st.integers(0, 5)
    lengths_q = draw(st.lists(length, min_size=sequences, max_size=sequences))
    lengths_k = draw(st.just(lengths_q) | st.lists(length, min_size=sequences, max_size=sequences))
    policies = ("visible", "effective", "learned", "lse", "centred")
    tensors = (f"tensor {letters}" for letters in BIAS_SHAPES)
    biases = ("-2.5", *policies, *tensors)
    call = Call(
        batch=1,
        key_heads=draw(st.integers(1, 2)),
        group=draw(st.sampled_from((1, 2))),
        queries=1,
        keys=1,
        head_dim=3,
        value_dim=2,
        bias=draw(st.sampled_from(biases)),
        slopes=draw(st.sampled_from((None, "H", "BH"))),
        is_causal=draw(st.booleans()),
        window_size=draw(st.sampled_from(WINDOWS)),
        softcap=draw(st.sampled_from((None, 0.7))),
        seed=draw(st.integers(0, 2**16)),
    )
    return Packed(tuple(lengths_q), tuple(lengths_k), draw(st.integers(0, 2)), call)


RAGGED = Packed(
    lengths_q=(3, 1, 5, 2),
    lengths_k=(4, 2, 3, 7),
    slack=1,
    call=Call(
        batch=1,
        key_heads=1,
        group=2,
        queries=1,
        keys=1,
        head_dim=3,
        value_dim=2,
        is_causal=True,
        slopes="BH",
        seed=4,
    ),
)
