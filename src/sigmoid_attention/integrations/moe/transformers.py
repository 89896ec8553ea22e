"""Experts and routers in models of transformers: grouped kernel, layer, and load balancing.

transformers (5.23) has DeepSeek-V3's correction bias in some thirty architectures but never updates
it. `balance` adds the update.

Shape letters: T tokens, K experts a token visits, S visits in the experts' order, E experts,
C model dim.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sigmoid_attention.attention.keep_fp32 import keep_fp32
from sigmoid_attention.integrations.importing import remedy
from sigmoid_attention.integrations.moe.names import from_layout
from sigmoid_attention.nn.balance import LoadBalancer
from sigmoid_attention.nn.experts import visit_experts
from sigmoid_attention.nn.grouped import each_expert
from sigmoid_attention.nn.moe import MoE, MoEConfig
from sigmoid_attention.nn.router import count_visits

try:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
except (ImportError, RuntimeError) as error:
    raise ImportError(remedy("transformers", "5.17 or newer (tested to 5.24)", error)) from error

NAME = "sigmoid_attention"
BIAS = "e_score_correction_bias"


def register_experts() -> None:
    """Make ``model.set_experts_implementation("sigmoid_attention")`` known to transformers.

    Example:
        >>> register_experts()
        >>> NAME in ALL_EXPERTS_FUNCTIONS
        True
    """
    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)


def experts_forward(
    module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The output (T, C) of an experts module of transformers, by this library's grouped product.

    Tokens are (T, C), indices and weights (T, K). Biases, transposed and interleaved weights, gates
    of the model's own and norms after an expert are followed, as the module says that it has them.
    """
    settings: Any = module
    count = settings.num_experts
    # Older versions, such as 5.17, do not say whether experts are spread over processes.
    if getattr(settings, "_is_expert_parallel", True):
        # An index beyond the last expert belongs to another process, which adds its own part.
        top_k_weights = top_k_weights.masked_fill(top_k_index >= count, 0.0)
        top_k_index = top_k_index.clamp(max=count - 1)

    def project(x_SI: Tensor, name: str, ends_E: Tensor) -> Tensor:
        weight = getattr(module, name)
        y_SO = each_expert(x_SI, weight.mT if settings.is_transposed else weight, ends_E)
        if not settings.has_bias:
            return y_SO
        rows_S = torch.arange(len(x_SI), device=ends_E.device)
        expert_S = torch.searchsorted(ends_E, rows_S, right=True)
        return y_SO + getattr(module, f"{name}_bias")[expert_S]

    def visit(x_SC: Tensor, ends_E: Tensor) -> Tensor:
        if settings.has_gate:
            inner = settings._apply_gate(project(x_SC, "gate_up_proj", ends_E))
        else:
            inner = settings.act_fn(project(x_SC, "up_proj", ends_E))
        y_SC = project(inner, "down_proj", ends_E)
        normed = getattr(settings, "has_post_expert_norm", False)
        return settings.post_expert_norm(y_SC) if normed else y_SC

    return visit_experts(hidden_states, top_k_index, top_k_weights, count, visit)


def moe_config(config: PretrainedConfig, *, balance_rate: float = 1e-3) -> MoEConfig:
    """A DeepSeek-V3 configuration's mixture-of-experts layers as a `MoEConfig`.

    Raises ``ValueError`` for an activation other than silu, and for a configuration of another
    kind of model.

    Example:
        >>> from transformers import DeepseekV3Config
        >>> moe_config(DeepseekV3Config()).experts
        256
    """
    theirs: Any = config
    if theirs.model_type != "deepseek_v3":
        raise ValueError(f"config must be of a deepseek_v3 model, got {theirs.model_type!r}")
    if theirs.hidden_act != "silu":
        raise ValueError(f"config: experts are SwiGLU here, got hidden_act {theirs.hidden_act!r}")
    return MoEConfig(
        experts=theirs.n_routed_experts,
        hidden=theirs.moe_intermediate_size,
        top_k=theirs.num_experts_per_tok,
        shared_experts=theirs.n_shared_experts,
        dense_layers=theirs.first_k_dense_replace,
        normalize=theirs.norm_topk_prob,
        groups=theirs.n_group,
        top_groups=theirs.topk_group,
        route_scale=theirs.routed_scaling_factor,
        balance_rate=balance_rate,
    )


