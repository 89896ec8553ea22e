"""A vision transformer of timm with sigmoid attention, trained on scikit-learn's digits."""

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from sigmoid_attention.integrations.timm import convert

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)

torch.manual_seed(0)
model = timm.create_model(
    "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, num_classes=10, depth=2,
    embed_dim=48, num_heads=3, qk_norm=True,
)  # fmt: skip
# The bias is -log(5): four patches and the class token. `convert` runs an image through the model
# and refuses if a softmax is left.
convert(model)

optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(150):
    batch = torch.randint(train.stop, (64,))
    loss = F.cross_entropy(model(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

model.eval()
with torch.no_grad():
    right = model(images[test]).argmax(dim=-1) == labels[test]
print(f"test accuracy {right.float().mean():.2f}")
