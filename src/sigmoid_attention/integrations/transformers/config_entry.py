"""The key `sigmoid_attention` of a model's config: what was done to its attention modules."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedConfig

from sigmoid_attention.integrations.transformers import biases
from sigmoid_attention.integrations.transformers.biases import ModuleBias

# The name of the implementation, the key of the config, and the name under which modules are found.
NAME = "sigmoid"
KEY = "sigmoid_attention"
PROBE = "sigmoid_probe"

_FORMAT = 2


class HeadShape(NamedTuple):
    """Query heads, key heads, channels of a head's query and key, and of the module's input.

    ``dim`` is 0 where a module is not called with hidden states.
    """

    heads: int
    key_heads: int
    head_dim: int
    dim: int


@dataclass(frozen=True)
class Record:
    """What `convert` was asked for, and the attention modules that belong to a config.

    ``shapes`` maps the name of a module's class to its head shape, or to one for each module of
    the class in the order of the model where they differ.
    """

    bias: ModuleBias
    qk_norm: str | None
    layer_scale: float | None
    norm: str | None
    shapes: dict[str, list[HeadShape]]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "bias": biases.to_json(self.bias),
            "qk_norm": self.qk_norm,
            "layer_scale": self.layer_scale,
            "norm": self.norm,
            "modules": {name: [list(shape) for shape in all] for name, all in self.shapes.items()},
        }

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "Record":
        """What ``to_json`` wrote; ``ValueError`` for another format."""
        if not isinstance(entry, dict) or entry.get("format") != _FORMAT:
            written = entry.get("format") if isinstance(entry, dict) else entry
            raise ValueError(
                f"sigmoid_attention: this version reads format {_FORMAT} of the config's key, "
                f"got {written!r}"
            )
        return cls(
            bias=biases.from_json(entry["bias"]),
            qk_norm=entry["qk_norm"],
            layer_scale=entry["layer_scale"],
            norm=entry["norm"],
            shapes={
                name: [HeadShape(*shape) for shape in all] for name, all in entry["modules"].items()
            },
        )


def of(config: object) -> Record | None:
    """The record that a config carries."""
    entry = vars(config).get(KEY) if isinstance(config, PreTrainedConfig) else None
    return None if entry is None else Record.from_json(entry)


def write(config: PreTrainedConfig, record: Record) -> None:
    setattr(config, KEY, record.to_json())


def tree(config: PreTrainedConfig, path: str = "") -> Iterator[tuple[str, PreTrainedConfig]]:
    """A config and those inside it, each with its dotted path; "" for the outermost."""
    yield path, config
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if isinstance(inner, PreTrainedConfig):
            yield from tree(inner, f"{path}.{name}" if path else name)


def declare(config: PreTrainedConfig) -> None:
    """Let config.json name the implementation, which transformers alone does not know and refuses.

    transformers itself leaves the name out, so that without this a sigmoid's weights would load as
    a softmax wherever this package is not imported.
    """
    for _, each in tree(config):
        if any(of(inner) is not None for _, inner in tree(each)):
            each.attn_implementation = NAME


def configs(model: nn.Module) -> list[PreTrainedConfig]:
    """All configs that a model's modules hold, each once, the model's own first."""
    found: dict[int, PreTrainedConfig] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            for _, each in tree(config):
                found.setdefault(id(each), each)
    return list(found.values())
