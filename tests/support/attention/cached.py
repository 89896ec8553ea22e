"""Random calls of the cached operator: caches of any lengths, paged or contiguous."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from tests.support.attention.calls import BIAS_SHAPES, WINDOWS, Call


@dataclass(frozen=True)
class Cached:
    """Tokens in use of each sequence, page size (0: contiguous), and a call's rest.

    ``call.keys`` is the capacity; a paged cache holds it in pages drawn at random, shared ones too.
    """

    used: tuple[int, ...]
    page_size: int
    call: Call

    def build(self, dtype=torch.float64, index=torch.int64) -> tuple[tuple, dict]:
        call = self.call.but(batch=len(self.used), strided=False)
        if self.page_size:
            pages = -(-call.keys // self.page_size)
            call = call.but(keys=pages * self.page_size)
        (query, key, value), arguments = call.build(dtype)
        arguments["seqused_k"] = torch.tensor(self.used, dtype=index)
        if not self.page_size:
            return (query, key, value), arguments
        chance = torch.Generator().manual_seed(self.call.seed)
        stored = len(self.used) * pages
        arguments["block_table"] = torch.randint(
            stored, (len(self.used), pages), generator=chance, dtype=index
        )
        paged = [
            cache.transpose(1, 2).reshape(stored, self.page_size, *cache.shape[1::2])
            for cache in (key, value)
        ]
        return (query, *paged), arguments


@st.composite
def caches(draw) -> Cached:
    capacity = draw(st.integers(1, 7))
    policies = ("visible", "effective", "learned", "lse", "centred")
    tensors = (f"tensor {letters}" for letters in BIAS_SHAPES)
    biases = ("-2.5", *policies, *tensors)
    call = Call(
        batch=1,
        key_heads=draw(st.integers(1, 2)),
        group=draw(st.sampled_from((1, 2))),
        queries=draw(st.sampled_from((1, 1, 2, 4))),
        keys=capacity,
        head_dim=3,
        value_dim=2,
        bias=draw(st.sampled_from(biases)),
        slopes=draw(st.sampled_from((None, "H", "BH"))),
        is_causal=draw(st.booleans()),
        window_size=draw(st.sampled_from(WINDOWS)),
        softcap=draw(st.sampled_from((None, 0.7))),
        seed=draw(st.integers(0, 2**16)),
    )
    used = draw(st.lists(st.integers(0, capacity), min_size=1, max_size=3))
    return Cached(tuple(used), draw(st.sampled_from((0, 1, 2, 3))), call)


GROUPED = Call(
    batch=1, key_heads=2, group=2, queries=2, keys=9, head_dim=3, value_dim=2, slopes="BH", seed=4
)
RAGGED = Cached((9, 5, 2), 0, GROUPED)
PAGED = Cached((9, 5, 2), 4, GROUPED)
