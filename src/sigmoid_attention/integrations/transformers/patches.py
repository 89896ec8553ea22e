"""What makes a converted checkpoint come back as it was, and refuse to run as anything else.

A config that carries our key takes no other implementation, however one is set: by
``from_pretrained(..., attn_implementation=...)``, ``set_attn_implementation`` or by hand. And a
model that is built from such a config gets its biases and norms before weights are loaded.
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
    HeadShape,
    Record,
)
from sigmoid_attention.integrations.transformers.linear import LinearBias

_STORED = "_attn_implementation_internal"
# Where a config keeps whether attentions are returned, and transformers' check of it.
_ATTENTIONS = "_output_attentions"
_CHECK = "validate_output_attentions"


class _Implementation:
    """Where a config keeps its implementation. Without ``__get__``, so that reading costs nothing.

    transformers sets it before other keys when it reads a config, and anew when it builds a model.
    """

    def __set__(self, config: PreTrainedConfig, name: str | None) -> None:
        held = vars(config)
        held[_STORED] = _allowed(config, name) if KEY in held else name


class _Key:
    """The key itself: a config that gets it takes the implementation that goes with it."""

    def __get__(self, config: PreTrainedConfig | None, owner: type) -> Any:
        if config is None or KEY not in vars(config):
            raise AttributeError(f"{owner.__name__} has no attribute {KEY!r}")
        return vars(config)[KEY]

    def __set__(self, config: PreTrainedConfig, entry: dict[str, Any]) -> None:
        Record.from_json(entry)
        held = vars(config)
        held[_STORED] = _allowed(config, held.get(_STORED))
        held[KEY] = entry

    def __delete__(self, config: PreTrainedConfig) -> None:
        del vars(config)[KEY]


def _allowed(config: PreTrainedConfig, name: str | None) -> str:
    # "eager" is what transformers asks of a config that returns attentions, and sets it by itself.
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
    """Put the guard into transformers' base classes, once."""
    setattr(PreTrainedConfig, _STORED, _Implementation())
    setattr(PreTrainedConfig, KEY, _Key())
    _let_attentions_be_returned()
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
            _start(module)

    setattr(PreTrainedModel, post_init.__name__, restoring)
    setattr(PreTrainedModel, initialize.__name__, initializing)


def _let_attentions_be_returned() -> None:
    """Of all implementations transformers lets eager alone have ``config.output_attentions``.

    A converted model returns its attentions as well.
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
    # Classes that are there already have lists of their checks.
    kinds: list[type] = [PreTrainedConfig]
    for kind in kinds:
        kinds += kind.__subclasses__()
        checks = vars(kind).get("__class_validators__", [])
        checks[:] = [checking if each is check else each for each in checks]


def restore(model: PreTrainedModel) -> None:
    """Give the attention modules of a new model what the key of their config asks for."""
    modules = dict(model.named_modules())
    members: dict[tuple[int, str], list[str]] = defaultdict(list)
    records: dict[int, Record] = {}
    for name, module in modules.items():
        config = getattr(module, "config", None)
        known = records.get(id(config)) or config_entry.of(config)
        if known is not None and type(module).__name__ in known.shapes:
            records[id(config)] = known
            members[id(config), type(module).__name__].append(name)
    for (config, kind), names in members.items():
        shapes = records[config].shapes[kind]
        # Shapes that differ are given for all modules in order; a part of the model waits for the
        # whole, which is built around it.
        if len(shapes) in (1, len(names)):
            for place, name in enumerate(names):
                parent = modules.get(name.rpartition(".")[0]) if name else None
                shape = shapes[place if len(shapes) > 1 else 0]
                equip(modules[name], parent, records[config], shape)
    if records:
        keep_bias_in_fp32(model)
        config_entry.declare(model.config)


def equip(module: nn.Module, parent: nn.Module | None, asked: Record, shape: HeadShape) -> None:
    """Give one attention module its bias and its norms, once."""
    if hasattr(module, biases.ATTRIBUTE):
        return
    module.sigmoid_shape = shape  # pyright: ignore[reportArgumentType]
    biases.place(module, asked.bias, shape.heads, shape.dim)
    extra_norms.place(module, parent, asked, shape)


def keep_bias_in_fp32(model: PreTrainedModel) -> None:
    """A bias near -log n loses most of its digits in bf16."""
    strict = model._keep_in_fp32_modules_strict
    model._keep_in_fp32_modules_strict = {*(strict or ()), biases.ATTRIBUTE}


def _start(module: nn.Module) -> None:
    """Values for what a checkpoint of a softmax does not have, as transformers fills missing keys.

    Its functions leave alone what was loaded.
    """
    known = config_entry.of(getattr(module, "config", None))
    if known is None or not hasattr(module, biases.ATTRIBUTE):
        return
    bias = getattr(module, biases.ATTRIBUTE)
    if isinstance(known.bias, biases.PerHead):
        if isinstance(bias, LinearBias):
            init.copy_(bias.offset, known.bias.start(bias.offset.numel()))
            init.zeros_(bias.slope)
            init.zeros_(bias.weight)
        else:
            init.copy_(bias, known.bias.start(bias.numel()))
    branch = getattr(module, extra_norms.BRANCH, None)
    if branch is not None and known.layer_scale is not None:
        init.constant_(branch.scale.gamma, known.layer_scale)
