"""Convert a model of transformers to sigmoid attention."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from sigmoid_attention.attention import NegLogLength, arguments
from sigmoid_attention.integrations.transformers import biases, config_entry, extra_norms, patches
from sigmoid_attention.integrations.transformers.biases import ModuleBias
from sigmoid_attention.integrations.transformers.config_entry import NAME, ConfigEntry, HeadShape
from sigmoid_attention.integrations.transformers.probe import (
    AttentionModule,
    find_attention_modules,
    set_implementation,
)
from sigmoid_attention.integrations.transformers.registration import register
from sigmoid_attention.integrations.undo import all_or_nothing

Converted = TypeVar("Converted", PreTrainedModel, PreTrainedConfig)


def convert(
    model_or_config: Converted,
    *,
    bias: ModuleBias | Mapping[str, ModuleBias] | None = None,
    centred_keys: bool = False,
    qk_norm: str | None = None,
    layer_scale: float | None = None,
    norm: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    except_for: Sequence[str] = (),
) -> Converted:
    r"""Convert every attention of a model to sigmoid attention, in place; on an error, none.

    Weights stay as they are. A model that was trained with a softmax has to be trained further:
    a sigmoid with other weights than its own gives nonsense.

    Args:
        model_or_config: a model of transformers, or a config for one that is yet to be built or
            loaded; ``from_pretrained(path, config=config)`` then initializes the new parameters.
        bias: added to every logit: a number, a policy (:class:`NegLogLength` with the training
            length, :class:`NegLogVisible`, :class:`RowLSE`, ...) or :class:`PerHead`, which is
            kept in the state dict; no other bias holds a tensor. A mapping gives each config
            inside a composite one its own, e.g.
            ``{"text_config": NegLogLength(77), "vision_config": NegLogLength(50)}``. None is
            ``NegLogLength(config.max_position_embeddings)``.
        centred_keys: subtract from every key a part λ of the mean of the keys that its query sees
            (:class:`CentredKeys`). λ starts at 1. It is the parameter ``sigmoid_bias_centring``,
            (heads,), of each attention module. A call with a cache reads all of its keys for the
            mean.
        qk_norm: "rms" or "layer": normalise each head's query and key, before any rotation.
        layer_scale: start of a trained gain per channel on what attention adds.
        norm: "hybrid": an RMSNorm on what attention adds (Ramapuram et al. 2024, section 5).
        inputs: a batch that passes through every attention module, for the counted forward; made
            from the config where it is None.
        except_for: names of classes of attention modules that may keep their own.

    Returns:
        The same model or config. The config carries the key ``sigmoid_attention``, so that
        ``save_pretrained`` and ``from_pretrained`` keep all of this.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an attention module is not reached (the sentence names it), has no place for
            an option or no parameters (quantise after the conversion), or there is no length to
            take a bias from. Model and config are then what they were.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from sigmoid_attention.integrations.transformers import PerHead, convert
        >>> from sigmoid_attention import NegLogLength
        >>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
        >>> model = convert(model, bias=PerHead(NegLogLength(128)), qk_norm="rms")
        >>> model.model.layers[0].self_attn.sigmoid_bias.shape
        torch.Size([2])
    """
    kinds, wanted = PreTrainedModel | PreTrainedConfig, "a model or a config of transformers"
    arguments.instance("model_or_config", model_or_config, kinds, wanted)
    layer_scale = extra_norms.validated_scale(layer_scale)
    extra_norms.check_options(qk_norm, norm)
    register()
    options: dict[str, Any] = {
        "centred_keys": bool(arguments.switch("centred_keys", centred_keys)),
        "qk_norm": qk_norm,
        "layer_scale": layer_scale,
        "norm": norm,
    }
    if isinstance(model_or_config, PreTrainedConfig):
        configs = [config for _, config in config_entry.config_tree(model_or_config)]
        with all_or_nothing(configs):
            skeleton = _skeleton(model_or_config)
            convert(skeleton, bias=bias, inputs=inputs, except_for=except_for, **options)
            _take_keys(model_or_config, skeleton.config)
    else:
        with all_or_nothing(
            [*model_or_config.modules(), *config_entry.model_configs(model_or_config)]
        ):
            _convert_model(model_or_config, bias, options, inputs, except_for)
    return model_or_config


def _convert_model(
    model: PreTrainedModel,
    bias: ModuleBias | Mapping[str, ModuleBias] | None,
    options: dict[str, Any],
    inputs: Mapping[str, Any] | None,
    except_for: Sequence[str],
) -> None:
    if attention_modules(model):
        raise ValueError(
            f"model_or_config: this {type(model).__name__} was converted before; set_bias gives "
            f"it another bias"
        )
    reached = find_attention_modules(model, inputs, except_for)
    owners = [_owner(model, each) for each in reached]
    paths = {id(config): path for path, config in config_entry.config_tree(model.config)}
    plan = _biases(bias, {id(owner): owner for owner in owners}, paths)
    records = {
        id(owner): ConfigEntry(
            bias=plan[id(owner)],
            **options,
            shapes=_shapes(
                [each for each, its in zip(reached, owners, strict=True) if its is owner]
            ),
        )
        for owner in owners
    }
    extra_norms.check_modules(
        next(iter(records.values())), [(each.module, each.parent, each.shape) for each in reached]
    )
    set_implementation(model, NAME)
    for each, owner in zip(reached, owners, strict=True):
        for config in (owner, getattr(each.module, "config", owner)):
            config_entry.write(config, records[id(owner)])
        patches.attach(each.module, each.parent, records[id(owner)], each.shape)
    patches.keep_bias_in_fp32(model)
    config_entry.declare(model.config)


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The converted attention modules of a model, by name."""
    arguments.instance("model", model, nn.Module, "a model of torch")
    return {
        name: module for name, module in model.named_modules() if hasattr(module, biases.ATTRIBUTE)
    }


