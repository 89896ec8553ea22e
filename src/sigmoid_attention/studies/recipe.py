"""The recipe study: which bias and norms train a sigmoid decoder best, over rates and seeds.
This study chose `ModelConfig.recipe("recommended")`. The paper (Ramapuram et al. 2024) takes
b = -log n, with ALiBi and hybrid norm. Two changes were better in short trials: with rotary
positions a bias below -log n and hybrid norm; with ALiBi a bias by each head's effective length.
One small decoder is trained on the standard library's source, for every candidate, learning rate
and seed. Each candidate is then judged at its best learning rate.

Rule: a candidate's best learning rate has the lowest mean over seeds of the held-out bits per byte
at the training length. For each position, the sigmoid candidate with the lowest mean at its best
learning rate is *recommended*. Its gap to softmax is the paired difference over seeds to the better
softmax candidate of the same position, with its 95% t-interval. Its gain over the paper is the same
difference to the paper's bias and norms.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sigmoid_attention.lab.rows import ArmRow
from sigmoid_attention.lab.statistics import Interval, paired_difference, t_interval
from sigmoid_attention.lab.store import Store
from sigmoid_attention.nn.models.config import ModelConfig
from sigmoid_attention.nn.models.decoder import DecoderLM
from sigmoid_attention.training.data.batches import TextBatches, token_stream
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.data.tokenizer import ByteTokenizer
from sigmoid_attention.training.environment import describe_machine, describe_versions
from sigmoid_attention.training.evaluate import bits_per_byte
from sigmoid_attention.training.trainer import Diverged, TrainConfig, train

METRIC = "validation_bits_per_byte"

# Position, norm placement, and the other fields of the model's configuration.
CANDIDATES: dict[str, dict] = {
    "rope softmax pre": {"activation": "softmax"},
    "rope softmax hybrid": {"activation": "softmax"},
    "rope sigmoid hybrid -log n": {},
    "rope sigmoid hybrid -log n - 2.5": {"bias_offset": -2.5},
    "alibi softmax pre": {"activation": "softmax"},
    "alibi sigmoid hybrid -log n": {},
    "alibi sigmoid pre -log L": {"bias": "neg_log_effective_length"},
}
PAPER = {"rope": "rope sigmoid hybrid -log n", "alibi": "alibi sigmoid hybrid -log n"}


@dataclass(frozen=True)
class RecipeSetting:
    """Sizes of the study; lengths in tokens, which are bytes here.

    Raises ``ValueError`` if there are no seeds or no learning rates, or one is not positive.
    """

    seeds: int = 3
    learning_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    steps: int = 400
    warmup_steps: int = 40
    batch_size: int = 8
    dim: int = 96
    layers: int = 2
    num_heads: int = 4
    ffn_dim: int = 256
    seq_len: int = 256
    heldout_bytes: int = 65_536
    source: str = "stdlib"

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        if not self.learning_rates or not all(0 < lr < math.inf for lr in self.learning_rates):
            raise ValueError(f"learning_rates must be positive numbers, got {self.learning_rates}")


def model_config(candidate: str, setting: RecipeSetting) -> ModelConfig:
    """The decoder of a candidate; settings that are not in its name are common to all."""
    position, _, placement = candidate.split()[:3]
    return ModelConfig(
        vocab_size=ByteTokenizer().vocab_size,
        dim=setting.dim,
        layers=setting.layers,
        num_heads=setting.num_heads,
        ffn_dim=setting.ffn_dim,
        max_seq_len=setting.seq_len,
        position=position,
        norm_placement=placement,
        qk_norm="rms",
        **CANDIDATES[candidate],
    )


def units(setting: RecipeSetting) -> Iterator[tuple[str, float, int]]:
    """Every run; seeds are the outer loop, so that an interrupted study has complete replicates."""
    for seed in range(setting.seeds):
        for lr in setting.learning_rates:
            for candidate in CANDIDATES:
                yield candidate, lr, seed


def unit_name(candidate: str, lr: float, seed: int) -> str:
    return f"{candidate.replace(' ', '_')}-lr{lr:g}-seed{seed}"


def run(out: Path, setting: RecipeSetting, *, resume: bool = False) -> Store:
    """Train every candidate without rows in ``out``."""
    corpus = load_corpus(setting.source)
    tokenizer = ByteTokenizer()
    tokens = token_stream(tokenizer, corpus.train)
    stamp = {
        "machine": describe_machine(torch.device("cpu")),
        "versions": describe_versions(),
        "provenance": dataclasses.asdict(corpus.provenance),
    }
    # Seeds and learning rates only select runs, so more can be added to a study.
    fixed = dataclasses.asdict(setting)
    del fixed["seeds"], fixed["learning_rates"]
    store = Store(out, fixed, stamp, resume=resume)
    todo = [unit for unit in units(setting) if not store.has(unit_name(*unit))]
    for number, (candidate, lr, seed) in enumerate(todo, 1):
        torch.manual_seed(seed)
        model = DecoderLM(model_config(candidate, setting))
        batches = TextBatches(tokens, setting.seq_len, setting.batch_size, seed)
        config = TrainConfig(
            steps=setting.steps, lr=lr, warmup_steps=setting.warmup_steps, seed=seed
        )
        try:
            train(model, batches, config, progress=f"{number}/{len(todo)} {candidate} {lr:g}")
            values = {
                times * setting.seq_len: bits_per_byte(
                    model,
                    tokenizer,
                    corpus.heldout,
                    times * setting.seq_len,
                    max_bytes=setting.heldout_bytes,
                )
                for times in (1, 2, 4)
            }
        except Diverged:
            values = {times * setting.seq_len: float("inf") for times in (1, 2, 4)}
        store.put(
            unit_name(candidate, lr, seed),
            [
                ArmRow(f"{candidate} @ {lr:g}", METRIC, value, "bits/byte", seed, length=length)
                for length, value in values.items()
            ],
        )
    store.merge()
    return store


@dataclass(frozen=True)
class Standing:
    """A candidate at its best learning rate: bits per byte at n, 2n and 4n, and the gap at n.

    ``by_seed`` has the values at n.
    """

    candidate: str
    lr: float
    by_seed: list[float]
    at: dict[int, Interval]
    gap: Interval


def standings(store: Store, setting: RecipeSetting) -> list[Standing]:
    """Every candidate at its best learning rate, against the better softmax of its position."""
    values: dict[tuple[str, float], dict[int, dict[int, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row in store.rows().to_pylist():
        candidate, lr = row["arm"].split(" @ ")
        values[candidate, float(lr)][row["length"]][row["seed"]] = row["value"]

    def at(candidate: str, lr: float, length: int) -> list[float]:
        by_seed = values[candidate, lr][length]
        return [by_seed[seed] for seed in sorted(by_seed)]

    def mean(candidate: str, lr: float) -> float:
        return t_interval(at(candidate, lr, setting.seq_len)).mean

    best = {
        candidate: min(setting.learning_rates, key=lambda lr: mean(candidate, lr))
        for candidate in CANDIDATES
    }
    softmax = {
        position: min(
            (c for c in CANDIDATES if c.startswith(f"{position} softmax")),
            key=lambda c: mean(c, best[c]),
        )
        for position in PAPER
    }
    answer = []
    for candidate, lr in best.items():
        rival = softmax[candidate.split()[0]]
        by_seed = at(candidate, lr, setting.seq_len)
        lengths = [times * setting.seq_len for times in (1, 2, 4)]
        answer.append(
            Standing(
                candidate,
                lr,
                by_seed,
                {length: t_interval(at(candidate, lr, length)) for length in lengths},
                paired_difference(at(rival, best[rival], setting.seq_len), by_seed),
            )
        )
    return answer


def recommended(found: list[Standing]) -> dict[str, Standing]:
    """The recommended sigmoid candidate of each position, by the module's rule."""
    first = {standing.candidate: min(standing.at) for standing in found}
    return {
        position: min(
            (s for s in found if s.candidate.startswith(f"{position} sigmoid")),
            key=lambda s: s.at[first[s.candidate]].mean,
        )
        for position in PAPER
    }


def report(found: list[Standing]) -> str:
    """The standings as a Markdown table, and the recommendation in words."""
    lengths = sorted(found[0].at)
    lines = [
        f"| candidate | best rate | {' | '.join(f'n = {length}' for length in lengths)} "
        f"| to softmax |",
        f"|---|---|{'---|' * len(lengths)}---|",
    ]
    for standing in found:
        values = " | ".join(f"{standing.at[length].mean:.3f}" for length in lengths)
        lines.append(
            f"| {standing.candidate} | {standing.lr:g} | {values} | {_signed(standing.gap)} |"
        )
    by_name = {standing.candidate: standing for standing in found}
    for position, choice in recommended(found).items():
        paper = by_name[PAPER[position]]
        change = paired_difference(paper.by_seed, choice.by_seed)
        lines += [
            "",
            f"{position}: recommended is *{choice.candidate}*, {_signed(choice.gap)} bits per byte "
            f"to softmax and {_signed(change)} to the paper's bias and norms.",
        ]
    return "\n".join(lines)


def _signed(interval: Interval) -> str:
    if not interval.bounded:
        return f"{interval.mean:+.3f}"
    return f"{interval.mean:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
