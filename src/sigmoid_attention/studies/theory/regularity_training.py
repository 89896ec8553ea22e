"""Study of Jacobian norms along training, and of their relation to robustness and smoothness."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor

from sigmoid_attention.lab.figure import COLOURS, panels
from sigmoid_attention.lab.study import Finding, Measured, Results, Row, Study, Task
from sigmoid_attention.mixtures.rates.slopes import Slope, ratio
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from sigmoid_attention.nn import DecoderLM, ModelConfig
from sigmoid_attention.theory.regularity import largest_gain
from sigmoid_attention.training.data.batches import TextBatches, token_stream
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.data.tokenizer import ByteTokenizer
from sigmoid_attention.training.model_folder import new_model
from sigmoid_attention.training.optimizer import TrainConfig
from sigmoid_attention.training.trainer import train

KINDS = ("sigmoid", "softmax")
SEEDS = 6
LOOKS = (0, 50, 100, 200, 400)
HELD_OUT = 4
# Relative to the length of each token's state before the first block.
NOISE, ATTACK = 0.3, 0.1
DRAWS = 2000


@dataclass(frozen=True)
class TrainingSetting:
    """A small decoder on the source of Python's standard library; all is equal for both kinds."""

    activation: str
    seed: int
    steps: int = LOOKS[-1]
    dim: int = 48
    layers: int = 2
    num_heads: int = 4
    seq_len: int = 64
    batch_size: int = 16
    lr: float = 3e-3


