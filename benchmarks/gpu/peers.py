"""What is measured on a GPU: this library's implementations, softmax peers, other sigmoid kernels.

Every peer receives (B, H, N, D); the layout of those in `BY_TOKEN` is (B, N, H, D). A peer that is
not installed, or does not support a case, raises, and its row holds the reason.

Shape letters: B batch, H heads, N tokens, D head dim.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.operations import OPERATIONS, Attend, Case
from benchmarks.peers import minus_log_length, slopes
from sigmoid_attention import sigmoid_attention, sigmoid_decode

OURS = ("gluon", "triton")
SOFTMAX = ("sdpa-flash", "sdpa-cudnn", "flash-attn-2", "flash-attn-3")
SIGMOID = ("flex-sigmoid", "triton-sigmoid", "flash-sigmoid")
BY_TOKEN = ("flash-attn-2", "flash-attn-3", "triton-sigmoid", "flash-sigmoid")
NAMES = {
    "gluon": "this operator, gluon",
    "triton": "this operator, triton",
    "sdpa-flash": "SDPA, flash",
    "sdpa-cudnn": "SDPA, cuDNN",
    "flash-attn-2": "flash_attn 2",
    "flash-attn-3": "flash_attn 3",
    "flex-sigmoid": "FlexAttention, logsigmoid",
    "triton-sigmoid": "triton-sigmoid",
    "flash-sigmoid": "FlashSigmoid",
}


def sigmoid(impl: str) -> Callable[[Case, torch.device], Attend]:
    """This library's operator, by one of its implementations."""

    def make(case: Case, device: torch.device) -> Attend:
        own = slopes(case)
        options: dict[str, Any] = {
            "bias": minus_log_length(case),
            "alibi_slopes": None if own is None else own.to(device),
            "enable_gqa": case.key_heads > 0,
            "impl": impl,
        }
        if case.operation == "decode":
            options["seqused_k"] = torch.full((case.batch,), case.length, device=device)
            if case.feature.startswith("paged"):
                return _paged(case, device, options)
            return lambda q, k, v: sigmoid_decode(q, k, v, is_causal=True, **options)
        return lambda q, k, v: sigmoid_attention(q, k, v, is_causal=case.is_causal, **options)

    return make


