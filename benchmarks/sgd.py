"""The same observations for least squares and for epochs of mini-batches, and the latter itself.

Shape letters: R replicates, n observations, Q nodes of the design, B problems, d dimension,
P parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.mixtures.data import Samples, Summaries
from sigmoid_attention.mixtures.model import Mixture
from sigmoid_attention.mixtures.rates.setting import RateSetting, draw_truth
from sigmoid_attention.mixtures.stochastic import StochasticRecipe


@dataclass(frozen=True)
class Observed:
    """R data sets of n rows each: at which nodes of a setting's design, and what was seen there."""

    inputs_Qd: Tensor
    node_Rn: Tensor
    observation_Rn: Tensor

    @classmethod
    def draw(cls, setting: RateSetting, n: int, seed: int) -> "Observed":
        """Of a setting's truth, row by row."""
        truth, inputs = draw_truth(setting), setting.inputs_Qd
        truth_Q = truth.family.predict(truth.theta_P, inputs)
        rng = torch.Generator().manual_seed(seed)
        node = torch.randint(setting.nodes, (setting.replicates, n), generator=rng)
        noise = torch.randn(node.shape, generator=rng, dtype=torch.float64)
        return cls(inputs, node, truth_Q[node] + setting.sigma * noise)

    def samples(self, replicates: int) -> Samples:
        """The rows of the first data sets."""
        node = self.node_Rn[:replicates]
        return Samples(self.inputs_Qd[node], self.observation_Rn[:replicates])


def sufficient(curve: Sequence[Observed]) -> Summaries:
    """Counts and means at the nodes of all data sets, which is all that least squares needs."""
    inputs = curve[0].inputs_Qd
    nodes = len(inputs)
    rows = [pair for one in curve for pair in zip(one.node_Rn, one.observation_Rn, strict=True)]
    count = torch.stack([node.bincount(minlength=nodes) for node, _ in rows]).double()
    total = torch.stack([node.bincount(y, minlength=nodes) for node, y in rows])
    mean = total / count.clamp(min=1)
    squares = torch.stack([y.square().sum() for _, y in rows])
    return Summaries(inputs, mean, count, squares - (count * mean * mean).sum(-1))


def plain_sgd(
    family: Mixture,
    inputs_nd: Tensor,
    observation_n: Tensor,
    begin_P: Tensor,
    recipe: StochasticRecipe,
    seed: int,
) -> Tensor:
    """Mini-batch SGD as one writes it in PyTorch, (P,): float32, automatic differentiation."""
    inputs, target = inputs_nd.float(), observation_n.float()
    theta = begin_P.float().requires_grad_()
    optimiser = torch.optim.SGD([theta], lr=recipe.learning_rate)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(target), generator=rng).split(recipe.batch):
            optimiser.zero_grad()
            loss = (family.predict(theta, inputs[batch]) - target[batch]).square().mean()
            loss.backward()
            optimiser.step()
    return theta.detach().double()
