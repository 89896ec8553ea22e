"""Patches of transformers' base classes, so that a converted checkpoint loads as it was saved.

A config with our entry refuses every other implementation, whether it is set by
``from_pretrained(..., attn_implementation=...)``, ``set_attn_implementation`` or by hand. A model
that is built from such a config gets its biases and norms before its weights are loaded.
"""

import functools
from collections import defaultdict
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from sigmoid_attention.integrations.transformers import biases, config_entry, extra_norms
from sigmoid_attention.integrations.transformers.config_entry import (
    KEY,
    NAME,
    PROBE,
    ConfigEntry,
    HeadShape,
)
from sigmoid_attention.nn.state_bias import StateBias

_STORED = "_attn_implementation_internal"
# Where a config keeps whether attentions are returned, and transformers' check of it.
_ATTENTIONS = "_output_attentions"
_CHECK = "validate_output_attentions"


class _ImplementationField:
    """The attribute with the implementation's name. It has no ``__get__``, so that reading is free.

    transformers sets it before other keys when it reads a config, and again when it builds a model.
    """

    def __set__(self, config: PreTrainedConfig, name: str | None) -> None:
        held = vars(config)
        held[_STORED] = _allowed(config, name) if KEY in held else name


class _EntryField:
    """Our entry: setting it also sets the implementation of the config."""

    def __get__(self, config: PreTrainedConfig | None, owner: type) -> Any:
        if config is None or KEY not in vars(config):
            raise AttributeError(f"{owner.__name__} has no attribute {KEY!r}")
        return vars(config)[KEY]

    def __set__(self, config: PreTrainedConfig, entry: dict[str, Any]) -> None:
        ConfigEntry.from_json(entry)
        held = vars(config)
        held[_STORED] = _allowed(config, held.get(_STORED))
        held[KEY] = entry

    def __delete__(self, config: PreTrainedConfig) -> None:
        del vars(config)[KEY]


def _allowed(config: PreTrainedConfig, name: str | None) -> str:
    # transformers itself sets "eager" in a config that returns attentions.
    if name == "eager" and vars(config).get(_ATTENTIONS):
        return NAME
    if name not in (None, NAME, PROBE):
        raise ValueError(
            f"attn_implementation: this {type(config).__name__} belongs to a model with sigmoid "
            f"attention, which gives nonsense under {name!r}; leave it at {NAME!r}"
        )
    return name or NAME


@functools.cache
def install() -> None:
    """Patch transformers' base classes, once."""
    setattr(PreTrainedConfig, _STORED, _ImplementationField())
    setattr(PreTrainedConfig, KEY, _EntryField())
    _allow_output_attentions()
    post_init = PreTrainedModel.post_init
    initialize = PreTrainedModel._initialize_weights

    @functools.wraps(post_init)
    def restoring(model: PreTrainedModel) -> None:
        post_init(model)
        restore(model)

    @functools.wraps(initialize)
    def initializing(model: PreTrainedModel, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        fresh = not getattr(module, "_is_hf_initialized", False)
        initialize(model, module, *args, **kwargs)
        if fresh:
            _initialize_missing(module)

    setattr(PreTrainedModel, post_init.__name__, restoring)
    setattr(PreTrainedModel, initialize.__name__, initializing)


def _allow_output_attentions() -> None:
    """Allow ``config.output_attentions`` for converted models.

    transformers allows it for "eager" only; a converted model returns its attentions as well.
    """
    theirs: Any = PreTrainedConfig.output_attentions
    check = getattr(PreTrainedConfig, _CHECK, None)

    def setter(config: PreTrainedConfig, value: bool | None) -> None:
        if KEY in vars(config):
            setattr(config, _ATTENTIONS, value)
        else:
            theirs.__set__(config, value)

    def checking(config: PreTrainedConfig) -> None:
        if KEY not in vars(config) and check is not None:
            check(config)

    if isinstance(theirs, property):
        setattr(PreTrainedConfig, "output_attentions", theirs.setter(setter))  # noqa: B010
    if check is None:
        return
    checking.__name__ = _CHECK
    setattr(PreTrainedConfig, _CHECK, checking)
    # Classes that exist already have their own lists of checks.
    kinds: list[type] = [PreTrainedConfig]
    for kind in kinds:
        kinds += kind.__subclasses__()
        checks = vars(kind).get("__class_validators__", [])
        checks[:] = [checking if each is check else each for each in checks]


def restore(model: PreTrainedModel) -> None:
    """Add biases and norms to the attention modules of a new model, as its config says."""
    modules = dict(model.named_modules())
    members: dict[tuple[int, str], list[str]] = defaultdict(list)
    records: dict[int, ConfigEntry] = {}
    for name, module in modules.items():
        config = getattr(module, "config", None)
        known = records.get(id(config)) or config_entry.read(config)
        if known is not None and type(module).__name__ in known.shapes:
            records[id(config)] = known
            members[id(config), type(module).__name__].append(name)
    for (config, kind), names in members.items():
        shapes = records[config].shapes[kind]
        # If shapes differ there is one for each module, in order. A part of a model is skipped here
        # and handled when the whole model is built.
        if len(shapes) in (1, len(names)):
            for place, name in enumerate(names):
                parent = modules.get(name.rpartition(".")[0]) if name else None
                shape = shapes[place if len(shapes) > 1 else 0]
                attach(modules[name], parent, records[config], shape)
    if records:
        keep_bias_in_fp32(model)
        config_entry.declare(model.config)


def attach(
    module: nn.Module, parent: nn.Module | None, entry: ConfigEntry, shape: HeadShape
) -> None:
    """Add bias and norms to one attention module, once."""
    if hasattr(module, biases.ATTRIBUTE):
        return
    module.sigmoid_shape = shape  # pyright: ignore[reportArgumentType]
    biases.attach(module, entry.bias, shape.heads, shape.dim)
    extra_norms.attach(module, parent, entry, shape)


def keep_bias_in_fp32(model: PreTrainedModel) -> None:
    """Keep the bias in fp32: a bias near -log n loses most of its digits in bf16."""
    strict = model._keep_in_fp32_modules_strict
    model._keep_in_fp32_modules_strict = {*(strict or ()), biases.ATTRIBUTE}


def _initialize_missing(module: nn.Module) -> None:
    """Initialize parameters that a softmax checkpoint lacks, with transformers' own functions.

    These functions skip parameters that were loaded.
    """
    known = config_entry.read(getattr(module, "config", None))
    if known is None or not hasattr(module, biases.ATTRIBUTE):
        return
    bias = getattr(module, biases.ATTRIBUTE)
    if isinstance(known.bias, biases.PerHead):
        if isinstance(bias, StateBias):
            assert bias.slope is not None
            init.copy_(bias.offset, known.bias.start(bias.offset.numel()))
            init.zeros_(bias.slope)
            init.zeros_(bias.weight)
        else:
            init.copy_(bias, known.bias.start(bias.numel()))
    branch = getattr(module, extra_norms.BRANCH, None)
    if branch is not None and known.layer_scale is not None:
        init.constant_(branch.scale.gamma, known.layer_scale)
