"""Which attention modules a model has, and which of them call what is registered.

A model may accept any `attn_implementation` and go on with a softmax of its own; only a call tells.

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
from sigmoid_attention.integrations.transformers.linear import first_input
from sigmoid_attention.integrations.transformers.meta import without_numbers
from sigmoid_attention.integrations.transformers.paged import CannotRun

_ATTENTION = re.compile("attention|attn", re.IGNORECASE)
_calls: ContextVar["_Calls"] = ContextVar("calls")


class Reached(NamedTuple):
    """An attention module of a model that calls what is registered."""

    name: str
    module: nn.Module
    parent: nn.Module | None
    shape: HeadShape


class _Calls(NamedTuple):
    """Who called, and the channels of what every module was given."""

    shapes: dict[nn.Module, HeadShape]
    dims: dict[nn.Module, int]


def probe(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Stands in for the operator during a counted forward: notes who called, and gives zeros."""
    refuse_unknown(module, kwargs)
    heads, head_dim = query.shape[1], query.shape[3]
    calls = _calls.get()
    calls.shapes[module] = HeadShape(heads, key.shape[1], head_dim, calls.dims.get(module, 0))
    return query.new_zeros(query.shape[0], query.shape[2], heads, value.shape[3]), None


def reached_modules(
    model: PreTrainedModel,
    inputs: Mapping[str, Any] | None = None,
    except_for: Sequence[str] = (),
) -> list[Reached]:
    """Every attention module of a model, after a counted forward that has to reach them all.

    The forward changes nothing: the model's mode and implementation are put back in any case.

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
        with _probing(model), _noting(model, calls.dims), without_numbers(model), torch.no_grad():
            model(**batch)
            missed = _missed(model, set(shapes), except_for)
            if missed and inputs is None and (states := encoder_states(model)):
                # A decoder calls its cross-attention only where there is something to attend to.
                with suppress(Exception):
                    model(**batch, **states)
                missed = _missed(model, set(shapes), except_for)
    except CannotRun:
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
        Reached(name, module, modules.get(name.rpartition(".")[0]) if name else None, shape)
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
    """Modules that are called attention and neither were reached, nor hold or are part of one.

    In transformers all that weigh keys by a softmax of their own are called so, but for a few
    pooling heads. One that holds others of that name is judged by these.
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
    """By name; dropout, masks and positions may carry it as well, but have no matrices."""
    return (
        _ATTENTION.search(type(module).__name__) is not None
        and not isinstance(module, PreTrainedModel)
        and any(parameter.dim() > 1 for parameter in module.parameters())
    )


@contextmanager
def _probing(model: PreTrainedModel) -> Iterator[None]:
    """The model in evaluation mode, with the probe in the place of its attention."""
    configs = config_entry.configs(model)
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
def _noting(model: nn.Module, dims: dict[nn.Module, int]) -> Iterator[None]:
    """Every module's hidden states leave the number of their channels."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = first_input(args, kwargs)
        if hidden is not None and hidden.dim() == 3:
            dims[module] = hidden.shape[-1]

    hooks = [x.register_forward_pre_hook(note, with_kwargs=True) for x in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def set_implementation(model: PreTrainedModel, name: str) -> None:
    """Set it on every config that a module of the model holds, each by itself.

    ``model.set_attn_implementation`` skips a class whose source does not look right to it, with a
    warning; here a counted forward decides.
    """
    for config in config_entry.configs(model):
        config._attn_implementation_internal = name
