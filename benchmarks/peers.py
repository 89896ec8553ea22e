"""What is measured: ways to compute attention, each prepared for one case.

A peer that does not support a case raises, here or in its first call; its row holds the reason.

Shape letters: B batch, H heads, Q queries, K keys, D head dim.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.operations import DTYPES, OPERATIONS, Attend, Case, alibi_slopes
from sigmoid_attention import sigmoid_attention, sigmoid_decode

# Eager attention holds its (B, H, Q, K) scores about three times at once.
EAGER_COPIES = 3
EAGER_BYTES = 3 * 2**29  # 1.5 GiB


def sdpa(case: Case) -> Attend:
    """torch's fused softmax attention."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=case.is_causal)

    return attend


def flex(case: Case) -> Attend:
    """torch's flex_attention, softmax, compiled for this shape and number of threads."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # Code that was compiled earlier has its number of threads built in.
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return compiled(query, key, value, block_mask=block_mask)

    def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return q >= k

    block_mask = None
    if case.is_causal:
        block_mask = create_block_mask(causal, None, None, case.length, case.length, device="cpu")
    return attend


def eager(weigh: Callable[[Tensor], Tensor], *, biased: bool) -> Callable[[Case], Attend]:
    """The formula in plain PyTorch."""

    def make(case: Case) -> Attend:
        scores = case.batch * case.heads * case.queries * case.length
        needed = EAGER_COPIES * scores * DTYPES[case.dtype].itemsize
        if needed > EAGER_BYTES:
            raise MemoryError(
                f"its scores would take {needed / 2**30:.1f} GiB, "
                f"the limit is {EAGER_BYTES / 2**30:.1f} GiB"
            )
        scale, bias = case.dim**-0.5, minus_log_length(case) if biased else 0.0
        hidden_QK = torch.ones(case.queries, case.length, dtype=torch.bool).triu(1)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            scores_BHQK = query @ key.mT * scale
            if biased:
                scores_BHQK = scores_BHQK + bias
            if case.is_causal:
                scores_BHQK = scores_BHQK.masked_fill(hidden_QK, -math.inf)
            return weigh(scores_BHQK) @ value

        return attend

    return make


def sigmoid(impl: str = "auto", *, skipping: bool = True) -> Callable[[Case], Attend]:
    """This library's operator, by one of its implementations."""

    def make(case: Case) -> Attend:
        options: dict[str, Any] = {
            "bias": minus_log_length(case),
            "alibi_slopes": slopes(case),
            "skip_tolerance": "rounding" if skipping else 0.0,
            "impl": impl,
        }
        used = torch.full((case.batch,), case.length)

        def decode(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return sigmoid_decode(query, key, value, seqused_k=used, is_causal=True, **options)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return sigmoid_attention(query, key, value, is_causal=case.is_causal, **options)

        return decode if case.operation == "decode" else attend

    return make


def mm(case: Case) -> Attend:
    """torch.mm with its default library."""
    return lambda left, right, _: torch.mm(left, right)


def onednn(case: Case) -> Attend:
    """oneDNN's product with a transposed matrix, an operator of torch's linear layer."""
    product = torch.ops.mkldnn._linear_pointwise
    return lambda left, right, _: product(left, right, None, "none", [], "")


PEERS: dict[str, Callable[[Case], Attend]] = {
    "sdpa": sdpa,
    "flex": flex,
    "eager-softmax": eager(lambda scores: scores.softmax(-1), biased=False),
    "eager-sigmoid": eager(torch.sigmoid, biased=True),
    "tiled": sigmoid("tiled"),
    "dense": sigmoid(skipping=False),
    "ours": sigmoid(),
    "mm": mm,
    "onednn": onednn,
}
# Those that compute the same function as the reference in `accuracy`.
OWN = ("tiled", "dense", "ours")


def minus_log_length(case: Case) -> float:
    """The bias of every sigmoid peer."""
    return -math.log(case.length)


def slopes(case: Case) -> Tensor | None:
    """The slopes of the case's heads; none if its operation has none."""
    return alibi_slopes(case.heads) if OPERATIONS[case.operation].alibi else None
