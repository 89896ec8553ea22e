"""Routers: the experts that a token visits, and their weights.

Shape letters: ... any leading, C model dim, E experts, K experts a token visits, G groups.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sigmoid_attention.attention import autocast, validation
from sigmoid_attention.attention.keep_fp32 import keep_fp32
from sigmoid_attention.attention.torch_function import leaf_in_fx
from sigmoid_attention.mixtures.gates import GATES
from sigmoid_attention.mixtures.scores import SCORES
from sigmoid_attention.nn.recording import recomputed, recomputing, recordings, stand_ins
from sigmoid_attention.nn.sizes import (
    number_from_zero,
    one_of,
    positive_number,
    positive_whole,
    switch,
    whole_between,
)

# Without tanh: shares and balance losses need weights that are not negative.
ROUTER_GATES = tuple(name for name in GATES if name != "tanh")
AFFINITIES = tuple(SCORES)
# Added to the sum that divides a token's weights, against division by zero (as DeepSeek-V3).
SMALLEST_SUM = 1e-20


class Routing(NamedTuple):
    """The decision of a router: floats in float32 or wider, ``experts`` in int64.

    ``logits`` and ``scores`` are the values of all experts before and after the gate, (..., E);
    ``experts`` are the chosen experts, in no particular order, and ``weights`` theirs, (..., K).
    """

    logits: Tensor
    scores: Tensor
    experts: Tensor
    weights: Tensor

    def chosen(self) -> Tensor:
        """Which experts each token visits, boolean (..., E).

        Example:
            >>> Router(4, experts=3, top_k=2)(torch.randn(5, 4)).chosen().sum(-1).tolist()
            [2, 2, 2, 2, 2]
        """
        return torch.zeros_like(self.scores, dtype=torch.bool).scatter(-1, self.experts, True)

    def floats(self) -> tuple[Tensor, Tensor, Tensor]:
        """The tensors with a gradient: logits, scores and weights."""
        return self.logits, self.scores, self.weights

    def with_floats(self, floats: tuple[Tensor, ...]) -> "Routing":
        logits, scores, weights = floats
        return Routing(logits, scores, self.experts, weights)


class Router(nn.Module):
    """Scores s = g(affinity(x) / temperature) of E experts, and the ``top_k`` highest of them.

    The weights of a token's experts are their scores times ``route_scale``, divided by their sum
    with ``normalize``. With ``top_k`` None a token visits every expert: the mixtures of Nguyen et
    al. 2024 (arXiv 2405.13997, section 2: sigmoid, linear, not normalised) and of Yan et al. 2025
    (arXiv 2502.00281: quadratic). "softmax", ``top_k`` and ``normalize`` give Mixtral's router;
    "sigmoid", ``normalize``, groups and a ``balance_rate`` give DeepSeek-V3's (arXiv 2412.19437,
    section 2.1.2).

    Args:
        dim: channels of a token.
        experts: the number of experts.
        top_k: the number of experts that a token visits; None for all.
        gate: a name of ``ROUTER_GATES``; see `sigmoid_attention.mixtures.gates`.
        affinity: "linear" w_e.x, "partially_quadratic" x'A_e x, "fully_quadratic" their sum, or
            "euclidean" -|x - w_e|^2.
        normalize: divide a token's weights by their sum.
        groups: the number of groups of consecutive experts, of equal size.
        top_groups: the number of groups that a token's experts come from, those with the highest
            sums of their two best scores; None for all.
        route_scale: multiplies the weights.
        temperature: divides the affinity.
        intercept: add a trained number b_e to the affinity. None adds it for "euclidean" only,
            where it starts at ``dim``, about |x|^2 of a normed token, so that a sigmoid starts
            near 1/2.
        balance_rate: choose by score + correction_bias, where the bias moves by this at each step
            of an optimizer that a `LoadBalancer` is attached to (DeepSeek-V3: 0.001); the bias does
            not change the weights. 0 for no bias.

    Logits are computed in float32 (float64 for float64 tokens) also under autocast, and the
    correction bias stays in float32 when the model is cast to a smaller dtype. A token whose
    scores are NaN visits ``top_k`` experts with weights NaN, without effect on other tokens.
    Raises ``TypeError`` for a wrong type and ``ValueError`` for values that do not fit together.

    Example:
        >>> router = Router(16, experts=8, top_k=2, normalize=True, balance_rate=1e-3)
        >>> routing = router(torch.randn(5, 16))
        >>> routing.experts.shape, routing.weights.sum(-1).allclose(torch.ones(5))
        (torch.Size([5, 2]), True)
    """

    def __init__(
        self,
        dim: int,
        experts: int,
        top_k: int | None = None,
        *,
        gate: str = "sigmoid",
        affinity: str = "linear",
        normalize: bool = False,
        groups: int = 1,
        top_groups: int | None = None,
        route_scale: float = 1.0,
        temperature: float = 1.0,
        intercept: bool | None = None,
        balance_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = positive_whole("dim", dim)
        self.experts = positive_whole("experts", experts)
        self.top_k = top_k
        self.groups = positive_whole("groups", groups)
        self.top_groups = self.groups if top_groups is None else top_groups
        self.gate, self.affinity = gate, affinity
        self.normalize = switch("normalize", normalize)
        self.route_scale = positive_number("route_scale", route_scale)
        self.temperature = positive_number("temperature", temperature)
        self.balance_rate = number_from_zero("balance_rate", balance_rate)
        self._check()
        if affinity != "partially_quadratic":
            self.weight = nn.Parameter(torch.empty(self.experts, self.dim))
        if affinity.endswith("quadratic"):
            self.quadratic = nn.Parameter(torch.empty(self.experts, self.dim, self.dim))
        if intercept is None:
            intercept = affinity == "euclidean"
        self.intercept = (
            nn.Parameter(torch.empty(self.experts)) if switch("intercept", intercept) else None
        )
        if balance_rate:
            self.correction_bias: Tensor
            self.tokens_per_expert: Tensor
            self.register_buffer("correction_bias", torch.empty(self.experts, dtype=torch.float32))
            counts = torch.empty(self.experts, dtype=torch.int64)
            self.register_buffer("tokens_per_expert", counts, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters, for affinities near one of normed tokens, and reset the balance."""
        if self.affinity != "partially_quadratic":
            nn.init.normal_(self.weight, std=self.dim**-0.5)
        if self.affinity.endswith("quadratic"):
            nn.init.normal_(self.quadratic, std=1 / self.dim)
        if self.intercept is not None:
            nn.init.constant_(self.intercept, self.dim if self.affinity == "euclidean" else 0.0)
        if self.balance_rate:
            self.correction_bias.zero_()
            self.tokens_per_expert.zero_()

    @leaf_in_fx
    def forward(self, x: Tensor) -> Routing:
        """Route tokens x (..., dim); in training mode a balanced router counts the visits.

        Raises ``ValueError`` unless x is floating and its last dimension is ``dim``.
        """
        validation.layer_input("x", x)
        if x.dim() == 0 or x.shape[-1] != self.dim:
            raise ValueError(f"x must have {self.dim} channels, got shape {tuple(x.shape)}")
        with autocast.off(x.device):
            logits = self._affinity(x.to(torch.promote_types(x.dtype, torch.float32)))
            logits = logits / self.temperature
            scores = GATES[self.gate].weights(logits)
        if self.top_k is None:
            experts = torch.arange(self.experts, device=x.device).expand(scores.shape)
            weights = scores
        else:
            experts = self._choose(scores.detach(), self.top_k)
            weights = scores.gather(-1, experts)
        if self.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + SMALLEST_SUM)
        routing = Routing(logits, scores, experts, weights * self.route_scale)
        if self.balance_rate and self.training:
            count_visits(self.tokens_per_expert, routing.chosen())
        if recomputing():
            return routing.with_floats(recomputed(self, routing.floats()))
        for routers, routings in recordings.open:
            if self in routers:
                routings.append(routing.with_floats(stand_ins(self, routing.floats())))
        return routing

    def _affinity(self, x: Tensor) -> Tensor:
        terms = []
        if self.affinity != "partially_quadratic":
            weight = self.weight.to(x.dtype)
            product = autocast.product(x.reshape(-1, self.dim), weight.T).view(
                *x.shape[:-1], self.experts
            )
            if self.affinity == "euclidean":
                # Multiplied out, so that no difference of a token and a centre is stored.
                squares = x.square().sum(-1, keepdim=True) + weight.square().sum(-1)
                product = 2 * product - squares
            terms.append(product)
        if self.affinity.endswith("quadratic"):
            matrices_ECC, x_TC = self.quadratic.to(x.dtype), x.reshape(-1, self.dim)
            turned_ETC = autocast.product(x_TC.expand(self.experts, -1, -1), matrices_ECC)
            terms.append((turned_ETC * x_TC).sum(-1).T.reshape(*x.shape[:-1], self.experts))
        if self.intercept is not None:
            terms.append(self.intercept.to(x.dtype))
        return sum(terms[1:], start=terms[0])

    def _choose(self, scores: Tensor, top_k: int) -> Tensor:
        """The ``top_k`` experts of each token, (..., K)."""
        if self.balance_rate:
            scores = scores + self.correction_bias
        if self.top_groups < self.groups:
            grouped = scores.unflatten(-1, (self.groups, -1))
            two_best = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1)
            allowed = two_best.topk(self.top_groups, -1).indices
            closed = torch.ones_like(two_best, dtype=torch.bool).scatter(-1, allowed, False)
            scores = grouped.masked_fill(closed[..., None], -torch.inf).flatten(-2)
        return scores.topk(top_k, -1, sorted=False).indices

    def _check(self) -> None:
        one_of("gate", self.gate, ROUTER_GATES)
        one_of("affinity", self.affinity, AFFINITIES)
        if self.experts % self.groups:
            raise ValueError(f"groups must divide experts ({self.experts}), got {self.groups}")
        self.top_groups = whole_between(
            "top_groups", self.top_groups, 1, self.groups, f"1 to {self.groups}"
        )
        if self.top_k is None:
            if self.balance_rate or self.top_groups < self.groups:
                raise ValueError(
                    "top_k: balance_rate and top_groups choose among experts, "
                    "but with top_k None every token visits them all"
                )
            return
        selectable = self.experts // self.groups * self.top_groups
        wanted = f"1 to {selectable}, the experts that a token may choose from, or None for all"
        self.top_k = whole_between("top_k", self.top_k, 1, selectable, wanted)

    def extra_repr(self) -> str:
        chosen = "all" if self.top_k is None else f"top {self.top_k}"
        return f"{chosen} of {self.experts}, dim={self.dim}, {self.gate} of {self.affinity}"


