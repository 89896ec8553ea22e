"""A mixture-of-experts layer, which replaces a feed-forward layer, and its configuration.

Shape letters: ... any leading, C model dim, E experts, K experts a token visits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sigmoid_attention.attention.torch_function import leaf_in_fx
from sigmoid_attention.nn.balance import sequence_loss, switch_loss, z_loss
from sigmoid_attention.nn.experts import Experts
from sigmoid_attention.nn.feed_forward import FEED_FORWARDS
from sigmoid_attention.nn.router import Router, Routing
from sigmoid_attention.nn.sizes import number_from_zero, whole_from_zero


class MoE(nn.Module):
    """y = sum_k weight_k expert_k(x) + shared(x): tokens visit the experts that a router chooses.

    Takes and returns (..., dim). ``shared`` is a layer that every token visits too, or None.
    Raises ``ValueError`` if router and experts are not of the same number and dimension.

    Example:
        >>> router = Router(16, experts=8, top_k=2, normalize=True)
        >>> layer = MoE(router, Experts(8, dim=16, hidden=24))
        >>> layer(torch.randn(2, 5, 16)).shape
        torch.Size([2, 5, 16])
    """

    def __init__(self, router: Router, experts: Experts, shared: nn.Module | None = None) -> None:
        super().__init__()
        for name in ("experts", "dim"):
            if getattr(router, name) != getattr(experts, name):
                raise ValueError(
                    f"experts: the router's {name} is {getattr(router, name)}, "
                    f"that of the experts {getattr(experts, name)}"
                )
        self.router, self.experts, self.shared = router, experts, shared

    @leaf_in_fx
    def forward(self, x: Tensor) -> Tensor:
        routing = self.router(x)
        visits = routing.experts.shape[-1]
        tokens, weights = x.reshape(-1, x.shape[-1]), routing.weights.reshape(-1, visits)
        dense = self.router.top_k is None
        experts = None if dense else routing.experts.reshape(-1, visits)
        y = self.experts(tokens, experts, weights).view_as(x)
        return y if self.shared is None else y + self.shared(x)


@dataclass(frozen=True)
class MoEConfig:
    """All settings of the mixture-of-experts layers of a model.

    ``hidden`` is the width of one expert. ``shared_experts`` is the number of further experts of
    that width, which every token visits. ``dense_layers`` is the number of first layers that keep a
    plain feed-forward. ``switch_loss``, ``sequence_loss`` and ``z_loss`` are weights of terms of
    the training loss. The other fields are arguments of `Router`. Raises ``TypeError`` for a wrong
    type and ``ValueError`` for a wrong value.

    Example:
        >>> deepseek = MoEConfig(experts=8, hidden=32, top_k=2, shared_experts=1, normalize=True,
        ...                      groups=4, top_groups=2, route_scale=2.5, balance_rate=1e-3)
        >>> deepseek.build(dim=16)(torch.randn(1, 3, 16)).shape
        torch.Size([1, 3, 16])
    """

    experts: int
    hidden: int
    top_k: int | None = None
    shared_experts: int = 0
    dense_layers: int = 0
    gate: str = "sigmoid"
    affinity: str = "linear"
    normalize: bool = False
    groups: int = 1
    top_groups: int | None = None
    route_scale: float = 1.0
    temperature: float = 1.0
    intercept: bool | None = None
    balance_rate: float = 0.0
    switch_loss: float = 0.0
    sequence_loss: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shared_experts", "dense_layers"):
            object.__setattr__(self, name, whole_from_zero(name, getattr(self, name)))
        for name in ("switch_loss", "sequence_loss", "z_loss"):
            object.__setattr__(self, name, number_from_zero(name, getattr(self, name)))
        # Router and experts check the other fields; on the meta device they allocate nothing.
        with torch.device("meta"):
            built = self.build(dim=1)
        # As Python numbers, which JSON can write.
        object.__setattr__(self, "hidden", built.experts.hidden)
        for name in ("experts", "top_k", "groups", "normalize", "route_scale", "temperature"):
            object.__setattr__(self, name, getattr(built.router, name))
        object.__setattr__(self, "balance_rate", built.router.balance_rate)
        if self.top_groups is not None:
            object.__setattr__(self, "top_groups", built.router.top_groups)
        if self.intercept is not None:
            object.__setattr__(self, "intercept", built.router.intercept is not None)

    def build(self, dim: int, *, kind: str = "swiglu") -> MoE:
        """A layer for tokens of ``dim`` channels with feed-forwards of ``kind``."""
        router = Router(
            dim,
            self.experts,
            self.top_k,
            gate=self.gate,
            affinity=self.affinity,
            normalize=self.normalize,
            groups=self.groups,
            top_groups=self.top_groups,
            route_scale=self.route_scale,
            temperature=self.temperature,
            intercept=self.intercept,
            balance_rate=self.balance_rate,
        )
        experts = Experts(self.experts, dim, self.hidden, kind=kind)
        if not self.shared_experts:
            return MoE(router, experts)
        return MoE(router, experts, FEED_FORWARDS[kind](dim, self.shared_experts * self.hidden))

    def penalty(self, routings: Sequence[Routing]) -> Tensor:
        """The sum of the weighted balance losses of all layers, a scalar."""
        losses = {
            switch_loss: self.switch_loss,
            sequence_loss: self.sequence_loss,
            z_loss: self.z_loss,
        }
        terms = [
            weight * loss(routing)
            for loss, weight in losses.items()
            if weight
            for routing in routings
        ]
        return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float32)