def measure(run: TrainingSetting) -> Iterator[Row]:
    """The Jacobian norm at every measurement, and the loss increase by perturbations at the end."""
    config = ModelConfig.recipe(
        "recommended",
        vocab_size=ByteTokenizer.vocab_size,
        dim=run.dim,
        layers=run.layers,
        num_heads=run.num_heads,
        max_seq_len=run.seq_len,
        ffn_dim=4 * run.dim,
        activation=run.activation,
        position="alibi",
    )
    model = new_model(config, run.seed)
    learnt, held_out = _text()
    looks: list[Row] = []
    inputs, targets = TextBatches(held_out, run.seq_len, HELD_OUT, seed=1).batch(0)

    def look(step: int, _loss: float = 0.0) -> None:
        if step in LOOKS:
            for index, tokens in enumerate(inputs):
                looks.append(
                    Row("steepness", _steepness(model, tokens), replicate=index, step=step)
                )

    look(0)
    batches = TextBatches(learnt, run.seq_len, run.batch_size, run.seed)
    settings = TrainConfig(steps=run.steps, lr=run.lr, warmup_steps=40, seed=run.seed)
    losses = train(model, batches, settings, progress=False, on_step=look).losses
    yield from looks
    later = np.array(losses[run.steps // 2 :])
    yield Row("roughness", float(np.abs(np.diff(later)).mean()))
    inputs, targets = TextBatches(held_out, run.seq_len, 64, seed=2).batch(0)
    yield from (Row(name, value) for name, value in _robustness(model, inputs, targets).items())


@cache
def _text() -> tuple[Tensor, Tensor]:
    corpus, tokenizer = load_corpus("stdlib"), ByteTokenizer()
    return token_stream(tokenizer, corpus.train), token_stream(tokenizer, corpus.heldout)


def after_embedding(model: DecoderLM) -> Callable[[Tensor], Tensor]:
    """The map from embedded tokens (..., N, C) to the last states, which contains attention."""

    def run(x: Tensor) -> Tensor:
        for block in model.blocks:
            x = block(x)
        return model.norm(x)

    return run


def _embedded(model: DecoderLM, tokens: Tensor) -> Tensor:
    return (model.embedding(tokens) * model.config.dim**0.5).detach()


def _steepness(model: DecoderLM, tokens: Tensor) -> float:
    run = after_embedding(model)
    return largest_gain(lambda x: run(x[None])[0], _embedded(model, tokens)).value


def _robustness(model: DecoderLM, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """The held-out loss in nats, and its increase by noise and by an attack on embeddings."""
    run, x = after_embedding(model.eval()), _embedded(model, inputs)

    def loss(x: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(run(x)).flatten(0, 1), targets.flatten())

    length = x.norm(dim=-1, keepdim=True)
    rng = torch.Generator().manual_seed(0)
    noise = F.normalize(torch.randn(x.shape, generator=rng), dim=-1) * length * NOISE
    moving = x.clone().requires_grad_(True)
    clean = loss(moving)
    (slope,) = torch.autograd.grad(clean, moving)
    with torch.no_grad():
        attack = F.normalize(slope, dim=-1) * length * ATTACK
        return {
            "loss": float(clean.detach()),
            "noise": float(loss(x + noise) - clean),
            "attack": float(loss(x + attack) - clean),
        }


RULE = f"""{SEEDS} decoders of each kind with the recommended recipe under ALiBi, {LOOKS[-1]} steps
on bytes; text, order and initial weights are the same in both. Steepness is the largest gain of the
map from embedded tokens to last states, the median over {HELD_OUT} held-out sequences. "noise" is
what random directions of {NOISE:.0%} of each token's length add to the held-out loss, "attack" what
one step of {ATTACK:.0%} along its gradient adds, "roughness" the mean change of the training loss
from step to step in the second half. Of each the ratio of the medians over seeds, sigmoid over
softmax: *{REPRODUCED}* if its bootstrap interval lies below one, *{NOT_REPRODUCED}* if above,
*{UNDECIDED}* if it includes one. Robustness is said to come with low constants if, over all runs,
the rank correlation of steepness with what the attack adds has an interval above zero."""

CLAIMS = {
    "steepness": "less steep under sigmoid",
    "noise": "noise costs less under sigmoid",
    "attack": "an attack costs less under sigmoid",
    "roughness": "training is smoother under sigmoid",
}


def judge(results: Results) -> list[Finding]:
    """A line for each claim, and one for the link between Jacobian norm and robustness."""
    runs = {kind: _runs(results, kind) for kind in KINDS}
    findings = []
    for quantity, claim in CLAIMS.items():
        values = {kind: np.array([_value(run, quantity) for run in runs[kind]]) for kind in KINDS}
        beside = ratio(values["softmax"], values["sigmoid"])
        medians = ", ".join(f"{kind} {np.median(values[kind]):.3g}" for kind in KINDS)
        findings.append(
            Finding(
                quantity,
                claim,
                medians,
                verdict_of(beside),
                f"ratio {_range(beside)}",
                _losses(runs),
            )
        )
    every = [run for kind in KINDS for run in runs[kind]]
    link = _correlation(
        np.array([_value(run, "steepness") for run in every]),
        np.array([_value(run, "attack") for run in every]),
    )
    findings.append(
        Finding(
            "link",
            "steeper networks lose more under attack",
            f"rank correlation {_range(link)} over {len(every)} runs",
            REPRODUCED if link.low > 0 else NOT_REPRODUCED if link.high < 0 else UNDECIDED,
            "it mixes both kinds, which differ in more than steepness",
        )
    )
    return findings


def verdict_of(beside: Slope) -> str:
    """The rule, from a ratio of sigmoid to softmax."""
    if beside.high < 1:
        return REPRODUCED
    return NOT_REPRODUCED if beside.low > 1 else UNDECIDED


def _correlation(first: np.ndarray, second: np.ndarray) -> Slope:
    """Spearman's rank correlation, with a bootstrap interval over runs."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        chosen = rng.integers(0, len(first), len(first))
        if len(set(chosen.tolist())) > 2:
            drawn.append(_spearman(first[chosen], second[chosen]))
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Slope(_spearman(first, second), float(low), float(high))


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    statistic, _ = spearmanr(first, second)
    return float(statistic)  # pyright: ignore[reportArgumentType]


def _range(interval: Slope) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _runs(results: Results, kind: str) -> list[Measured]:
    return [results[kind, f"seed {seed}"][0] for seed in range(SEEDS)]


def _value(run: Measured, quantity: str) -> float:
    if quantity != "steepness":
        return float(run.values(quantity)[0])
    return _steep_at(run, LOOKS[-1])


def _steep_at(run: Measured, step: int) -> float:
    return float(
        np.median([r.value for r in run.rows if r.quantity == "steepness" and r.step == step])
    )


def _losses(runs: dict[str, list[Measured]]) -> str:
    return ", ".join(
        f"{kind} held-out loss {np.median([_value(one, 'loss') for one in runs[kind]]):.3f}"
        for kind in KINDS
    )


def tasks() -> list[Task]:
    """A task for each run."""
    return [
        Task(kind, f"seed {seed}", TrainingSetting(kind, seed), measure)
        for kind in KINDS
        for seed in range(SEEDS)
    ]


def draw(results: Results) -> Figure:
    """The Jacobian norm along training, and the loss increase by an attack against it."""
    figure, (along, link) = panels(2)
    for kind in KINDS:
        runs = _runs(results, kind)
        steep = np.array([[_steep_at(run, step) for step in LOOKS] for run in runs])
        low, middle, high = np.quantile(steep, (0.25, 0.5, 0.75), axis=0)
        along.errorbar(
            LOOKS, middle, (middle - low, high - middle), fmt="o-", color=COLOURS[kind], label=kind
        )
        link.plot(
            steep[:, -1],
            [_value(run, "attack") for run in runs],
            "o",
            color=COLOURS[kind],
            label=kind,
        )
    along.set(xlabel="training steps", ylabel="norm of the Jacobian", yscale="log")
    link.set(xlabel="norm of the Jacobian", ylabel="nats that the attack adds")
    along.legend()
    link.legend()
    return figure


STUDY = Study(
    "regularity_training",
    "Steepness along training, robustness and smoothness",
    "Lower Lipschitz constants are offered as a reason for robust networks and smooth training; "
    "reviewers of Ramapuram et al. 2024 asked for evidence.",
    "Ramapuram et al. 2024, section 3.2 and its reviews",
    RULE,
    tasks,
    judge,
    draw,
)
