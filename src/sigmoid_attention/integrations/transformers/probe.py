"""Find the attention modules of a model that call the registered implementation.

A model may accept any `attn_implementation` and still compute its own softmax, so that only a
forward pass can tell.

Shape letters: B batch, H query heads, G key heads, Q queries, D head dim, E value dim.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sigmoid_attention.integrations.transformers import config_entry
from sigmoid_attention.integrations.transformers.config_entry import PROBE, HeadShape
from sigmoid_attention.integrations.transformers.forward import refuse_unknown
from sigmoid_attention.integrations.transformers.inputs import dummy_inputs, encoder_states
from sigmoid_attention.integrations.transformers.meta import without_numbers
from sigmoid_attention.integrations.transformers.paged import UnsupportedCall
from sigmoid_attention.integrations.transformers.recorded_input import first_input

_ATTENTION = re.compile("attention|attn", re.IGNORECASE)
_calls: ContextVar["_Calls"] = ContextVar("calls")


class AttentionModule(NamedTuple):
    """An attention module that calls the registered implementation."""

    name: str
    module: nn.Module
    parent: nn.Module | None
    shape: HeadShape


class _Calls(NamedTuple):
    """The modules that called the probe, and the input channels of every module."""

    shapes: dict[nn.Module, HeadShape]
    dims: dict[nn.Module, int]


def probe(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Replace the operator during a probing forward pass: record the caller, return zeros."""
    refuse_unknown(module, kwargs)
    heads, head_dim = query.shape[1], query.shape[3]
    calls = _calls.get()
    calls.shapes[module] = HeadShape(heads, key.shape[1], head_dim, calls.dims.get(module, 0))
    return query.new_zeros(query.shape[0], query.shape[2], heads, value.shape[3]), None


def find_attention_modules(
    model: PreTrainedModel,
    inputs: Mapping[str, Any] | None = None,
    except_for: Sequence[str] = (),
) -> list[AttentionModule]:
    """Every attention module of a model, found by a forward pass that must reach them all.

    The model's mode and implementation are restored afterwards.

    Args:
        inputs: a batch for ``model.forward`` that passes through the whole model; made from the
            config where it is None.
        except_for: names of classes that may keep their own attention.

    Raises:
        ValueError: the batch does not run, no module was reached, or some were not; the sentence
            names them.
    """
    batch = dummy_inputs(model) if inputs is None else inputs
    calls = _Calls({}, {})
    shapes = calls.shapes
    token = _calls.set(calls)
    try:
        with (
            _probe_installed(model),
            _recording_channels(model, calls.dims),
            without_numbers(model),
            torch.no_grad(),
        ):
            model(**batch)
            missed = _missed(model, set(shapes), except_for)
            if missed and inputs is None and (states := encoder_states(model)):
                # A decoder calls its cross-attention only if there are encoder states.
                with suppress(Exception):
                    model(**batch, **states)
                missed = _missed(model, set(shapes), except_for)
    except UnsupportedCall:
        raise
    except Exception as error:
        raise _does_not_run(model, error) from error
    finally:
        _calls.reset(token)
    if missed or not shapes:
        named = ", ".join(missed) if missed else "there are no attention modules"
        raise ValueError(
            f"{type(model).__name__}: not every attention module calls transformers' "
            f"AttentionInterface, so they would go on with a softmax: {named}"
        )
    modules = dict(model.named_modules())
    return [
        AttentionModule(name, module, modules.get(name.rpartition(".")[0]) if name else None, shape)
        for name, module in modules.items()
        if (shape := shapes.get(module)) is not None
    ]


def _does_not_run(model: PreTrainedModel, error: Exception) -> ValueError:
    remedy = "give one that passes through all of its attention modules"
    if model.device.type == "meta":
        remedy += ", or convert the model while its weights are in memory, before it is offloaded"
    return ValueError(
        f"inputs: {type(model).__name__} does not run on this batch ({type(error).__name__}: "
        f"{error}); {remedy}"
    )


def _missed(model: nn.Module, reached: set[nn.Module], except_for: Sequence[str]) -> list[str]:
    """Attention modules, by their class name, that did not call the probe.

    In transformers all modules with an own softmax over keys have such a name, except a few pooling
    heads. A module that contains others of that name is judged by those.
    """
    inside: set[nn.Module] = {part for module in reached for part in module.modules()}
    missed = []
    for name, module in model.named_modules():
        parts = [part for part in module.modules() if _projects_attention(part)]
        if (
            parts == [module]
            and module not in inside
            and not reached.intersection(module.modules())
        ):
            kind = type(module).__name__
            if kind not in except_for:
                missed.append(f"{name} ({kind})")
    return missed


def _projects_attention(module: nn.Module) -> bool:
    """By class name; dropout, masks and positions may have it as well, but have no matrices."""
    return (
        _ATTENTION.search(type(module).__name__) is not None
        and not isinstance(module, PreTrainedModel)
        and any(parameter.dim() > 1 for parameter in module.parameters())
    )


@contextmanager
def _probe_installed(model: PreTrainedModel) -> Iterator[None]:
    """Put the model into evaluation mode, with the probe in place of its attention."""
    configs = config_entry.model_configs(model)
    implementations = [config._attn_implementation for config in configs]
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        set_implementation(model, PROBE)
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for config, implementation in zip(configs, implementations, strict=True):
            config._attn_implementation_internal = implementation


@contextmanager
def _recording_channels(model: nn.Module, dims: dict[nn.Module, int]) -> Iterator[None]:
    """Record the number of input channels of every module."""

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = first_input(args, kwargs)
        if hidden is not None and hidden.dim() == 3:
            dims[module] = hidden.shape[-1]

    hooks = [x.register_forward_pre_hook(record, with_kwargs=True) for x in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def set_implementation(model: PreTrainedModel, name: str) -> None:
    """Set the implementation in every config of the model's modules.

    ``model.set_attn_implementation`` would skip classes after an inspection of their source; here
    a forward pass decides.
    """
    for config in config_entry.model_configs(model):
        config._attn_implementation_internal = name
