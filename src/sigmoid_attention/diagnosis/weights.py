"""Collects the attention weights of a model: this library's layers, transformers, timm.

Shape letters: B sequences, H query heads, Q queries, K keys.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sigmoid_attention.attention import sigmoid_attention
from sigmoid_attention.nn import Attention

# Called with the name of a module and its weights (B, H, Q, K).
Take = Callable[[str, Tensor], None]


@contextmanager
def weights_taken(model: nn.Module, take: Take) -> Iterator[int]:
    """Hand the weights of each attention call inside the block to ``take``.

    Gives the number of modules with sigmoid attention. Weights are those before dropout.
    """
    modules = 0
    with ExitStack() as undo:
        for name, module in model.named_modules():
            if isinstance(module, Attention):
                watching = module.activation == "sigmoid" and _hooked(module, name, take)
            elif hasattr(module, "attn_drop") and hasattr(module, "sigmoid_bias"):
                watching = _timm(module, name, take)
            elif hasattr(module, "sigmoid_shape"):
                watching = _transformers(module, name, take)
            else:
                continue
            if watching:
                undo.enter_context(watching)
                modules += 1
        yield modules


@contextmanager
def _hooked(layer: Attention, name: str, take: Take) -> Iterator[None]:
    def hook(_module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        take(name, layer.weights(inputs[0]))

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _timm(layer: Any, name: str, take: Take) -> Iterator[None]:
    """Without its fused switch a layer of timm passes the weights through ``attn_drop``."""

    def hook(_module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        take(name, inputs[0])

    fused, handle = layer.fused_attn, layer.attn_drop.register_forward_hook(hook)
    layer.fused_attn = False
    try:
        yield
    finally:
        layer.fused_attn = fused
        handle.remove()


@contextmanager
def _transformers(module: nn.Module, name: str, take: Take) -> Iterator[None]:
    from sigmoid_attention.integrations.transformers.forward import OPERATOR

    def operator(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        # Attention is linear in its values: with the identity in their place it is the weights.
        identity = torch.eye(key.shape[2], dtype=key.dtype, device=key.device)
        identity = identity.expand(*key.shape[:2], -1, -1)
        settings: dict[str, Any] = {**options, "dropout_p": 0.0}
        take(name, before(query, key, identity, mask, **settings))
        return before(query, key, value, mask, **options)

    # The student of a conversion has an operator of its own while it trains.
    own = vars(module).get(OPERATOR)
    before = sigmoid_attention if own is None else own
    setattr(module, OPERATOR, operator)
    try:
        yield
    finally:
        delattr(module, OPERATOR)
        if own is not None:
            setattr(module, OPERATOR, own)
