"""What is measured on a trained decoder beside its mean loss: where in the text the loss lies.

Shape letters: W windows of N tokens, the targets of which are the tokens one place on.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigmoid_attention.nn import Attention
from sigmoid_attention.nn.models import DecoderLM
from sigmoid_attention.training.data.batches import token_stream
from sigmoid_attention.training.data.corpus import Document
from sigmoid_attention.training.data.tokenizer import Tokenizer

# Copying from the context continues a sequence that stood before: of this many tokens.
GRAM = 4
PARTS = 8
TOKENS_AT_ONCE = 4096


def whole_windows(tokenizer: Tokenizer, documents: Sequence[Document], length: int) -> Tensor:
    """The documents as windows (W, length + 1), each with the target of its last token.

    Example:
        >>> from sigmoid_attention.training.data.tokenizer import ByteTokenizer
        >>> whole_windows(ByteTokenizer(), [Document("a", b"abcde")], 2).tolist()
        [[97, 98, 99], [99, 100, 101]]
    """
    return token_stream(tokenizer, documents).long().unfold(0, length + 1, length)


@torch.no_grad()
def bits_of_targets(model: DecoderLM, windows: Tensor) -> Tensor:
    """The code length of each target of whole windows, (W, N), in bits."""
    was_training = model.training
    model.eval()
    parts = []
    for window in windows.split(max(1, TOKENS_AT_ONCE // windows.shape[1])):
        logits = model(window[:, :-1]).float()
        nats = F.cross_entropy(logits.mT, window[:, 1:], reduction="none")
        parts.append(nats / math.log(2))
    model.train(was_training)
    return torch.cat(parts)


def continues_seen(windows: Tensor, gram: int = GRAM) -> Tensor:
    """Whether the ``gram`` tokens before a target stood earlier in its window, (W, N).

    Example:
        >>> window = torch.tensor([[1, 2, 9, 1, 2, 7]])
        >>> continues_seen(window, gram=2).tolist()
        [[False, False, False, False, True]]
    """
    rows = []
    for tokens in windows[:, :-1].tolist():
        before, row = set(), []
        for end in range(1, len(tokens) + 1):
            last = tuple(tokens[end - gram : end]) if end >= gram else None
            row.append(last is not None and last in before)
            if last is not None:
                before.add(last)
        rows.append(row)
    return torch.tensor(rows)


def by_part(bits_WN: Tensor, parts: int = PARTS) -> list[float]:
    """The mean of each part of the window, from its beginning to its end."""
    return [part.mean().item() for part in bits_WN.mean(0).tensor_split(parts)]


@contextmanager
def at_most_seen(model: DecoderLM, keys: int) -> Iterator[None]:
    """Let every head of the model see ``keys`` tokens at most, its own among them."""
    layers = [module for module in model.modules() if isinstance(module, Attention)]
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
    layers = [module for module in model.modules() if isinstance(module, Attention)]

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
