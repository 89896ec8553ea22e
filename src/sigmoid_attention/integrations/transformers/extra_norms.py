"""Add QK-norm, LayerScale and hybrid norm to attention modules that lack them.

Each is a submodule of the attention module, so that it is trained, saved and moved with it. It acts
through a forward hook on a projection. The hook is a method of the submodule, so that a copy of the
model calls the copy's submodule. A module that later replaces the projection, such as an adapter or
a quantised layer, gets the hook.

Shape letters: B batch, N tokens, H query heads, G key heads, D head dim, C model dim.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from sigmoid_attention.attention import arguments
from sigmoid_attention.integrations.transformers.config_entry import ConfigEntry, HeadShape
from sigmoid_attention.nn.norm import NORMS, LayerScale, QKNorm, RMSNorm

QK_NORM = "sigmoid_qk_norm"
BRANCH = "sigmoid_branch"

# Names of the projections, in the order of the search.
_QUERY_AND_KEY = (("q_proj", "k_proj"), ("query", "key"), ("q", "k"), ("q_lin", "k_lin"))
_FUSED = ("Wqkv", "qkv_proj", "c_attn", "qkv")
_OUTPUT = ("o_proj", "out_proj", "c_proj", "Wo", "o", "out_lin", "proj", "dense")
_OUTPUT_BESIDE = ("output.dense",)
_OWN_NORMS = ("q_norm", "k_norm", "query_norm", "key_norm", "q_layernorm", "k_layernorm")


def validated_scale(layer_scale: Any) -> float | None:
    """The initial value of LayerScale as a Python number."""
    if layer_scale is None:
        return None
    wanted = "positive or None"
    number = arguments.number("layer_scale", layer_scale, wanted)
    if not number > 0:
        raise ValueError(f"layer_scale must be {wanted}, got {number}")
    return number


def check_options(qk_norm: str | None, norm: str | None) -> None:
    """Validate the options that do not depend on the modules."""
    arguments.one_of("qk_norm", qk_norm, (*NORMS, None), "'rms', 'layer' or None")
    arguments.one_of("norm", norm, ("hybrid", None), "'hybrid' or None")


class ProjectionNorm(QKNorm):
    """QK-norm on the output (B, N, H D) of the projections, before any rotation."""

    def __init__(self, kind: str, shape: HeadShape) -> None:
        super().__init__(kind, shape.head_dim)
        self.shape = shape

    def after_query(self, _module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        return self._each_head(self.query, out)

    def after_key(self, _module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        return self._each_head(self.key, out)

    def after_fused(self, _module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        heads, key_heads, head_dim, _ = self.shape
        query, key, value = out.split(
            [heads * head_dim, key_heads * head_dim, key_heads * head_dim], dim=-1
        )
        parts = (self._each_head(self.query, query), self._each_head(self.key, key), value)
        return torch.cat(parts, dim=-1)

    def _each_head(self, norm: nn.Module, out: Tensor) -> Tensor:
        return norm(out.unflatten(-1, (-1, self.shape.head_dim))).to(out.dtype).flatten(-2)


class ResidualBranch(nn.Module):
    """The residual branch of attention: scale * norm(projection), (B, N, C)."""

    def __init__(self, dim: int, layer_scale: float | None, norm: str | None) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm is None else RMSNorm(dim)
        self.scale = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def after(self, _module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        return self.scale(self.norm(out))


@functools.cache
def _watch_replacements() -> None:
    register_module_module_registration_hook(_move_hooks)


def _move_hooks(parent: nn.Module, name: str, new: nn.Module | None) -> None:
    """Move our hooks from a module to the one that replaces it."""
    old = parent._modules.get(name)
    if old is None or new is None or old is new:
        return
    for key, hook in list(old._forward_hooks.items()):
        if isinstance(getattr(hook, "__self__", None), ProjectionNorm | ResidualBranch):
            del old._forward_hooks[key]
            new.register_forward_hook(hook)


def attach(
    module: nn.Module, parent: nn.Module | None, record: ConfigEntry, shape: HeadShape
) -> None:
    """Add the options of the entry to one attention module; `check_modules` has validated them."""
    _watch_replacements()
    if record.qk_norm is not None:
        projections = _query_and_key(module, shape)
        norms = ProjectionNorm(record.qk_norm, shape).to(_floating_parameter(projections[0]))
        if len(projections) == 1:
            projections[0].register_forward_hook(norms.after_fused)
        else:
            projections[0].register_forward_hook(norms.after_query)
            projections[1].register_forward_hook(norms.after_key)
        module.add_module(QK_NORM, norms)
    if record.layer_scale is not None or record.norm is not None:
        projection = output_projection(module, parent)
        branch = ResidualBranch(_width(projection), record.layer_scale, record.norm)
        module.add_module(BRANCH, branch.to(_floating_parameter(projection)))
        projection.register_forward_hook(branch.after)


def check_modules(
    record: ConfigEntry, modules: list[tuple[nn.Module, nn.Module | None, HeadShape]]
):
    """Raise ``ValueError``, before any change, for a module that cannot take an option."""
    for module, parent, shape in modules:
        if record.qk_norm is not None:
            own = [name for name in _OWN_NORMS if hasattr(module, name)]
            if own:
                raise ValueError(
                    f"qk_norm: {type(module).__name__} normalises its queries and keys already "
                    f"({own[0]})"
                )
            _floating_parameter(_query_and_key(module, shape)[0])
        if record.layer_scale is not None or record.norm is not None:
            _floating_parameter(output_projection(module, parent))


def _width(projection: nn.Module) -> int:
    """Output channels of a linear layer; GPT-2's Conv1D calls them nf."""
    return projection.nf if hasattr(projection, "nf") else projection.out_features  # pyright: ignore[reportReturnType]


def _floating_parameter(projection: nn.Module) -> Tensor:
    """A parameter that gives the new norm its device and dtype."""
    for parameter in projection.parameters():
        if parameter.is_floating_point():
            return parameter
    raise ValueError(
        f"qk_norm, layer_scale, norm: {type(projection).__name__} has no floating weights to go "
        f"beside; a model is quantised after its conversion, not before"
    )


def _query_and_key(module: nn.Module, shape: HeadShape) -> tuple[nn.Module, ...]:
    """The query and key projections, or the fused projection of query, key and value."""
    heads, key_heads, head_dim, _ = shape
    for query, key in _QUERY_AND_KEY:
        if hasattr(module, query) and hasattr(module, key):
            found = getattr(module, query), getattr(module, key)
            if tuple(map(_width, found)) == (heads * head_dim, key_heads * head_dim):
                return found
    for name in _FUSED:
        if hasattr(module, name):
            fused = getattr(module, name)
            if _width(fused) == (heads + 2 * key_heads) * head_dim:
                return (fused,)
    raise ValueError(
        f"qk_norm: {type(module).__name__} has no projection that gives {heads} query heads and "
        f"{key_heads} key heads of {head_dim} channels; convert it without qk_norm"
    )


def output_projection(module: nn.Module, parent: nn.Module | None) -> nn.Module:
    """The output projection of an attention module."""
    for owner, names in ((module, _OUTPUT), (parent, _OUTPUT_BESIDE)):
        for name in names:
            found = owner
            for part in name.split("."):
                found = getattr(found, part, None)
            if isinstance(found, nn.Module):
                return found
    raise ValueError(
        f"layer_scale, norm: {type(module).__name__} has no output projection under a name that "
        f"is known ({', '.join(_OUTPUT)})"
    )
