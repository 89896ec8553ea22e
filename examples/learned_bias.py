"""A bias per head that trains: heads that should count few keys learn a lower bias.

The target is the mean of the values in half of the heads' channels and a tenth of it in the others.
"""

import torch

from sigmoid_attention import Learned, NegLogLength, sigmoid_attention

HEADS, LENGTH = 2, 64

torch.manual_seed(0)
bias = Learned(NegLogLength(LENGTH), HEADS)  # a module: `bias.value` has shape (heads,)
print("start", [round(b, 2) for b in bias.value.tolist()])

optimizer = torch.optim.Adam(bias.parameters(), lr=0.1)
wanted_size = torch.tensor([1.0, 0.1]).view(1, HEADS, 1, 1)
for _ in range(100):
    query, key, value = torch.randn(3, 4, HEADS, LENGTH, 16).unbind(0)
    query = query / 4  # small logits: each weight is then near sigmoid(bias)
    out = sigmoid_attention(query, key, value, bias=bias)
    loss = (out - wanted_size * value.mean(dim=2, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("end  ", [round(b, 2) for b in bias.value.tolist()])

# The first head stays near -log 64 = -4.16, the second moves to about -log 640 = -6.46.
# A layer takes it too: nn.Attention(..., bias=Learned(NegLogLength(LENGTH), HEADS)).
