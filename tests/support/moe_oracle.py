"""A mixture-of-experts layer in plain loops, token by token."""

import torch
import torch.nn.functional as F


def expert(experts, number, x):
    """One expert's answer to one token."""
    if experts.kind == "gelu":
        return experts.down[number] @ F.gelu(experts.up[number] @ x)
    gate, up = (experts.gate_up[number] @ x).chunk(2)
    return experts.down[number] @ (F.silu(gate) * up)


def mixture(experts, tokens, visits, weights):
    """sum_k weights_tk expert(visits_tk, x_t) for tokens (T, C)."""
    return torch.stack(
        [
            sum(w * expert(experts, int(e), x) for e, w in zip(row, weight, strict=True))
            for x, row, weight in zip(tokens, visits, weights, strict=True)
        ]
    )


def deepseek_choice(scores, bias, groups, top_groups, top_k):
    """The experts of one token, a set: groups by their two best, then the best inside them."""
    biased = (scores + bias).tolist()
    size = len(biased) // groups
    parts = [biased[g * size : (g + 1) * size] for g in range(groups)]
    worth = [sum(sorted(part)[-2:]) for part in parts]
    open_groups = sorted(range(groups), key=lambda g: worth[g])[-top_groups:]
    within = [e for e in range(len(biased)) if e // size in open_groups]
    return set(sorted(within, key=lambda e: biased[e])[-top_k:])
