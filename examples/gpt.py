"""Replace the softmax attention of a small GPT by sigmoid attention: one line changes.

Shape letters: B batch, T tokens, C channels, H heads.
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from sigmoid_attention import NegLogLength, sigmoid_attention

BLOCK_SIZE, VOCABULARY, CHANNELS, HEADS, LAYERS = 64, 256, 64, 4, 2


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention
        self.norm_1, self.norm_2 = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.qkv, self.out = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.mlp = nn.Sequential(
            nn.Linear(CHANNELS, 4 * CHANNELS), nn.GELU(), nn.Linear(4 * CHANNELS, CHANNELS)
        )

    def forward(self, x_BTC):
        parts = self.qkv(self.norm_1(x_BTC)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        mixed_BHTD = self.attention(q, k, v, is_causal=True)  # <- the line that changes
        x_BTC = x_BTC + self.out(mixed_BHTD.transpose(1, 2).flatten(2))
        return x_BTC + self.mlp(self.norm_2(x_BTC))


def final_loss(attention) -> float:
    """Train on this file, as bytes; the mean loss of the last ten steps in nats."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(VOCABULARY, CHANNELS),
        *[Block(attention) for _ in range(LAYERS)],
        nn.Linear(CHANNELS, VOCABULARY),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    text = torch.tensor(list(Path(__file__).read_bytes()))
    losses = []
    for _ in range(60):
        starts = torch.randint(len(text) - BLOCK_SIZE, (8, 1))
        tokens = text[starts + torch.arange(BLOCK_SIZE + 1)]
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


print("softmax", round(final_loss(F.scaled_dot_product_attention), 2))
print("sigmoid", round(final_loss(partial(sigmoid_attention, bias=NegLogLength(BLOCK_SIZE))), 2))
