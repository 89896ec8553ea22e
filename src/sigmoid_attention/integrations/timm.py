"""Sigmoid attention in timm's vision transformers, from version 1.0.23.

    model = timm.create_model("vit_tiny_patch16_224", attn_layer=SigmoidAttention, qk_norm=True)
    convert(model)  # sets the bias, and checks that no softmax is left

The parameters keep timm's names. LayerScale is timm's ``init_values``, QK-norm its ``qk_norm``.
timm's ``gated=True`` is a gate on the output, which is something else.
"""

import copy
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn

from sigmoid_attention.attention import NegLogLength, arguments, validation
from sigmoid_attention.integrations.softmax_detection import trace_softmax
from sigmoid_attention.integrations.timm_layers import (
    ATTN_LAYERS,
    CLASSES,
    PatchEmbed,
    SigmoidAttention,
    SigmoidAttentionRope,
    SigmoidBias,
    SigmoidEvaAttention,
    SigmoidLayer,
)
from sigmoid_attention.integrations.undo import all_or_nothing

__all__ = [
    "SigmoidAttention",
    "SigmoidAttentionRope",
    "SigmoidEvaAttention",
    "convert",
    "register",
]


def register() -> None:
    """Make ``attn_layer="sigmoid"`` known to timm's vision transformers, in this process.

    Example:
        >>> import timm
        >>> register()
        >>> model = timm.create_model("vit_tiny_patch16_224", attn_layer="sigmoid", depth=1)
        >>> type(model.blocks[0].attn).__name__
        'SigmoidAttention'
    """
    ATTN_LAYERS["sigmoid"] = SigmoidAttention


def convert(
    model: nn.Module,
    bias: SigmoidBias | None = None,
    *,
    example_input: Any = None,
    keep: Collection[str] = (),
) -> nn.Module:
    """Convert every attention of a timm model to sigmoid attention, in place, and verify it.

    Parameters keep their names and values; weights that were trained with a softmax have to be
    trained further. A forward pass of the converted model is watched: a module that was not
    reached, or one that still runs a softmax, is an error. After an error of any kind the model is
    what it was.

    Args:
        model: with attention of the classes `Attention`, `AttentionRope` or `EvaAttention`, or
            made with ``attn_layer=SigmoidAttention``.
        bias: a number or a policy. None is ``NegLogLength(n)`` with n = patches + prefix tokens
            of the model as it is built, before any patch dropout. A `Learned` is copied for each
            module, as the parameter ``sigmoid_bias.value`` of shape (heads,), and so is a
            `LearnedCentring`, as ``sigmoid_bias.strength``.
        example_input: what the watched pass reads; None for a blank image of the model's size.
        keep: names of modules that may keep a softmax, such as "attn_pool".

    Returns:
        The model.

    Raises:
        TypeError: the model or the bias has a wrong type.
        ValueError: there is no such attention, the bias or the input is unclear, or a softmax
            would be left; the sentence names the module.

    Example:
        >>> import timm
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
        >>> convert(model).blocks[0].attn.sigmoid_bias
        NegLogLength(n=5, offset=0.0)
    """
    arguments.instance("model", model, nn.Module, "a model of timm")
    found: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if type(module) in CLASSES or isinstance(module, SigmoidLayer)
    }
    if not found:
        known = ", ".join(each.__name__ for each in CLASSES)
        raise ValueError(f"model: {type(model).__name__} has no attention of the classes {known}")
    bias = NegLogLength(_tokens(model)) if bias is None else bias
    for name, module in found.items():
        bias = validation.layer_bias(bias, module.num_heads, layer=name)
    if example_input is None:
        example_input = _blank_image(model)
    with all_or_nothing(model.modules()):
        for module in found.values():
            _become_sigmoid(module, bias)
        _check(model, found, lambda: model(example_input), keep)
    return model


def _become_sigmoid(module: Any, bias: SigmoidBias) -> None:
    if not isinstance(module, SigmoidLayer):
        module.__class__ = CLASSES[type(module)]
        module.first_tokens = None
    else:
        # Where a submodule was, torch lets nothing but a submodule follow.
        del module.sigmoid_bias
    if isinstance(bias, nn.Module):
        parameter = next(module.parameters(), None)
        if parameter is None:
            raise ValueError(
                f"bias: {type(bias).__name__} puts a parameter beside those of a module, and "
                f"{type(module).__name__} has none; a model is quantised after its conversion"
            )
        bias = copy.deepcopy(bias).to(parameter.device)
    module.sigmoid_bias = bias


def _check(
    model: nn.Module, found: Collection[str], run: Callable[[], Any], keep: Collection[str]
) -> None:
    trace = trace_softmax(model, run)
    for name, operator in trace.softmaxes.items():
        if not any(name == kept or name.startswith(f"{kept}.") for kept in keep):
            kind = type(model.get_submodule(name)).__name__
            raise ValueError(
                f"model: {name or 'the model'} ({kind}) would still run a softmax, in {operator}; "
                f"it can stay with keep=({name!r},)"
            )
    for name in found:
        if name not in trace.ran:
            raise ValueError(f"model: {name} was not reached by the example input")


def _tokens(model: Any) -> int:
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    if patches is None:
        raise ValueError(
            f"bias: {type(model).__name__} does not say how many tokens it is trained with; give "
            f"the number, e.g. bias=NegLogLength(197)"
        )
    return patches + getattr(model, "num_prefix_tokens", 0)


def _blank_image(model: Any) -> Tensor:
    embed = getattr(model, "patch_embed", None)
    size: Any = embed.img_size if isinstance(embed, PatchEmbed) else None
    if size is None:
        raise ValueError(
            f"example_input: {type(model).__name__} does not say how large its images are; give "
            f"one, e.g. example_input=torch.zeros(1, 3, 224, 224)"
        )
    weight = model.patch_embed.proj.weight
    return weight.new_zeros(1, weight.shape[1], *size)
