"""The entry `sigmoid_attention` of a model's config: how its attention modules were converted."""

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

# Format 3 is format 2 with centred keys, which earlier versions refuse by the number.
_FORMATS = (2, 3)


class HeadShape(NamedTuple):
    """Number of query heads, of key heads, channels of a head, and channels of the module's input.

    ``dim`` is 0 where a module is not called with hidden states.
    """

    heads: int
    key_heads: int
    head_dim: int
    dim: int


@dataclass(frozen=True)
class ConfigEntry:
    """The options of `convert`, and the attention modules that belong to a config.

    ``shapes`` maps the name of a module's class to its head shape, or to one for each module of
    the class in the order of the model where they differ.
    """

    bias: ModuleBias
    qk_norm: str | None
    layer_scale: float | None
    norm: str | None
    shapes: dict[str, list[HeadShape]]
    centred_keys: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "format": _FORMATS[self.centred_keys],
            "bias": biases.to_json(self.bias),
            "qk_norm": self.qk_norm,
            "layer_scale": self.layer_scale,
            "norm": self.norm,
            "modules": {name: [list(shape) for shape in all] for name, all in self.shapes.items()},
        }

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "ConfigEntry":
        """Read the entry that ``to_json`` wrote; ``ValueError`` for another format."""
        if not isinstance(entry, dict) or entry.get("format") not in _FORMATS:
            written = entry.get("format") if isinstance(entry, dict) else entry
            raise ValueError(
                f"sigmoid_attention: this version reads formats 2 and 3 of the config's key, "
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
            centred_keys=entry["format"] == 3,
        )


def read(config: object) -> ConfigEntry | None:
    """The entry of a config, None if it has none."""
    entry = vars(config).get(KEY) if isinstance(config, PreTrainedConfig) else None
    return None if entry is None else ConfigEntry.from_json(entry)


def write(config: PreTrainedConfig, record: ConfigEntry) -> None:
    setattr(config, KEY, record.to_json())


def config_tree(config: PreTrainedConfig, path: str = "") -> Iterator[tuple[str, PreTrainedConfig]]:
    """A config and its nested configs, each with its dotted path; "" for the outermost."""
    yield path, config
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if isinstance(inner, PreTrainedConfig):
            yield from config_tree(inner, f"{path}.{name}" if path else name)


def declare(config: PreTrainedConfig) -> None:
    """Write the implementation's name into config.json, so that transformers alone refuses it.

    transformers omits the name. Then, where this package is not imported, weights of a sigmoid
    model would load as a softmax model.
    """
    for _, each in config_tree(config):
        if any(read(inner) is not None for _, inner in config_tree(each)):
            each.attn_implementation = NAME


def model_configs(model: nn.Module) -> list[PreTrainedConfig]:
    """All configs of a model's modules without repetition, the model's own first."""
    found: dict[int, PreTrainedConfig] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            for _, each in config_tree(config):
                found.setdefault(id(each), each)
    return list(found.values())
