"""Limits on what the heads of a trained decoder see, for tests beyond the training length."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sigmoid_attention.nn import Attention
from sigmoid_attention.nn.models import DecoderLM


def attention_layers(model: DecoderLM) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


@contextmanager
def at_most_seen(model: DecoderLM, keys: int) -> Iterator[None]:
    """Let every head of the model see ``keys`` tokens at most, its own among them."""
    layers = attention_layers(model)
    before = [layer.window_size for layer in layers]
    for layer in layers:
        layer.window_size = (keys - 1, 0)
    try:
        yield
    finally:
        for layer, window in zip(layers, before, strict=True):
            layer.window_size = window


@contextmanager
def rotating_at_most_seen(model: DecoderLM, keys: int) -> Iterator[None]:
    """Let the heads without slopes see ``keys`` tokens at most; heads with slopes see all."""
    layers = attention_layers(model)

    def windowed(layer: Attention) -> Callable[..., Tensor]:
        operate, slopes = layer._operate, layer.position.slopes(layer.num_heads, "cpu")
        far = torch.zeros(layer.num_heads) if slopes is None else slopes

        def both(*args: Any) -> Tensor:
            whole = operate(*args)
            before, layer.window_size = layer.window_size, (keys - 1, 0)
            near = operate(*args)
            layer.window_size = before
            return torch.where(far[:, None, None] > 0, whole, near)

        return both

    for layer in layers:
        layer._operate = windowed(layer)
    try:
        yield
    finally:
        for layer in layers:
            # The method of the class is in use again.
            del layer._operate