def from_deepseek(module: nn.Module, *, balance_rate: float = 1e-3) -> MoE:
    """Our layer with the weights of transformers' ``DeepseekV3MoE``, on its device, in its dtype.

    The way back is ``module.load_state_dict(to_layout(layer.state_dict(), "deepseek"))``.
    """
    config: Any = module.config
    layer = moe_config(config, balance_rate=balance_rate).build(config.hidden_size)
    first = next(module.parameters())
    layer.to(first.device, first.dtype).train(module.training)
    layer.load_state_dict(from_layout(module.state_dict(), "deepseek"))
    return layer


class _CountedRouter:
    """Adapter of a router of transformers for `LoadBalancer`: its bias, a rate, and counts."""

    def __init__(self, owner: nn.Module, experts: nn.Module, balance_rate: float) -> None:
        self.balance_rate = balance_rate
        self._owner, self._block = owner, experts
        self.tokens_per_expert = torch.zeros_like(self.correction_bias, dtype=torch.int64)

    @property
    def correction_bias(self) -> Tensor:
        # Some models hold it as a row, and some as a parameter.
        return getattr(self._owner, BIAS).detach().view(-1)

    def count(self, _experts: nn.Module, inputs: tuple, named: dict[str, Any]) -> None:
        """Before the experts are called: the token counts, unless it is not training."""
        if not self._block.training:
            return
        visits = named["top_k_index"] if "top_k_index" in named else inputs[1]
        counts = self.tokens_per_expert = self.tokens_per_expert.to(visits.device)
        every_E = torch.arange(len(counts), device=visits.device)
        count_visits(counts, visits.flatten()[:, None] == every_E)


class Balancing:
    """A model's experts being balanced, until `remove`."""

    def __init__(self, routers: list[_CountedRouter], handles: list[RemovableHandle]) -> None:
        self.routers = routers
        self._handles = handles

    def remove(self) -> None:
        """Stop counting and updating; the biases keep their values."""
        for handle in self._handles:
            handle.remove()


def balance(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    *,
    rate: float = 1e-3,
    group: "dist.ProcessGroup | None" = None,
) -> Balancing:
    """Move every ``e_score_correction_bias`` of a model against the load, before each step.

    What a `LoadBalancer` does for this library's routers, for those of transformers: DeepSeek-V3,
    GLM-4, MiniMax-M2 and others that choose experts by score + bias. Visits are counted where the
    experts are called, in training mode, once a forward pass also under gradient checkpointing.

    Raises ``ValueError`` if the model has no such bias, if one is in a dtype of less than 32 bits,
    where steps of this size are lost, or if ``rate`` is not positive.
    """
    if not rate > 0:
        raise ValueError(f"rate must be positive, got {rate}")
    routers, handles = [], []
    for experts, owner in _biased_experts(model):
        dtype = getattr(owner, BIAS).dtype
        if dtype.itemsize < 4:
            raise ValueError(f"model: {BIAS} is in {dtype}, which loses steps of {rate}")
        # Neither is it to be cast to such a dtype later.
        keep_fp32(owner, BIAS)
        router = _CountedRouter(owner, experts, rate)
        routers.append(router)
        handles.append(experts.register_forward_pre_hook(router.count, with_kwargs=True))
    if not routers:
        raise ValueError(
            f"model: {type(model).__name__} has no {BIAS} beside its experts; "
            f"without one its router can only be balanced by a loss"
        )
    handles.append(LoadBalancer(routers, group=group).attach(optimizer))
    return Balancing(routers, handles)


def _biased_experts(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """All experts that are chosen by score + bias, each with the module that holds the bias.

    That is the block that the experts stand in, or their router beside them.
    """
    for block in model.modules():
        children = dict(block.named_children())
        experts = children.pop("experts", None)
        if experts is None:
            continue
        candidates = [block, *(module for child in children.values() for module in child.modules())]
        owners = [module for module in candidates if hasattr(module, BIAS)]
        if owners:
            yield experts, owners[0]
