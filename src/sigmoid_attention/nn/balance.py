"""Balancing the load of experts: by a bias that follows the counts, or by a term of the loss.

Shape letters: B sequences, N tokens, E experts, K experts a token visits.
"""

from collections.abc import Iterable
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sigmoid_attention.nn.router import SMALLEST_SUM, Router, Routing


class Balanced(Protocol):
    """The attributes of a router that `LoadBalancer` uses: bias (E,), integer counts (E,), rate."""

    correction_bias: Tensor
    tokens_per_expert: Tensor
    balance_rate: float


class LoadBalancer:
    """Balance without a loss: at each step of the optimizer the bias of every router moves by

        step_e = rate * sign(mean count - count_e),    bias += step - mean(step)

    where count_e is the number of tokens that visited expert e since the last step, over all
    processes of ``group`` where torch.distributed is initialised. The bias decides which experts
    are chosen but not their weights, so it adds no gradient to the model's (arXiv 2408.15664;
    DeepSeek-V3, arXiv 2412.19437, section 2.1.2). Subtracting the mean changes no choice and
    keeps the bias from drifting.

    Example:
        >>> router = Router(4, experts=2, top_k=1, balance_rate=0.1)
        >>> optimizer = torch.optim.SGD(router.parameters(), lr=0.0)
        >>> handle = LoadBalancer([router]).attach(optimizer)
        >>> router.tokens_per_expert.copy_(torch.tensor([9, 1])).tolist()
        [9, 1]
        >>> optimizer.step()
        >>> router.correction_bias.tolist(), router.tokens_per_expert.tolist()
        ([-0.10000000149011612, 0.10000000149011612], [0, 0])
    """

    def __init__(
        self, routers: Iterable[Balanced], *, group: "dist.ProcessGroup | None" = None
    ) -> None:
        self.routers = list(routers)
        self.group = group
        if not self.routers:
            raise ValueError(
                "routers: there is none to balance; a Router needs a balance_rate and a top_k"
            )

    @classmethod
    def of(cls, model: nn.Module, *, group: "dist.ProcessGroup | None" = None) -> "LoadBalancer":
        """For all routers of a model that have a ``balance_rate``; ``ValueError`` if none has."""
        return cls(balanced_routers(model), group=group)

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Call `update` before each of the optimizer's steps, until the handle is removed.

        Attach one optimizer of a model only: each attached one moves the bias.
        """
        return optimizer.register_step_pre_hook(lambda *_: self.update())

    @torch.no_grad()
    def update(self) -> None:
        """Move every bias by its step and reset the counts to zero."""
        for router, counts_E in zip(self.routers, self._counts(), strict=True):
            # In integers: a mean in float32 is not exact beyond 2^24 tokens.
            sign_E = (counts_E.sum() - len(counts_E) * counts_E).sign().to(torch.float32)
            router.correction_bias.add_(router.balance_rate * (sign_E - sign_E.mean()))
            router.tokens_per_expert.zero_()

    def _counts(self) -> list[Tensor]:
        counts = [router.tokens_per_expert for router in self.routers]
        if not (dist.is_available() and dist.is_initialized()):
            return counts
        # One message for all layers, also where they are on several devices.
        all_counts = torch.cat([counts_E.to(counts[0].device) for counts_E in counts])
        dist.all_reduce(all_counts, group=self.group)
        parts = all_counts.split([len(counts_E) for counts_E in counts])
        return [part.to(counts_E.device) for part, counts_E in zip(parts, counts, strict=True)]


def balanced_routers(model: nn.Module) -> list[Router]:
    """The routers of a model that choose by score + bias."""
    return [
        module for module in model.modules() if isinstance(module, Router) and module.balance_rate
    ]


def switch_loss(routing: Routing) -> Tensor:
    """E sum_e f_e P_e over all tokens: 1 for an even load, E where one expert gets all tokens.

    f_e is the share of all visits that expert e gets, and P_e its score's mean share of a token's
    scores, through which the gradient flows (Fedus et al. 2022, arXiv 2101.03961, eq. 4 to 6,
    with visits for tokens where K > 1).

    Example:
        >>> crowded = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> visited = torch.tensor([[0], [0]])
        >>> switch_loss(Routing(crowded, crowded, visited, crowded[:, :1])).item()
        2.0
    """
    return _unevenness(routing.scores.flatten(0, -2), routing.chosen().flatten(0, -2))


def sequence_loss(routing: Routing) -> Tensor:
    """E sum_e f_e P_e within each sequence, averaged over the sequences.

    As `switch_loss`, but each score is divided by the sum of a token's scores over all experts. For
    a sigmoid this is not a softmax of the same logits (DeepSeek-V3, eq. 17 to 20). f_e counts the
    actual visits, which include the effect of a correction bias. The routing must be that of
    (B, N, dim) tokens; raises ``ValueError`` for other shapes.

    Example:
        >>> sequence_loss(Router(4, experts=8, top_k=2)(torch.randn(2, 5, 4))).shape
        torch.Size([])
    """
    if routing.scores.dim() != 3:
        raise ValueError(
            f"routing must be that of (batch, tokens, dim), "
            f"got scores of shape {tuple(routing.scores.shape)}"
        )
    return _unevenness(routing.scores, routing.chosen()).mean()


def z_loss(routing: Routing) -> Tensor:
    """mean(logsumexp(logits)^2) over all tokens, which limits the logits of a softmax router.

    Source: Zoph et al. 2022, arXiv 2202.08906, eq. 5.

    Example:
        >>> router = Router(4, experts=1)
        >>> bool(z_loss(router(torch.zeros(3, 4))) == 0)
        True
    """
    return routing.logits.logsumexp(-1).square().mean()


def _unevenness(scores_NE: Tensor, chosen_NE: Tensor) -> Tensor:
    """E sum_e f_e P_e over tokens N, for any leading dimensions."""
    share_NE = scores_NE / (scores_NE.sum(-1, keepdim=True) + SMALLEST_SUM)
    visits_E = chosen_NE.sum(-2).to(scores_NE.dtype)
    load_E = visits_E / visits_E.sum(-1, keepdim=True)
    return scores_NE.shape[-1] * (load_E * share_NE.mean(-2)).sum(-1)
