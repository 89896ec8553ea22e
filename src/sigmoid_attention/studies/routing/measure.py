"""Measures a decoder with experts: which experts are chosen, their load and their similarity.

Shape letters: B sequences, N tokens of one, T = B N tokens, E experts, K visits, C model dim.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sigmoid_attention.nn.models.decoder import DecoderLM
from sigmoid_attention.nn.moe import MoE
from sigmoid_attention.nn.router import Routing, record_routing


@contextmanager
def evaluating(model: DecoderLM) -> Iterator[None]:
    """A context with the model in evaluation mode and without gradients; the mode is restored."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def choices(model: DecoderLM, probe_BN: Tensor) -> list[Tensor]:
    """The chosen experts of each token, boolean (B, N, E), for each layer with experts."""
    with evaluating(model), record_routing(model) as routings:
        model.hidden(probe_BN)
    return [routing.chosen() for routing in routings]


def churn(before_BNE: Tensor, after_BNE: Tensor) -> float:
    """The share of tokens whose chosen experts changed.

    Example:
        >>> one, other = torch.eye(3, dtype=torch.bool)[[0, 1, 2, 2]], torch.eye(3) > 0
        >>> churn(one, other[[0, 1, 1, 2]])
        0.25
    """
    return (before_BNE != after_BNE).any(-1).double().mean().item()


def loads(model: DecoderLM, probe_BN: Tensor) -> list[Tensor]:
    """Each expert's load, (E,), by layer: its share of visits, or of weights if all are visited."""
    with evaluating(model), record_routing(model) as routings:
        model.hidden(probe_BN)
    return [_load(routing) for routing in routings]


def _load(routing: Routing) -> Tensor:
    all_visited = routing.experts.shape[-1] == routing.scores.shape[-1]
    amounts = routing.scores if all_visited else routing.chosen().double()
    total_E = amounts.double().flatten(0, -2).sum(0)
    return total_E / total_E.sum()


def entropy(load_E: Tensor) -> float:
    """Entropy of the load over that of an even load: 1 is even, 0 is one expert for all tokens.

    Example:
        >>> round(entropy(torch.tensor([0.5, 0.5])), 6), entropy(torch.tensor([1.0, 0.0]))
        (1.0, 0.0)
    """
    return torch.special.entr(load_E).sum().item() / math.log(len(load_E))


def largest(load_E: Tensor) -> float:
    """The largest load in units of an even load.

    Example:
        >>> largest(torch.tensor([0.5, 0.25, 0.25, 0.0]))
        2.0
    """
    return len(load_E) * load_E.max().item()


def similarities(model: DecoderLM, probe_BN: Tensor) -> list[float]:
    """The mean cosine between two experts' outputs for the same token, for each layer.

    It is 1 if all experts have the same output: they have collapsed into one.
    """
    inputs: list[Tensor] = []

    def read(_layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs.append(arguments[0].flatten(0, 1))

    layers = [module for module in model.modules() if isinstance(module, MoE)]
    handles = [layer.register_forward_pre_hook(read) for layer in layers]
    try:
        with evaluating(model):
            model.hidden(probe_BN)
            return [
                _similarity(layer.experts.each(x_TC))
                for layer, x_TC in zip(layers, inputs, strict=True)
            ]
    finally:
        for handle in handles:
            handle.remove()


def _similarity(answers_ETC: Tensor) -> float:
    directions_ETC = torch.nn.functional.normalize(answers_ETC, dim=-1)
    cosines_EE = torch.einsum("etc,ftc->ef", directions_ETC, directions_ETC)
    experts, tokens = answers_ETC.shape[:2]
    apart = cosines_EE.sum() - cosines_EE.trace()
    return apart.item() / (tokens * experts * (experts - 1))
