"""The certificate of a trained decoder: Jacobian norms of its branches, bounded and measured.

Shape letters: N tokens, C channels.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from sigmoid_attention.lab.figure import panels, styled, svg
from sigmoid_attention.nn import DecoderLM
from sigmoid_attention.theory.regularity import (
    Ball,
    LayerBound,
    composed,
    largest_gain,
    network_bound,
    network_bound_at,
)
from sigmoid_attention.theory.regularity.network import branches
from sigmoid_attention.training.environment import describe_versions
from sigmoid_attention.training.files import write_whole


@dataclass(frozen=True)
class BranchBound:
    """A residual branch with its sum: the bound on the ball, and the bound and norm at the text.

    ``measured`` is attained, so it lies below both bounds. ``settled`` is True if the Lanczos
    iteration had stopped growing.
    """

    within: LayerBound
    at: LayerBound
    measured: float
    settled: bool

    @property
    def tightness(self) -> float:
        """Measured norm over bound, at the text; 1 for a tight bound."""
        return self.measured / self.at.jacobian


@dataclass(frozen=True)
class Certificate:
    """The certificates of all branches of a decoder, and of its whole stack of blocks."""

    ball: Ball
    tokens: int
    branches: list[BranchBound]
    measured: float
    settled: bool

    @property
    def within(self) -> float:
        """The product of the bounds on the ball, which holds for all inputs in it."""
        return composed([branch.within for branch in self.branches])

    @property
    def at(self) -> float:
        """The product of the bounds at the text."""
        return composed([branch.at for branch in self.branches])


def certify(model: DecoderLM, tokens: Tensor, ball: Ball, *, seconds: float = 60.0) -> Certificate:
    """Bound and measure every branch of a decoder, for inputs in a ball and at a text.

    Args:
        model: in evaluation mode; positions that are added to embeddings are part of the input.
        tokens: the text, (1, N) token ids.
        ball: the set of embedded tokens.
        seconds: time limit for the norm of the whole stack, which takes most of the time.

    Raises:
        ValueError: a part without a bound; the message names it.

    Example:
        >>> from sigmoid_attention.nn import ModelConfig
        >>> sizes = dict(vocab_size=9, dim=16, layers=2, num_heads=2, max_seq_len=8)
        >>> model = DecoderLM(ModelConfig.recipe("paper", **sizes)).eval()
        >>> found = certify(model, torch.arange(8)[None], Ball(4.0))
        >>> found.measured <= found.at <= found.within
        True
    """
    x = embedded(model, tokens)
    within = network_bound(model.blocks, ball, x.shape[0])
    at = network_bound_at(model.blocks, x)
    measured = _measured(model, x)
    branches = [
        BranchBound(ball, here, *one) for ball, here, one in zip(within, at, measured, strict=True)
    ]
    network = largest_gain(lambda x: _through(model, x), x, seconds=seconds)
    return Certificate(ball, x.shape[0], branches, network.value, network.settled)


def embedded(model: DecoderLM, tokens: Tensor) -> Tensor:
    """The input of the first block for a text (1, N), as (N, C)."""
    positions = torch.arange(tokens.shape[1])[None]
    with torch.no_grad():
        return (model.position(model.embedding(tokens), positions) * model.config.dim**0.5)[0]


def _through(model: DecoderLM, x_NC: Tensor) -> Tensor:
    x_BNC = x_NC[None]
    for block in model.blocks:
        x_BNC = block(x_BNC)
    return x_BNC[0]


def _measured(model: DecoderLM, x_NC: Tensor) -> Iterator[tuple[float, bool]]:
    x_BNC = x_NC[None]
    for _, residual, layer in branches(model.blocks):

        def run(x: Tensor, residual: nn.Module = residual, layer: nn.Module = layer) -> Tensor:
            return residual(x, layer)

        gain = largest_gain(run, x_BNC)
        yield gain.value, gain.settled
        with torch.no_grad():
            x_BNC = run(x_BNC)


def save(certificate: Certificate, folder: Path) -> tuple[Path, Path]:
    """Write certificate.json and certificate.svg into ``folder`` atomically; return their paths."""
    described = asdict(certificate) | {
        "product_within": certificate.within,
        "product_at": certificate.at,
        "versions": describe_versions(),
    }
    with styled():
        picture = svg(draw(certificate))
    folder.mkdir(parents=True, exist_ok=True)
    data, figure = folder / "certificate.json", folder / "certificate.svg"
    write_whole(data, json.dumps(described, indent=1).encode())
    write_whole(figure, picture)
    return data, figure


def draw(certificate: Certificate) -> Figure:
    """Bound on the ball, bound at the text and measured norm of every branch."""
    figure, (axis,) = panels(1)
    figure.set_size_inches(max(3.6, 0.5 * len(certificate.branches) + 1.5), 3.6)
    rows = range(len(certificate.branches))
    for label, values, marker in (
        (
            f"bound for |x| ≤ {certificate.ball.radius:g}",
            [b.within.jacobian for b in certificate.branches],
            "v",
        ),
        ("bound at the text", [b.at.jacobian for b in certificate.branches], "o"),
        ("measured at the text", [b.measured for b in certificate.branches], "x"),
    ):
        axis.plot(rows, values, marker, label=label)
    names = [branch.at.name.replace("_", "-") for branch in certificate.branches]
    axis.set_xticks(list(rows), names, rotation=90)
    axis.set(yscale="log", ylabel="norm of the Jacobian")
    axis.legend()
    return figure
