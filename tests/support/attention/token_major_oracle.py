"""Sigmoid attention in float64, in the layout (batch, tokens, heads, dim), from arrays alone.

It uses no code of the library: visible keys and the terms added to logits are given as arrays.
"""

import math

import torch
from torch import Tensor


def weights(q: Tensor, k: Tensor, bias, *, visible=True, scale=None, softcap=0.0) -> Tensor:
    """(B, H, S, K); ``bias`` and ``visible`` broadcast to that."""
    q, k = q.double(), k.double()
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    scores = torch.einsum("bshd,bkhd->bhsk", q, k) * (scale or 1 / math.sqrt(q.shape[3]))
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    return torch.sigmoid(scores + bias) * torch.as_tensor(visible)


def attend(q: Tensor, k: Tensor, v: Tensor, bias, **settings) -> Tensor:
    """(B, S, H, value_dim)."""
    v = v.double().repeat_interleave(q.shape[2] // v.shape[2], dim=2)
    return torch.einsum("bhsk,bkhd->bshd", weights(q, k, bias, **settings), v)


def distances(S: int, K: int) -> Tensor:
    """(S, K): how far each key lies behind each query, the last query standing on the last key."""
    return torch.tensor([[i + K - S - j for j in range(K)] for i in range(S)])
