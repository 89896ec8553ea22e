"""The measured operations: their shapes, their input tensors, and their flops.

Shape letters: B batch, H heads, Q queries, K keys, D head dim.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MASKS = ("full", "causal")
# On a GPU, in an ALiBi case, before bias and slope.
LARGEST_LOGIT = 8.0

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Answer = Tensor | tuple[Tensor, ...]
Work = Callable[[], Answer]


@dataclass(frozen=True)
class Case:
    """One operation at one shape. `length` counts the keys, and the queries except in decoding.

    `key_heads` is 0 if they are as many as `heads`; `feature` names a further option, or is "".
    """

    operation: str
    dtype: str
    length: int
    dim: int = 64
    mask: str = "full"
    heads: int = 8
    batch: int = 1
    key_heads: int = 0
    feature: str = ""

    @property
    def queries(self) -> int:
        return 1 if self.operation == "decode" else self.length

    @property
    def is_causal(self) -> bool:
        return self.mask == "causal"

    def __str__(self) -> str:
        if self.operation == "gemm":
            return f"gemm {self.dtype} {self.length}^3"
        shape = f"{self.operation} {self.dtype} {self.mask} N={self.length} D={self.dim}"
        batch = f"B={self.batch}" if self.batch > 1 else ""
        heads = f"H={self.heads}/{self.key_heads}" if self.key_heads else ""
        return " ".join(part for part in (shape, batch, heads, self.feature) if part)


@dataclass(frozen=True)
class Operation:
    """How one operation is measured.

    The passes `forward` and `backward` are timed. `quantity` is "seconds" or "bytes" (the rise of
    the peak memory of a new process). A row's ratio is the cost of `baseline` over its cost.
    With `has_error` the peers that compute sigmoid attention are also compared with float64, on a
    sample of rows.
    """

    baseline: str | None = "sdpa"
    quantity: str = "seconds"
    forward: bool = True
    backward: bool = False
    alibi: bool = False
    has_error: bool = False


OPERATIONS = {
    "forward": Operation(),
    "forward+backward": Operation(backward=True),
    "decode": Operation(),
    "alibi-forward": Operation(baseline="dense", alibi=True, has_error=True),
    "alibi-forward+backward": Operation("dense", backward=True, alibi=True, has_error=True),
    # SDPA runs plain causal softmax here: it would take slopes only as an N x N mask.
    "headline": Operation(alibi=True),
    "memory-forward": Operation(quantity="bytes"),
    "memory-forward+backward": Operation(quantity="bytes", backward=True),
    "gemm": Operation(baseline=None),
    # Only for accelerators, where the best peer is not known in advance.
    "backward": Operation(baseline=None, forward=False, backward=True),
    "alibi-backward": Operation(baseline=None, forward=False, backward=True, alibi=True),
    "copy": Operation(baseline=None),
    "error": Operation(baseline=None, backward=True),
}


@dataclass(frozen=True)
class Inputs:
    """The input tensors of all peers of a case: query (B, H, Q, D), the others alike."""

    query: Tensor
    key: Tensor
    value: Tensor
    upstream: Tensor


def inputs(case: Case, device: torch.device) -> Inputs:
    """Gaussian tensors of the case, the same in every process; for gemm the two matrices."""
    generator = torch.Generator().manual_seed(case.length)

    def gaussian(*shape: int) -> Tensor:
        # Drawn in the dtype itself: a copy in another would raise the memory before the call.
        return torch.randn(shape, generator=generator, dtype=DTYPES[case.dtype]).to(device)

    if case.operation == "gemm":
        left, right = gaussian(case.length, case.length), gaussian(case.length, case.length)
        return Inputs(left, right, right, right)
    queries_shape = case.batch, case.heads, case.queries, case.dim
    keys_shape = case.batch, case.heads, case.length, case.dim
    return Inputs(
        query=gaussian(*queries_shape),
        key=gaussian(*keys_shape),
        value=gaussian(*keys_shape),
        upstream=gaussian(*queries_shape),
    )


def work(case: Case, tensors: Inputs, attend: Attend) -> Work:
    """The work to time: a forward pass, the gradients of query, key and value, or both."""
    operation = OPERATIONS[case.operation]
    if not operation.backward:

        def forward() -> Tensor:
            with torch.no_grad():
                return attend(tensors.query, tensors.key, tensors.value)

        return forward

    leaves = [x.detach().requires_grad_() for x in (tensors.query, tensors.key, tensors.value)]
    if not operation.forward:
        out = attend(*leaves)
        return lambda: torch.autograd.grad(out, leaves, tensors.upstream, retain_graph=True)

    def forward_and_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attend(*leaves), leaves, tensors.upstream)

    return forward_and_backward


def flops(case: Case) -> float:
    """Flops of the matrix products alone, without masked pairs: 2 forward, 5 more backward."""
    if case.operation == "gemm":
        return 2.0 * case.length**3
    pairs = case.queries * case.length
    if case.is_causal and case.queries > 1:
        pairs = case.length * (case.length + 1) // 2
    operation = OPERATIONS[case.operation]
    products = 2 * operation.forward + 5 * operation.backward
    return 2.0 * products * case.batch * case.heads * pairs * case.dim


def with_bounded_rows(queries_or_keys: Tensor) -> Tensor:
    """The rows scaled to one length, so that no product of two exceeds LARGEST_LOGIT."""
    length = (LARGEST_LOGIT * queries_or_keys.shape[-1] ** 0.5) ** 0.5
    return queries_or_keys * (length / queries_or_keys.norm(dim=-1, keepdim=True))


def alibi_slopes(heads: int) -> Tensor:
    """2^(-8 h / heads) for heads h from 1 on, as in the ALiBi paper.

    Example:
        >>> alibi_slopes(4)
        tensor([0.2500, 0.0625, 0.0156, 0.0039])
    """
    return 2.0 ** (-8 / heads * torch.arange(1.0, heads + 1))
