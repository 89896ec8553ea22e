r"""Sigmoid attention through PyTorch's FlexAttention: exact, on any GPU that Triton supports.

FlexAttention normalises its rows, and also returns the denominator. With the score

    t_ij = log sigmoid(u_ij) = log w_ij

its output is sum_j w_ij v_j / sum_j w_ij and its log-sum-exp the logarithm of that denominator, so

    O_i = out_i * exp(lse_i).

There is no subtraction, so small weights keep their digits, up to the rounding error of lse: |lse|
units in the last place, about log n. A row without visible keys has lse = -inf and its output is
exactly zero. The softmax that the kernel computes is extra work.

torch compiles a kernel for each combination of dtypes, masks, bias and slopes, and stops compiling
after ``torch._dynamo.config.recompile_limit`` of them.

Shape letters: B batch, H query heads, Q queries, K keys, E value dim.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    create_block_mask,
    flex_attention,
)

from sigmoid_attention.attention import autocast, torch_state
from sigmoid_attention.attention.masking import Window
from sigmoid_attention.attention.problem import Problem

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def attend(problem: Problem) -> Tensor:
    """The output of a validated problem; on a CPU without gradients.

    Raises:
        NotImplementedError: dropout, packed or cached sequences, an empty or a meta tensor; on a
            CPU a gradient, on a GPU fp64.
    """
    refuse(problem)
    queries, keys = problem.shape[2:]
    block_mask = None
    # A traced graph must not use Python's caches, and compiles FlexAttention itself.
    tracing = torch.compiler.is_compiling()
    if problem.window != (-1, -1):
        # A tensor made under a dispatch mode, such as a fake tensor, is not valid outside it.
        kept = not (tracing or torch_state.in_dispatch_mode())
        make = _block_mask if kept else _block_mask.__wrapped__
        block_mask = make(problem.window, queries, keys, problem.device)
    run = flex_attention if tracing else _compiled(problem.device.type)
    tensors = problem.query, problem.key, problem.value
    if problem.device.type == "cpu":
        # FlexAttention raises here for tensors that require a gradient, even under no_grad.
        tensors = tuple(tensor.detach() for tensor in tensors)
    with autocast.off(problem.device):
        out, aux = run(
            *tensors,
            score_mod=_log_weight(problem),
            block_mask=block_mask,
            scale=problem.scale,
            enable_gqa=problem.heads != problem.key.shape[1],
            return_aux=AuxRequest(lse=True),
        )
    assert aux.lse is not None
    mass_BHQ1 = aux.lse.to(problem.dtype).exp()[..., None]
    return (out.to(problem.dtype) * mass_BHQ1).to(problem.query.dtype)


def refuse(problem: Problem) -> None:
    """Raise ``NotImplementedError`` for a call that FlexAttention does not support."""
    if problem.dropout_p > 0:
        raise NotImplementedError("dropout_p: FlexAttention has no dropout")
    if problem.sequences is not None:
        raise NotImplementedError(
            "cu_seq_q, seqused_k: the flex implementation takes one sequence a row"
        )
    if 0 in (*problem.shape, problem.query.shape[3], problem.value.shape[3]):
        raise NotImplementedError("query, key, value: FlexAttention takes no empty arrays")
    if problem.device.type == "meta":
        raise NotImplementedError("query: FlexAttention takes no meta tensors")
    if problem.device.type != "cpu":
        if problem.query.dtype == torch.float64:
            raise NotImplementedError("query: FlexAttention's kernels have no torch.float64")
        return
    tensors = (
        problem.query, problem.key, problem.value,
        problem.bias, problem.attn_mask, problem.alibi_slopes,
    )  # fmt: skip
    if torch.is_grad_enabled() and any(
        isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors
    ):
        raise NotImplementedError("query: FlexAttention has no backward pass on a CPU")


@functools.cache
def _compiled(device: str) -> Callable[..., Any]:
    """FlexAttention, compiled: without compilation it would allocate all scores on a GPU."""
    # On a CPU only tests use it, for which the time of a C++ compilation does not pay.
    return torch.compile(flex_attention, backend="eager" if device == "cpu" else "inductor")


@functools.lru_cache(maxsize=64)
def _block_mask(window: Window, queries: int, keys: int, device: torch.device) -> BlockMask:
    """FlexAttention's block mask of a window: skipped blocks, and the exact edge in the others."""
    left, right = window

    def in_window(batch, head, query, key):
        behind = query + (keys - queries) - key
        visible = behind >= -right if right >= 0 else behind <= left
        return visible & (behind <= left) if left >= 0 else visible

    return create_block_mask(in_window, None, None, queries, keys, device=device)


def _at(tensor: Tensor, *indices: Tensor) -> Tensor:
    """The element of a tensor that broadcasts to (B, H, Q, K)."""
    sizes = (1,) * (len(indices) - tensor.dim()) + tuple(tensor.shape)
    return tensor.view(sizes)[
        tuple(index if size > 1 else 0 for index, size in zip(indices, sizes, strict=True))
    ]


def _log_weight(problem: Problem) -> ScoreMod:
    """log sigmoid(u), from the scaled dot product and the indices of query and key."""
    queries, keys = problem.shape[2:]
    softcap, dtype, bias = problem.softcap, problem.dtype, problem.bias
    if isinstance(bias, Tensor):
        bias = bias.to(dtype)
    else:
        # A Python number would be compiled into the kernel: each number would need a new kernel.
        bias = torch.full((), bias, dtype=dtype, device=problem.device)
    slopes = None if problem.alibi_slopes is None else problem.alibi_slopes.to(dtype)
    mask = problem.attn_mask
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(dtype)

    def log_weight(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        logit = score + _at(bias, b, h, q, k)
        if slopes is not None:
            logit = logit - _at(slopes, b, h) * (q + (keys - queries) - k).abs().to(dtype)
        if mask is None:
            return F.logsigmoid(logit)
        if mask.dtype == torch.bool:
            return torch.where(_at(mask, b, h, q, k), F.logsigmoid(logit), -float("inf"))
        return F.logsigmoid(logit + _at(mask, b, h, q, k))

    return log_weight
