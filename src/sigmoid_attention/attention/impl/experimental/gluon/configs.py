"""The configurations that the kernels are compiled for, and which call uses which.

None was chosen by timings. All were chosen by the compiler's figures: registers, spills and
instructions (tests/attention/impl/experimental/gluon/test_budgets.py).
"""

from dataclasses import dataclass, replace

HEAD_DIMS = (64, 128)
# Rows of a warp group's product.
ROWS = 64
# Keys of the two consumers of the backward kernel.
KEYS = 128


@dataclass(frozen=True)
class Features:
    """What is compiled into a kernel: loops of masked and of tail tiles, and terms of the logits.

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
        """The boxes in which the copy engine moves each of the kernel's tensors."""
        query, key = (ROWS, self.head_dim), (self.block_k, self.head_dim)
        return {"query": query, "key": key, "value": key, "out": query}


@dataclass(frozen=True)
class Backward(Features):
    """``block_q`` queries and KEYS keys; each of two consumers has half of the keys."""

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
    """Two consumers take the 128 queries of a plan's unit; three need less time to fill."""
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
    """Tiles of queries whose scores and sums leave enough registers."""
    narrow = head_dim == 64
    if narrow and features.slopes and not features.window:
        # In a loop without a branch the assembler spills 150 registers. The branch for tails avoids
        # that, though no tile takes it.
        features = replace(features, tails=True)
    return Backward(**vars(features), head_dim=head_dim, block_q=128 if narrow else 64, stages=2)