def set_bias(model: PreTrainedModel, bias: ModuleBias) -> None:
    """Set another bias in all attention modules of a converted model and in its config.

    The values of the former ``sigmoid_bias`` are lost. For a policy that a config cannot hold, use
    :func:`replace_bias` on each module.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: the model is not converted, or a config cannot hold such a bias.
    """
    bias = biases.checked(bias)
    modules = attention_modules(model)
    if not modules:
        raise ValueError(f"model: no attention module of this {type(model).__name__} is converted")
    configs = config_entry.model_configs(model)
    with all_or_nothing([*modules.values(), *configs]):
        for module in modules.values():
            replace_bias(module, bias)
        for config in configs:
            if (known := config_entry.read(config)) is not None:
                config_entry.write(config, dataclasses.replace(known, bias=bias))


def replace_bias(module: nn.Module, bias: ModuleBias) -> None:
    """Set another bias, of any policy, in one converted attention module; configs do not change."""
    arguments.instance("module", module, nn.Module, "a converted attention module")
    shape: Any = module.sigmoid_shape
    with all_or_nothing([module]):
        biases.attach(module, bias, shape.heads, shape.dim)


def _owner(model: PreTrainedModel, each: AttentionModule) -> PreTrainedConfig:
    """The saved config that a module belongs to.

    The module's own config may be a copy, as in T5's stacks, which is not saved.
    """
    tree = {id(config) for _, config in config_entry.config_tree(model.config)}
    parts = each.name.split(".")
    inner = (model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts), -1, -1))
    configs = (getattr(module, "config", model.config) for module in inner)
    return next(config for config in configs if id(config) in tree)


def _biases(
    bias: ModuleBias | Mapping[str, ModuleBias] | None,
    owners: dict[int, PreTrainedConfig],
    paths: dict[int, str],
) -> dict[int, ModuleBias]:
    """The bias of each config with attention modules."""
    plan: dict[int, ModuleBias]
    if isinstance(bias, Mapping):
        wanted = {paths[key]: key for key in owners}
        if set(bias) != set(wanted):
            raise ValueError(
                f"bias must name the configs {sorted(wanted)} of this model, got {sorted(bias)}"
            )
        plan = {key: bias[path] for path, key in wanted.items()}
    elif bias is None:
        plan = {key: _default(config) for key, config in owners.items()}
    else:
        plan = dict.fromkeys(owners, bias)
    return {key: biases.checked(each) for key, each in plan.items()}


def _default(config: PreTrainedConfig) -> NegLogLength:
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int):
        raise ValueError(
            f"bias: {type(config).__name__} has no max_position_embeddings to take -log of; give "
            f"the number of keys that a query sees in training, e.g. bias=NegLogLength(1024)"
        )
    return NegLogLength(length)


def _shapes(reached: list[AttentionModule]) -> dict[str, list[HeadShape]]:
    """Head shapes by class; a single shape if all modules of the class agree."""
    found: dict[str, list[HeadShape]] = {}
    for each in reached:
        found.setdefault(type(each.module).__name__, []).append(each.shape)
    return {kind: all[:1] if len(set(all)) == 1 else all for kind, all in found.items()}


# The first class that maps a config determines its model.
_AUTO = (
    transformers.AutoModel,
    transformers.AutoModelForCausalLM,
    transformers.AutoModelForSeq2SeqLM,
    transformers.AutoModelForImageTextToText,
    transformers.AutoModelForSpeechSeq2Seq,
)


def _skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a config on the meta device, without memory for its weights."""
    autos = _AUTO
    if getattr(config, "is_decoder", False) and not config.is_encoder_decoder:
        # The decoder alone, without the encoder of the whole model.
        autos = (transformers.AutoModelForCausalLM, *_AUTO)
    known = [auto for auto in autos if type(config) in auto._model_mapping]
    if not known:
        raise ValueError(
            f"model_or_config: transformers has no model for a {type(config).__name__} by itself; "
            f"convert the config that holds it, or a model"
        )
    with torch.device("meta"):
        skeleton = known[0].from_config(copy.deepcopy(config))
    # Some models create parameters on the CPU and ignore the default device.
    return skeleton.to("meta")


def _take_keys(config: PreTrainedConfig, converted: PreTrainedConfig) -> None:
    known = dict(config_entry.config_tree(converted))
    config._attn_implementation = NAME
    for path, each in config_entry.config_tree(config):
        if (found := config_entry.read(known[path])) is not None:
            config_entry.write(each, found)
    config_entry.declare(config)
