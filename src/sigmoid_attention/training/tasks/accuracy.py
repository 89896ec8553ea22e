"""The share of scored positions that a model gets right."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share in [0, 1] of scored targets (not -100) that are the model's most likely token.

    Example:
        >>> one_hot = nn.Embedding.from_pretrained(torch.eye(5))
        >>> accuracy(one_hot, [(torch.tensor([[1, 2, 3]]), torch.tensor([[1, -100, 4]]))])
        0.5
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    right = scored = 0
    for inputs, targets in batches:
        predicted = model(inputs.to(device)).argmax(-1).cpu()
        counts = targets != -100
        right += int((predicted == targets)[counts].sum())
        scored += int(counts.sum())
    model.train(was_training)
    return right / scored