def _paged(case: Case, device: torch.device, options: dict[str, Any]) -> Attend:
    """The same keys in pages in random order; building the pages is not timed."""
    size = int(case.feature.removeprefix("paged "))
    pages = case.batch * case.length // size
    chance = torch.Generator().manual_seed(0)
    table = torch.randperm(pages, generator=chance).view(case.batch, -1)
    options |= {"block_table": table.to(device, torch.int32)}

    def decode(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # (B, H, N, D) storage is cut into pages without a copy; their order does not matter.
        stored = [x.reshape(pages, size, x.shape[1], x.shape[3]) for x in (key, value)]
        return sigmoid_decode(query, *stored, is_causal=True, **options)

    return decode


def sdpa(backend: str) -> Callable[[Case, torch.device], Attend]:
    """torch's fused softmax attention, with one of its backends."""

    def make(case: Case, device: torch.device) -> Attend:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        chosen, grouped = getattr(SDPBackend, backend), case.key_heads > 0

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            with sdpa_kernel(chosen):
                try:
                    return F.scaled_dot_product_attention(
                        query, key, value, is_causal=case.is_causal, enable_gqa=grouped
                    )
                except RuntimeError as error:
                    if "No available kernel" not in str(error):
                        raise
                    raise NotImplementedError(f"torch has no {backend} for this") from None

        return attend

    return make


def flex_sigmoid(case: Case, device: torch.device) -> Attend:
    """FlexAttention as a sigmoid: softmax of log sigmoid(u), times its denominator."""
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

    # Above eight shapes in one process it would silently run uncompiled: the earlier ones are
    # cleared, and an error is raised instead.
    torch.compiler.reset()
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    # A backward pass that is timed alone is repeated after one forward pass.
    torch._functorch.config.donated_buffer = False
    compiled = torch.compile(flex_attention, dynamic=False)
    bias, own = minus_log_length(case), slopes(case)
    of_head = None if own is None else own.to(device)

    def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return q >= k

    def log_weight(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        penalty = 0.0 if of_head is None else of_head[h] * (q - k)
        return F.logsigmoid(score + bias - penalty)

    block_mask = None
    if case.is_causal:
        block_mask = create_block_mask(causal, None, None, case.length, case.length, device.type)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, aux = compiled(
            query, key, value, score_mod=log_weight, block_mask=block_mask,
            return_aux=AuxRequest(lse=True),
        )  # fmt: skip
        return (out * aux.lse.exp()[..., None]).to(query.dtype)

    return attend


def triton_sigmoid(case: Case, device: torch.device) -> Attend:
    """The package triton-sigmoid, unchanged."""
    from triton_sigmoid import sigmoid_attention as attend

    _only(case, "triton-sigmoid", slopes=False, decoding=False)
    return lambda q, k, v: attend(q, k, v, case.is_causal, sigmoid_bias=minus_log_length(case))


def clear_tuning() -> None:
    """Clear the tuning cache of triton-sigmoid: its keys ignore batch and heads, so that the
    configuration tuned for the two heads of an error case would be the one that is timed."""
    module = sys.modules.get("triton_sigmoid.sigmoid_triton_dense")
    for kernel in list(vars(module).values()) if module else ():
        if hasattr(kernel, "configs") and hasattr(kernel, "cache"):
            kernel.cache.clear()


def flash_sigmoid(case: Case, device: torch.device) -> Attend:
    """FlashSigmoid, by the authors of the paper (Ramapuram 2024)."""
    from flash_sigmoid import flash_attn_func

    _only(case, "FlashSigmoid", decoding=False)
    own = slopes(case)
    options = {"sigmoid_bias": minus_log_length(case), "causal": case.is_causal}
    options["alibi_slopes"] = None if own is None else own.to(device)
    return lambda q, k, v: flash_attn_func(q, k, v, **options)


def flash_attn(package: str) -> Callable[[Case, torch.device], Attend]:
    """The softmax of flash_attn, without slopes; version 3 is a separate package."""

    def make(case: Case, device: torch.device) -> Attend:
        from importlib import import_module

        own = import_module(package)
        if case.operation != "decode":
            return lambda q, k, v: _first(own.flash_attn_func(q, k, v, causal=case.is_causal))
        _only(case, package, pages=False)
        used = torch.full((case.batch,), case.length, dtype=torch.int32, device=device)
        return lambda q, k, v: _first(own.flash_attn_with_kvcache(q, k, v, cache_seqlens=used))

    return make


def mm(case: Case, device: torch.device) -> Attend:
    """cuBLAS, through torch."""
    return lambda left, right, _: torch.mm(left, right)


def copy(case: Case, device: torch.device) -> Attend:
    """torch's copy from memory to memory."""
    return lambda source, target, _: target.copy_(source)


Maker = Callable[[Case, torch.device], Attend]
PEERS: dict[str, Maker] = {
    "gluon": sigmoid("gluon"),
    "triton": sigmoid("triton"),
    "sdpa-flash": sdpa("FLASH_ATTENTION"),
    "sdpa-cudnn": sdpa("CUDNN_ATTENTION"),
    "flash-attn-2": flash_attn("flash_attn"),
    "flash-attn-3": flash_attn("flash_attn_interface"),
    "flex-sigmoid": flex_sigmoid,
    "triton-sigmoid": triton_sigmoid,
    "flash-sigmoid": flash_sigmoid,
    "mm": mm,
    "copy": copy,
}


def ready(peer: str, case: Case, device: torch.device) -> Attend:
    """A peer made ready for a case, in this package's layout."""
    attend = PEERS[peer](case, device)
    if peer not in BY_TOKEN:
        return attend

    def by_token(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = attend(*(x.transpose(1, 2) for x in (query, key, value)))
        return out.transpose(1, 2)

    return by_token


def _only(
    case: Case, package: str, *, slopes: bool = True, decoding: bool = True, pages: bool = True
) -> None:
    if OPERATIONS[case.operation].alibi and not slopes:
        raise NotImplementedError(f"{package} has no ALiBi")
    if case.operation == "decode" and not decoding:
        raise NotImplementedError(f"{package} has no decoding")
    if case.feature.startswith("paged") and not pages:
        raise NotImplementedError(f"{package}: pages are not compared")


def _first(answer: Tensor | tuple[Tensor, ...]) -> Tensor:
    return answer if isinstance(answer, Tensor) else answer[0]
