"""An attention layer with any of its options, token by token from the formulas, in float64.

Shape letters: B batch, N tokens, C channels, H heads, G key heads, D head dim.
"""

import math

import torch
from torch import Tensor

from sigmoid_attention.nn import Attention, RoPE, RoPEWithALiBi


def numbers(parameter: Tensor | None) -> Tensor:
    assert parameter is not None
    return parameter.detach().double()


def heads(linear: torch.nn.Linear, x_BNC: Tensor, count: int) -> Tensor:
    """(B, N, heads, D)."""
    return (x_BNC @ numbers(linear.weight).T).unflatten(-1, (count, -1))


def turned(x_D: Tensor, place: int, base: float) -> Tensor:
    """The pairs of channels as complex numbers, times e^(i place base^(-2c/D))."""
    half = len(x_D) // 2
    pairs = torch.complex(x_D[:half], x_D[half:])
    angles = place * base ** (-torch.arange(half, dtype=torch.float64) / half)
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((pairs.real, pairs.imag))


def slope(layer: Attention, h: int) -> float:
    """2^(-8 (h + 1) / H), where the layer's position has slopes, for a power of two of heads."""
    if not isinstance(layer.position, RoPEWithALiBi) or h % 2:
        return 0.0
    return 2.0 ** (-8 * (h + 1) / layer.num_heads)


def defined(
    layer: Attention,
    x: Tensor,
    real_BN: Tensor | None = None,
    first_value: Tensor | None = None,
    *,
    b: float,
    gamma: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The output at real tokens, zeros elsewhere, and the layer's own values, (B, G, N, D).

    ``b`` is the bias that the layer was made with, ``gamma`` the exponent where it is a number.
    """
    x = x.double()
    if real_BN is None:
        real_BN = torch.ones(x.shape[:2], dtype=torch.bool)
    H, G, D = layer.num_heads, layer.num_kv_heads, layer.head_dim
    query, key, value = (
        heads(layer.query, x, H),
        heads(layer.key, x, G),
        heads(layer.value, x, G),
    )
    own = value
    if first_value is not None:
        share = numbers(layer.value_residual.share)
        value = (1 - share) * value + share * first_value.double().transpose(1, 2)
    state = dict(layer.named_parameters())
    out = torch.zeros(*x.shape[:2], H, D, dtype=torch.float64)
    for batch, i in real_BN.nonzero().tolist():
        left, right = layer.window_size
        right = 0 if layer.is_causal else right
        sees = [
            j
            for j in range(x.shape[1])
            if real_BN[batch, j] and (left < 0 or i - j <= left) and (right < 0 or j - i <= right)
        ]
        for h in range(H):
            g = h // (H // G)
            q, keys = query[batch, i, h], key[batch, sees, g]
            if isinstance(layer.position, RoPE):
                place = [int(real_BN[batch, :j].sum()) for j in (i, *sees)]
                q = turned(q, place[0], layer.position.base)
                turns = zip(keys, place[1:], strict=True)
                keys = torch.stack([turned(k, p, layer.position.base) for k, p in turns])
            centring = state.get("bias.strength")
            centre = keys.mean(0) * (0 if centring is None else numbers(centring)[h])
            logits = (keys - centre) @ q / math.sqrt(D)
            logits = logits - slope(layer, h) * (i - torch.tensor(sees)).abs()
            prefix = "bias.bias" if centring is not None else "bias"
            if f"{prefix}.weight" in state:
                weight = numbers(state[f"{prefix}.weight"])[h]
                logits = logits + numbers(state[f"{prefix}.offset"])[h] + weight @ x[batch, i]
            else:
                logits = logits + b
            weights = torch.sigmoid(logits)
            exponent = gamma
            if "mass_exponent.exponent" in state:
                exponent = numbers(state["mass_exponent.exponent"])[h].item()
            row = weights @ value[batch, sees, g]
            if exponent is not None:
                row = row / weights.sum() ** exponent
            if "gate.weight" in state:
                gates = 2 * torch.sigmoid(numbers(state["gate.weight"]) @ x[batch, i])
                row = row * gates.unflatten(0, (H, -1))[h]
            out[batch, i, h] = row
    return out.flatten(2) @ numbers(layer.output.weight).T, own.transpose(1, 2)
