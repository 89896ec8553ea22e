"""The shipped configurations: what the kernels are compiled for, and which call takes which.

None was chosen by its timings; all were by what the compiler says of registers, spills and
instructions (tests/attention/impl/experimental/gluon/test_budgets.py).
"""

from dataclasses import dataclass, replace

HEAD_DIMS = (64, 128)
# Rows of a warp group's product.
ROWS = 64
# Keys that two consumers of the backward kernel have.
KEYS = 128


@dataclass(frozen=True)
class Features:
    """What is compiled into a kernel: a mask's loop, the tail's, and terms of the logits.

    ``shift``: weights are computed times 2^shift, so that fp16 keeps the digits of small ones.
    """

    window: bool
    tails: bool
    bias: bool
    slopes: bool
    shift: int


@dataclass(frozen=True)
class Forward(Features):
    """``consumers`` x 64 queries and ``block_k`` keys; stages are tiles in shared memory."""

    head_dim: int
    block_k: int
    consumers: int
    stages: int
    q_stages: int

    @property
    def block_q(self) -> int:
        return self.consumers * ROWS

    @property
    def boxes(self) -> dict[str, tuple[int, int]]:
        """What the copy engine takes at a time, of each of the kernel's tensors."""
        query, key = (ROWS, self.head_dim), (self.block_k, self.head_dim)
        return {"query": query, "key": key, "value": key, "out": query}


@dataclass(frozen=True)
class Backward(Features):
    """``block_q`` queries and KEYS keys, of which each of two consumers has half."""

    head_dim: int
    block_q: int
    stages: int

    @property
    def boxes(self) -> dict[str, tuple[int, int]]:
        query, half = (self.block_q, self.head_dim), (ROWS, self.head_dim)
        return {
            "query": query,
            "key": (KEYS, self.head_dim),
            "value": half,
            "on_out": query,
            "on_query": (ROWS, 64),
            "on_key": half,
            "on_value": half,
        }


def forward(head_dim: int, features: Features) -> Forward:
    """A plan has units of 128 queries, which two consumers take; three are faster to fill."""
    narrow = head_dim == 64
    return Forward(
        **vars(features),
        head_dim=head_dim,
        block_k=128,
        consumers=3 if narrow and not features.tails else 2,
        stages=4 if narrow else 2,
        q_stages=2,
    )


def backward(head_dim: int, features: Features) -> Backward:
    """Tiles of queries for which scores and sums leave registers for the rest."""
    narrow = head_dim == 64
    if narrow and features.slopes and not features.window:
        # In a loop without a branch the assembler spills 150 registers. A tail that no tile is in
        # makes one.
        features = replace(features, tails=True)
    return Backward(**vars(features), head_dim=head_dim, block_q=128 if narrow else 64, stages=2)
