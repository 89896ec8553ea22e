"""Run a model layer by layer on fixed batches; the inputs of the next layer are stored."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

Batch = Mapping[str, Tensor]

_NUMBERED = re.compile(r"^(?:.*?\.)?\d+(?=\.|$)")


def attention_layers(model: nn.Module, attention: Sequence[str]) -> list[nn.Module]:
    """The numbered blocks that contain these attention modules, in order, without repetition.

    Raises:
        ValueError: an attention module is not part of a numbered block.

    Example:
        >>> blocks = nn.ModuleList([nn.ModuleDict({"attn": nn.Identity()}) for _ in range(2)])
        >>> model = nn.ModuleDict({"blocks": blocks})
        >>> len(attention_layers(model, ["blocks.0.attn", "blocks.1.attn"]))
        2
    """
    names: dict[str, None] = {}
    for name in attention:
        found = _NUMBERED.match(name)
        if found is None:
            raise ValueError(f"model: the attention module {name} is not part of a numbered layer")
        names[found.group()] = None
    return [model.get_submodule(name) for name in names]


class LayerStream:
    """The inputs of layer 0 for fixed batches, then those of layer 1, and so on.

    One forward pass of each batch records the other arguments that the model gives to each layer.
    Later calls of a layer use them again.

    Args:
        model: in evaluation mode. layers: its blocks in order. batches: arguments of ``forward``.

    Raises:
        ValueError: a layer's input is not the output of the layer before it, so that the layers
            cannot be taken one by one.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[nn.Module], batches: Sequence[Batch]
    ) -> None:
        self._layers = layers
        self._calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        self.hidden: list[Tensor] = []
        for batch in batches:
            calls, first = _calls_of(model, layers, batch)
            self._calls.append(calls)
            self.hidden.append(first)

    def output(self, index: int, batch: int, hidden: Tensor) -> Tensor:
        """The output of layer `index` for these hidden states, with gradients."""
        args, kwargs = self._calls[batch][index]
        return _tensor(self._layers[index](hidden, *args, **kwargs))

    def outputs(self, index: int) -> list[Tensor]:
        """The outputs of layer `index` for every batch."""
        with torch.no_grad():
            return [self.output(index, batch, hidden) for batch, hidden in enumerate(self.hidden)]


def _calls_of(
    model: nn.Module, layers: Sequence[nn.Module], batch: Batch
) -> tuple[list[tuple[tuple[Any, ...], dict[str, Any]]], Tensor]:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    first: list[Tensor] = []
    last: list[Tensor] = []

    def before(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        args = tuple(_without_cache(value) for value in args)
        kwargs = {name: _without_cache(value) for name, value in kwargs.items()}
        hidden = args[0] if args else kwargs.pop("hidden_states")
        if not first:
            first.append(hidden)
        elif hidden is not last[0] and not torch.equal(hidden, last[0]):
            raise ValueError(
                f"layer_steps: the layers of {type(model).__name__} do not follow one another "
                f"directly, so they cannot be converted one by one; give --layer-steps 0"
            )
        calls.append((args[1:], kwargs))

    def after(_layer: nn.Module, _args: Any, out: Any) -> None:
        last[:] = [_tensor(out)]

    with _hooks(layers, before, after), torch.no_grad():
        model(**batch)
    return calls, first[0]


@contextmanager
def _hooks(layers: Sequence[nn.Module], before: Any, after: Any) -> Iterator[None]:
    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _without_cache(value: Any) -> Any:
    """A cache would grow with every further call."""
    return None if isinstance(value, Cache) else value


def _tensor(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]
