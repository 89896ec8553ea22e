"""Feed-forward networks of one shape, the experts; each token visits those that a router chose.

Shape letters: T tokens, K experts a token visits, S = T K visits in the experts' order, E experts,
C model dim, F hidden dim of an expert.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigmoid_attention.attention import arguments, autocast, validation
from sigmoid_attention.attention.torch_function import leaf_in_fx
from sigmoid_attention.nn.feed_forward import FEED_FORWARDS
from sigmoid_attention.nn.grouped import each_expert
from sigmoid_attention.nn.sizes import one_of, positive_whole


class Experts(nn.Module):
    """E feed-forward networks, ``kind`` "swiglu" or "gelu", without linear biases.

        swiglu: down_e(silu(gate_e(x)) * up_e(x))        gelu: down_e(gelu(up_e(x)))

    ``gate_up`` is (E, 2 F, C), the gates above the ups, or ``up`` (E, F, C) for GELU; ``down`` is
    (E, C, F). They start normal with variance 1 / fan_in. Every visit is computed, however
    uneven the load: experts have no capacity limit and no token is dropped. Raises ``ValueError``
    for a size that is not positive and for another kind.

    Example:
        >>> experts = Experts(4, dim=8, hidden=16)
        >>> visits, weights = torch.tensor([[0, 3], [3, 1]]), torch.full((2, 2), 0.5)
        >>> experts(torch.randn(2, 8), visits, weights).shape
        torch.Size([2, 8])
    """

    def __init__(self, experts: int, dim: int, hidden: int, *, kind: str = "swiglu") -> None:
        super().__init__()
        experts, dim = positive_whole("experts", experts), positive_whole("dim", dim)
        hidden = positive_whole("hidden", hidden)
        one_of("kind", kind, FEED_FORWARDS)
        self.experts, self.dim, self.hidden, self.kind = experts, dim, hidden, kind
        if kind == "swiglu":
            self.gate_up = nn.Parameter(torch.empty(experts, 2 * hidden, dim))
        else:
            self.up = nn.Parameter(torch.empty(experts, hidden, dim))
        self.down = nn.Parameter(torch.empty(experts, dim, hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights again."""
        for weight in self.parameters():
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)

    @leaf_in_fx
    def forward(self, x: Tensor, experts: Tensor | None, weights: Tensor) -> Tensor:
        """sum_k weights_tk expert(experts_tk, x_t), (T, C), of tokens (T, C) and choices (T, K).

        ``experts`` are integers, ``weights`` of any floating dtype; the sum over k is taken in the
        wider of theirs and the tokens'. With ``experts`` None every token visits all of them, as in
        `dense`. Raises ``ValueError`` for other shapes.
        """
        validation.layer_input("x", x, self._inner if experts is None else None)
        validation.layer_input("weights", weights)
        if x.dim() != 2 or x.shape[-1] != self.dim:
            raise ValueError(f"x must be (tokens, {self.dim}), got {tuple(x.shape)}")
        if experts is None:
            if weights.shape != (x.shape[0], self.experts):
                raise ValueError(
                    f"weights must be ({x.shape[0]}, {self.experts}) where experts is None, "
                    f"got {tuple(weights.shape)}"
                )
            return self.dense(x, weights)
        arguments.dense("experts", experts)
        if experts.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"experts must be int32 or int64, got {experts.dtype}")
        if experts.dim() != 2 or experts.shape[0] != x.shape[0] or experts.shape != weights.shape:
            raise ValueError(
                f"experts and weights must both be ({x.shape[0]}, visits), "
                f"got {tuple(experts.shape)} and {tuple(weights.shape)}"
            )

        def visit(x_SC: Tensor, ends_E: Tensor) -> Tensor:
            return _linear(self._activate(_linear(x_SC, self._inner, ends_E)), self.down, ends_E)

        return visit_experts(x, experts, weights, self.experts, visit)

    def dense(self, x: Tensor, weights: Tensor) -> Tensor:
        """sum_e weights_te expert(e, x_t), (T, C), of tokens (T, C) and weights (T, E)."""
        each_TEC = self.each(x).to(weights.dtype).transpose(0, 1)
        return autocast.product(weights[:, None], each_TEC)[:, 0].to(x.dtype)

    def each(self, x: Tensor) -> Tensor:
        """The output of every expert for every token, (E, T, C) for tokens (T, C)."""
        return self._activate(x @ self._inner.mT) @ self.down.mT

    @property
    def _inner(self) -> Tensor:
        return self.gate_up if self.kind == "swiglu" else self.up

    def _activate(self, inner: Tensor) -> Tensor:
        if self.kind == "gelu":
            return F.gelu(inner)
        gate, up = inner.chunk(2, -1)
        return F.silu(gate) * up

    def extra_repr(self) -> str:
        return f"{self.experts}, dim={self.dim}, hidden={self.hidden}, kind={self.kind!r}"


def visit_experts(
    x_TC: Tensor,
    experts_TK: Tensor,
    weights_TK: Tensor,
    count: int,
    visit: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The weighted sum (T, C) of the outputs of each token's experts, of which there are ``count``.

    ``visit`` maps rows (S, C) in the experts' order to their outputs; it also takes ends_E.
    """
    tokens, top_k = experts_TK.shape
    sorted_S, order_S = experts_TK.flatten().sort(stable=True)
    every_E = torch.arange(count, device=sorted_S.device)
    ends_E = torch.searchsorted(sorted_S, every_E, right=True)
    # One copy for each visit, so that no row is read twice. The gradients of the copies are summed
    # in a fixed order on every device.
    copies_SC = x_TC[:, None].expand(-1, top_k, -1).flatten(0, 1)
    y_SC = visit(copies_SC.index_select(0, order_S), ends_E)
    y_TKC = y_SC.index_select(0, order_S.argsort()).unflatten(0, (tokens, top_k))
    return (y_TKC * weights_TK[..., None]).sum(1).to(x_TC.dtype)


def _linear(x_SI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """The grouped product, in the dtype of autocast where it is on."""
    dtype = autocast.product_dtype(weight_EOI)
    return each_expert(x_SI.to(dtype), weight_EOI.to(dtype), ends_E)