@torch.library.custom_op("sigmoid_attention::count_visits", mutates_args=("counts_E",))
def count_visits(counts_E: Tensor, chosen: Tensor) -> None:
    """Add the chosen experts, boolean (..., E), to the counts (E,), except in a recomputation.

    It is a custom operator, so compiled graphs run it unchanged and torch.func does not
    differentiate it.
    """
    if not recomputing():
        counts_E += chosen.reshape(-1, len(counts_E)).sum(0)


@count_visits.register_fake
def _(counts_E: Tensor, chosen: Tensor) -> None:
    return None


@count_visits.register_vmap
def _(info, in_dims: tuple[int | None, int | None], counts_E: Tensor, chosen: Tensor):
    counts_dim, chosen_dim = in_dims
    chosen = chosen.expand(info.batch_size, *chosen.shape) if chosen_dim is None else chosen
    chosen_first = chosen.movedim(chosen_dim or 0, 0)
    if counts_dim is None:
        count_visits(counts_E, chosen_first)
    else:
        for pair in zip(counts_E.movedim(counts_dim, 0), chosen_first, strict=True):
            count_visits(*pair)
    return None, None


@contextmanager
def record_routing(model: nn.Module) -> Iterator[list[Routing]]:
    """Collect the `Routing` of each call of a `Router` of ``model`` inside the ``with`` block.

    Routings have gradients, for balance losses; see `sigmoid_attention.nn.balance`. Calls of other
    threads and recomputations by a checkpoint are not recorded. A balance loss of a routing inside
    a checkpoint with ``use_reentrant=True`` must be differentiated together with the checkpoint's
    output, else the backward pass raises ``ValueError``. A compiled layer inside such a checkpoint
    records its routing without a gradient.

    Example:
        >>> router = Router(4, experts=3, top_k=1)
        >>> with record_routing(router) as routings:
        ...     _ = router(torch.randn(2, 4))
        >>> [routing.scores.shape for routing in routings]
        [torch.Size([2, 3])]
    """
    routings: list[Routing] = []
    routers = tuple(module for module in model.modules() if isinstance(module, Router))
    outer = recordings.open
    recordings.open = (*outer, (routers, routings))
    try:
        yield routings
    finally:
        recordings.open = outer


keep_fp32(Router, "correction_bias")
