"""Centred keys: a number that is added to all logits of a row no longer changes the row.

A vector added to every key adds one number to all logits of a row. Softmax ignores it. Sigmoid
attention does not, unless its keys are centred.
"""

import torch
import torch.nn.functional as F

from sigmoid_attention import CentredKeys, NegLogLength, attention_statistics, sigmoid_attention
from sigmoid_attention.nn import Attention, RoPE

LENGTH = 64

torch.manual_seed(0)
query, key, value = torch.randn(3, 1, 2, LENGTH, 32).unbind(0)
shifted = key + 2 * torch.randn(32)  # the same vector on every key
plain, centred = NegLogLength(LENGTH), CentredKeys(NegLogLength(LENGTH))


def change(attention, **options) -> float:
    """How much the output changes, relative to its size."""
    before = attention(query, key, value, is_causal=True, **options)
    after = attention(query, shifted, value, is_causal=True, **options)
    return ((after - before).norm() / before.norm()).item()


print(f"softmax          {change(F.scaled_dot_product_attention):.0%}")
print(f"sigmoid          {change(sigmoid_attention, bias=plain):.0%}")
print(f"sigmoid, centred {change(sigmoid_attention, bias=centred):.0%}")

for name, bias in (("plain", plain), ("centred", centred)):
    mass = attention_statistics(query, shifted, value, bias=bias, is_causal=True).mass[..., -1]
    print(f"mass of the last row, {name}: {[round(m, 2) for m in mass.flatten().tolist()]}")

# A layer trains how much of the mean each head subtracts; its cache keeps running sums.
layer = Attention(64, num_heads=4, max_seq_len=LENGTH, position=RoPE(), centred_keys=True)
x = torch.randn(1, 10, 64)
cache = layer.new_cache(batch=1, length=16)
steps = [layer(token, cache=cache) for token in x.split(1, dim=1)]
print("token by token as in one pass:", torch.allclose(torch.cat(steps, 1), layer(x), atol=1e-5))
